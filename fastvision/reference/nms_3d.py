"""Greedy non-maximum suppression of solid boxes, box by box."""

from __future__ import annotations

from torch import Tensor

from .box_iou_3d import box_iou_3d
from .nms import greedy


def nms_3d(boxes: Tensor, scores: Tensor, idxs: Tensor | None, iou_threshold: float) -> Tensor:
    """The indices of the kept boxes [N, 7], as :func:`nms` of upright ones."""
    order = scores.argsort(descending=True, stable=True)
    visited = boxes[order]

    def overlaps(i: int) -> Tensor:
        return box_iou_3d(visited[i : i + 1], visited[i + 1 :])[0]

    return greedy(order, idxs, iou_threshold, overlaps)
