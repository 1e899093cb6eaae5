"""Overlap of rotated boxes, from the integral along the edges of one inside of the other."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

MIN_AREA = 1e-14  # below, a box overlaps nothing


def _clamp(x: Tensor, low: Tensor, high: Tensor) -> Tensor:
    return torch.minimum(torch.maximum(x, low), high)


def _edge_integral(
    x0: Tensor, y0: Tensor, x1: Tensor, y1: Tensor, half_width: Tensor, half_height: Tensor
) -> Tensor:
    """Integral of y dx from (x0, y0) to (x1, y1), where x counts only between +-half_width and y is
    clamped to +-half_height."""
    run, rise = x1 - x0, y1 - y0
    vertical = run == 0
    start, end = _clamp(x0, -half_width, half_width), _clamp(x1, -half_width, half_width)
    # shares of the edge, each from its own end, so that a vertical edge keeps both
    span = torch.where(vertical, 1, run)
    ya = y0 + ((start - x0) / span).clamp(0, 1) * rise
    yb = y1 - ((x1 - end) / span).clamp(0, 1) * rise
    low, high = torch.minimum(ya, yb), torch.maximum(ya, yb)
    low_inside, high_inside = (_clamp(y, -half_height, half_height) for y in (low, high))
    middle = (low_inside + high_inside) / 2
    height = high - low
    below = torch.minimum(high, -half_height) - torch.minimum(low, -half_height)
    above = torch.maximum(high, half_height) - torch.maximum(low, half_height)
    # Without division where the edge crosses no limit: of an edge that is level but for rounding,
    # the derivative of the quotient would be noise.
    whole = ((low >= half_height) | (high <= half_height)) & (
        (low >= -half_height) | (high <= -half_height)
    )
    weighted = half_height * (above - below) + middle * (high_inside - low_inside)
    mean = torch.where(whole, middle, weighted / torch.where(whole, 1, height))
    return (end - start) * mean


def intersection(boxes1: Tensor, boxes2: Tensor) -> Tensor:
    """Areas common to boxes that broadcast, (center, width, height, degrees) [..., 5].

    In the frame of the first box, the second is a polygon and the first a rectangle around 0. The
    area of the polygon inside of it is the sum of the integrals along the polygon's edges. Where a
    side of one box has all of the other beyond it, the area is 0 without a rounding error.
    """
    cx1, cy1, width1, height1, angle1 = boxes1.unbind(-1)
    cx2, cy2, width2, height2, angle2 = boxes2.unbind(-1)
    angle1, angle2 = angle1 * (math.pi / 180), angle2 * (math.pi / 180)
    cos1, sin1, cos2, sin2 = angle1.cos(), angle1.sin(), angle2.cos(), angle2.sin()
    dx, dy = cx2 - cx1, cy2 - cy1
    x, y = dx * cos1 - dy * sin1, dx * sin1 + dy * cos1
    cos, sin = cos1 * cos2 + sin1 * sin2, sin2 * cos1 - cos2 * sin1
    width, height, across, along = (side.abs() / 2 for side in (width1, height1, width2, height2))
    wx, wy, hx, hy = across * cos, -across * sin, along * sin, along * cos
    corners = [
        (x - wx - hx, y - wy - hy),
        (x + wx - hx, y + wy - hy),
        (x + wx + hx, y + wy + hy),
        (x - wx + hx, y - wy + hy),
    ]
    total: Tensor = torch.zeros((), dtype=x.dtype, device=x.device)
    for start, end in zip(corners, corners[1:] + corners[:1], strict=True):
        total = total + _edge_integral(*start, *end, width, height)
    # y points down, so the way from corner to corner has the area on its right
    area = (-total).relu()
    # between the centers, along the sides of the second box
    u, v = x * cos - y * sin, x * sin + y * cos
    cos, sin = cos.abs(), sin.abs()
    cross = (
        (x.abs() < width + wx.abs() + hx.abs())
        & (y.abs() < height + wy.abs() + hy.abs())
        & (u.abs() < across + width * cos + height * sin)
        & (v.abs() < along + width * sin + height * cos)
    )
    return torch.where(cross & (area < math.inf), area, 0)


def box_iou_rotated(boxes1: Tensor, boxes2: Tensor) -> Tensor:
    """[..., N, M] of boxes [..., N, 5] and [..., M, 5]; see fastvision.ops."""
    if boxes1.dtype != torch.float64:
        boxes1, boxes2 = boxes1.float(), boxes2.float()
    boxes1, boxes2 = boxes1.unsqueeze(-2), boxes2.unsqueeze(-3)
    area1, area2 = (b[..., 2] * b[..., 3] for b in (boxes1, boxes2))
    inter = intersection(boxes1, boxes2)
    empty = (area1 < MIN_AREA) | (area2 < MIN_AREA)
    return torch.where(empty, 0, inter / torch.where(empty, 1, area1 + area2 - inter))


def box_iou_rotated_backward(grad: Tensor, boxes1: Tensor, boxes2: Tensor) -> tuple[Tensor, Tensor]:
    """The gradients of both sets of boxes, [..., N, 5] and [..., M, 5]."""
    return gradients_of_pairs(box_iou_rotated, grad, boxes1, boxes2)


def gradients_of_pairs(
    overlaps: Callable[[Tensor, Tensor], Tensor], grad: Tensor, boxes1: Tensor, boxes2: Tensor
) -> tuple[Tensor, Tensor]:
    """The gradients of both sets of boxes, by autograd of ``overlaps``."""
    create = torch.is_grad_enabled()
    with torch.enable_grad():
        b1, b2 = (b if b.requires_grad else b.detach().requires_grad_() for b in (boxes1, boxes2))
        overlap = overlaps(b1, b2)
    first, second = torch.autograd.grad(overlap, (b1, b2), grad, create_graph=create)
    return first, second
