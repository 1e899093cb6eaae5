"""Soft non-maximum suppression, box by box."""

from __future__ import annotations

import torch
from torch import Tensor

from .nms import areas, iou


def soft_nms(
    boxes: Tensor,
    scores: Tensor,
    idxs: Tensor | None,
    iou_threshold: float,
    gaussian: bool,
    sigma: float,
    min_score: float,
) -> tuple[Tensor, Tensor]:
    """Indices of the kept boxes and their decayed scores; see :func:`fastvision.ops.soft_nms`.

    Args:
        boxes: [N, 4] corners (x1, y1, x2, y2).
        scores: [N].
        idxs: [N] class labels, or None for a single class.
        iou_threshold: of the linear method.
        gaussian: whether scores decay by exp(-IoU^2 / sigma) instead of 1 - IoU.
        sigma: of the Gaussian method.
        min_score: boxes with a score below it leave.
    """
    boxes = boxes if boxes.dtype == torch.float64 else boxes.float()
    decayed = scores.to(boxes.dtype) + 0.0  # a copy, where -0 is 0
    area = areas(boxes)
    lowest = torch.tensor(min_score, dtype=boxes.dtype, device=boxes.device)
    # finite, since an IoU whose square underflows must not give NaN
    exponent = max(-1 / sigma, torch.finfo(boxes.dtype).min)
    remaining = ~(decayed < lowest)
    kept = torch.zeros_like(remaining)
    while remaining.any():
        # the first of the highest, or of NaN; all that remain are 0 or more
        i = int(decayed.masked_fill(~remaining, -1).argmax())
        kept[i] = True
        remaining[i] = False
        overlap = iou(boxes[i], area[i], boxes, area)
        if gaussian:
            weight = torch.exp(overlap * overlap * exponent)
            decays = remaining & (overlap > 0)
        else:
            weight = 1 - overlap
            decays = remaining & (overlap.double() > iou_threshold)
        if idxs is not None:
            decays &= idxs == idxs[i]
        decayed = torch.where(decays, decayed * weight, decayed)
        remaining &= ~(decayed < lowest)
    keep = kept.nonzero()[:, 0]
    keep = keep[decayed[keep].argsort(descending=True, stable=True)]
    return keep, decayed[keep].to(scores.dtype)
