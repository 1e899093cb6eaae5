"""Losses from the overlap of boxes one by one."""

from __future__ import annotations

import torch
from torch import Tensor

from .box_iou import ASPECT


def _sides(boxes: Tensor) -> Tensor:
    return boxes[..., 2:] - boxes[..., :2]


def _product(sides: Tensor) -> Tensor:
    return sides[..., 0] * sides[..., 1]


def inter_union(boxes1: Tensor, boxes2: Tensor) -> tuple[Tensor, Tensor]:
    """Intersections and unions [...] of boxes [..., 4]."""
    low = torch.max(boxes1[..., :2], boxes2[..., :2])
    high = torch.min(boxes1[..., 2:], boxes2[..., 2:])
    meet = high > low
    # boxes that only touch have no gradient by their intersection
    inter = torch.where(meet[..., 0] & meet[..., 1], _product(high - low), 0)
    return inter, _product(_sides(boxes1)) + _product(_sides(boxes2)) - inter


def _enclosing(boxes1: Tensor, boxes2: Tensor) -> Tensor:
    """Width and height of the smallest boxes around both."""
    return torch.max(boxes1[..., 2:], boxes2[..., 2:]) - torch.min(boxes1[..., :2], boxes2[..., :2])


def _generalized_loss(boxes1: Tensor, boxes2: Tensor, eps: float) -> Tensor:
    inter, union = inter_union(boxes1, boxes2)
    area = _product(_enclosing(boxes1, boxes2))
    return 1 - (inter / (union + eps) - (area - union) / (area + eps))


def distance_loss(boxes1: Tensor, boxes2: Tensor, eps: float = 1e-7) -> tuple[Tensor, Tensor]:
    """1 - distance IoU, and the IoU, [...] of boxes [..., 4]."""
    inter, union = inter_union(boxes1, boxes2)
    iou = inter / (union + eps)
    enclosing = _enclosing(boxes1, boxes2) ** 2
    diagonal = enclosing[..., 0] + enclosing[..., 1] + eps
    centers = [(boxes[..., 2:] + boxes[..., :2]) / 2 for boxes in (boxes1, boxes2)]
    distance = (centers[0] - centers[1]) ** 2
    return 1 - iou + (distance[..., 0] + distance[..., 1]) / diagonal, iou


def _complete_loss(boxes1: Tensor, boxes2: Tensor, eps: float) -> Tensor:
    loss, iou = distance_loss(boxes1, boxes2)  # as in torchvision, with an eps of its own
    sides1, sides2 = _sides(boxes1), _sides(boxes2)
    angle1, angle2 = (torch.atan(sides[..., 0] / sides[..., 1]) for sides in (sides1, sides2))
    v = ASPECT * torch.pow(angle2 - angle1, 2)
    with torch.no_grad():
        alpha = v / (1 - iou + v + eps)
    return loss + alpha * v


def box_iou_loss(boxes1: Tensor, boxes2: Tensor, kind: str, eps: float) -> Tensor:
    """1 - overlap [...] of boxes [..., 4]: the "generalized", "distance" or "complete" IoU."""
    if kind == "generalized":
        return _generalized_loss(boxes1, boxes2, eps)
    if kind == "distance":
        return distance_loss(boxes1, boxes2, eps)[0]
    return _complete_loss(boxes1, boxes2, eps)


def box_iou_loss_backward(
    grad: Tensor, boxes1: Tensor, boxes2: Tensor, kind: str, eps: float
) -> tuple[Tensor, Tensor]:
    """The gradients of both boxes, [..., 4] each."""
    create = torch.is_grad_enabled()
    with torch.enable_grad():
        b1, b2 = (b if b.requires_grad else b.detach().requires_grad_() for b in (boxes1, boxes2))
        loss = box_iou_loss(b1, b2, kind, eps)
    first, second = torch.autograd.grad(loss, (b1, b2), grad, create_graph=create)
    return first, second


def reduce(loss: Tensor, reduction: str) -> Tensor:
    """The loss, its mean (0 for no boxes) or its sum."""
    if reduction == "none":
        return loss
    if reduction == "mean":
        return loss.mean() if loss.numel() > 0 else 0.0 * loss.sum()
    if reduction == "sum":
        return loss.sum()
    raise ValueError(
        f"Invalid Value for arg 'reduction': '{reduction} \n Supported reduction modes: 'none', "
        "'mean', 'sum'"
    )
