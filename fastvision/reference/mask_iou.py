"""Overlaps of masks, and non-maximum suppression by them."""

from __future__ import annotations

import torch
from torch import Tensor


def overlaps(masks1: Tensor, masks2: Tensor) -> Tensor:
    """Intersection over union [N, M] in float64 of masks [N, H, W] and [M, H, W]; 0 if both are
    empty."""
    # float64 counts any number of pixels
    flat1, flat2 = masks1.flatten(1).double(), masks2.flatten(1).double()
    inter = flat1 @ flat2.T
    union = flat1.sum(1)[:, None] + flat2.sum(1) - inter
    return torch.where(inter > 0, inter / union, 0)


def mask_iou(masks1: Tensor, masks2: Tensor) -> Tensor:
    """The same in float32; see :func:`fastvision.ops.mask_iou`."""
    return overlaps(masks1, masks2).float()


def mask_nms(masks: Tensor, scores: Tensor, idxs: Tensor | None, iou_threshold: float) -> Tensor:
    """Indices of the kept masks; see :func:`fastvision.ops.mask_nms`."""
    order = scores.argsort(descending=True, stable=True)
    covers = overlaps(masks, masks)[order][:, order] > iou_threshold
    if idxs is not None:
        covers &= idxs[order][:, None] == idxs[order]
    covers = covers.triu(1)
    alive = torch.ones_like(order, dtype=torch.bool)
    for i in range(len(order)):
        if alive[i]:
            alive &= ~covers[i]
    return order[alive]
