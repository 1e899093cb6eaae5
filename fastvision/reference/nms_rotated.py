"""Greedy non-maximum suppression of rotated boxes, box by box."""

from __future__ import annotations

from torch import Tensor

from .box_iou_rotated import box_iou_rotated
from .nms import greedy


def nms_rotated(boxes: Tensor, scores: Tensor, idxs: Tensor | None, iou_threshold: float) -> Tensor:
    """The indices of the kept boxes [N, 5], as :func:`nms` of upright ones."""
    order = scores.argsort(descending=True, stable=True)
    visited = boxes[order]

    def overlaps(i: int) -> Tensor:
        return box_iou_rotated(visited[i : i + 1], visited[i + 1 :])[0]

    return greedy(order, idxs, iou_threshold, overlaps)
