"""Non-maximum suppression with the box that suppressed each of the others."""

from __future__ import annotations

import torch
from torch import Tensor

from .nms import areas, iou, nms


def nms_match(
    boxes: Tensor, scores: Tensor, idxs: Tensor | None, iou_threshold: float
) -> tuple[Tensor, Tensor]:
    """Indices of the kept boxes [K], and of the first of them that suppresses each box [N]; see
    :func:`fastvision.ops.nms_match`."""
    keep = nms(boxes, scores, idxs, iou_threshold)
    boxes = boxes if boxes.dtype == torch.float64 else boxes.float()
    area = areas(boxes)
    match = torch.arange(len(boxes), device=boxes.device)
    open_boxes = torch.ones_like(match, dtype=torch.bool)
    open_boxes[keep] = False
    for i in keep.tolist():
        matched = open_boxes & (iou(boxes[i], area[i], boxes, area).double() > iou_threshold)
        if idxs is not None:
            matched &= idxs == idxs[i]
        match[matched] = i
        open_boxes &= ~matched
    return keep, match
