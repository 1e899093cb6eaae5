"""Overlap of solid boxes that stand upright: the area that they share seen from above times the
height."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .box_iou_rotated import MIN_AREA, gradients_of_pairs, intersection


def seen_from_above(boxes: Tensor) -> Tensor:
    """[..., 5] rotated boxes (cx, cy, width, height, degrees) of solid ones [..., 7]; with y
    pointing down, they turn the other way."""
    x, y, _, dx, dy, _, yaw = boxes.unbind(-1)
    return torch.stack((x, y, dx, dy, yaw * (-180 / math.pi)), -1)


def box_iou_3d(boxes1: Tensor, boxes2: Tensor) -> Tensor:
    """[..., N, M] of boxes [..., N, 7] and [..., M, 7]; see fastvision.ops."""
    if boxes1.dtype != torch.float64:
        boxes1, boxes2 = boxes1.float(), boxes2.float()
    boxes1, boxes2 = boxes1.unsqueeze(-2), boxes2.unsqueeze(-3)
    volumes, bottoms, tops = [], [], []
    for boxes in (boxes1, boxes2):
        center, depth = boxes[..., 2], boxes[..., 5]
        flat = (boxes[..., 3:6] <= 0).any(-1)
        volumes.append(torch.where(flat, 0, boxes[..., 3] * boxes[..., 4] * depth))
        bottoms.append(center - depth / 2)
        tops.append(center + depth / 2)
    height = torch.minimum(*tops) - torch.maximum(*bottoms)
    area = intersection(seen_from_above(boxes1), seen_from_above(boxes2))
    shared = torch.where(height > 0, area * height, 0)  # 0 for a NaN
    shared = torch.where(shared < math.inf, shared, 0)
    empty = (volumes[0] < MIN_AREA) | (volumes[1] < MIN_AREA)
    return torch.where(empty, 0, shared / torch.where(empty, 1, sum(volumes) - shared))


def box_iou_3d_backward(grad: Tensor, boxes1: Tensor, boxes2: Tensor) -> tuple[Tensor, Tensor]:
    """The gradients of both sets of boxes, [..., N, 7] and [..., M, 7]."""
    return gradients_of_pairs(box_iou_3d, grad, boxes1, boxes2)
