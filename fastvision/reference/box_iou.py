"""Overlap of every box of one set with every box of another, and of boxes one by one."""

from __future__ import annotations

import math

import torch
from torch import Tensor

KINDS = ("iou", "generalized", "distance", "complete")
FORMATS = ("xyxy", "xywh", "cxcywh")  # axis-aligned
# factor of the difference between aspect ratios in the complete IoU
ASPECT = 4 / math.pi**2


def upcast(t: Tensor) -> Tensor:
    """float32 for 16-bit floats and int32 for small integers, in which products do not overflow."""
    if t.is_floating_point():
        return t if t.dtype in (torch.float32, torch.float64) else t.float()
    return t if t.dtype in (torch.int32, torch.int64) else t.int()


def upcast_non_float(t: Tensor) -> Tensor:
    """float32 for all but float32 and float64."""
    return t if t.dtype in (torch.float32, torch.float64) else t.float()


def corners(boxes: Tensor, format: str) -> tuple[Tensor, Tensor, Tensor]:
    """Upper left and lower right corners [..., 2] and areas [...] of boxes in a format."""
    first, second = boxes[..., :2], boxes[..., 2:]
    if format == "xyxy":
        low, high, sides = first, second, second - first
    elif format == "xywh":
        low, high, sides = first, first + second, second
    else:
        low, high, sides = first - second / 2, first + second / 2, second
    return low, high, sides[..., 0] * sides[..., 1]


def box_iou(
    boxes1: Tensor, boxes2: Tensor, kind: str, format: str = "xyxy", eps: float = 1e-7
) -> Tensor:
    """[..., N, M] of boxes [..., N, 4] and [..., M, 4] in one of FORMATS; see fastvision.ops.

    Args:
        kind: one of KINDS.
        eps: added to denominators of the distance and complete IoU.
    """
    boxes1, boxes2 = upcast(boxes1), upcast(boxes2)
    low1, high1, area1 = corners(boxes1.unsqueeze(-2), format)
    low2, high2, area2 = corners(boxes2.unsqueeze(-3), format)
    # no clamp, whose derivative at its limit differs between versions of torch
    width, height = (torch.min(high1, high2) - torch.max(low1, low2)).relu().unbind(-1)
    inter = width * height
    union = area1 + area2 - inter
    iou = inter / union
    if kind == "iou":
        return iou
    # of the smallest box around both
    width, height = (torch.max(high1, high2) - torch.min(low1, low2)).relu().unbind(-1)
    if kind == "generalized":
        area = width * height
        return iou - (area - union) / area
    diagonal = width**2 + height**2 + eps
    dx, dy = ((low1 + high1) / 2 - (low2 + high2) / 2).unbind(-1)
    distance = iou - (dx**2 + dy**2) / diagonal
    if kind == "distance":
        return distance
    angle1, angle2 = (
        torch.atan(width / height)
        for width, height in ((high1 - low1).unbind(-1), (high2 - low2).unbind(-1))
    )
    v = ASPECT * torch.pow(angle1 - angle2, 2)
    with torch.no_grad():
        alpha = v / (1 - iou + v + eps)
    return distance - alpha * v


def box_iou_backward(
    grad: Tensor, boxes1: Tensor, boxes2: Tensor, kind: str, format: str, eps: float
) -> tuple[Tensor, Tensor]:
    """The gradients of both sets of boxes, [..., N, 4] and [..., M, 4]."""
    create = torch.is_grad_enabled()
    with torch.enable_grad():
        b1, b2 = (b if b.requires_grad else b.detach().requires_grad_() for b in (boxes1, boxes2))
        overlap = box_iou(b1, b2, kind, format, eps)
    first, second = torch.autograd.grad(overlap, (b1, b2), grad, create_graph=create)
    return first, second
