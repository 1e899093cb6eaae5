"""Greedy non-maximum suppression, box by box."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


def iou(box: Tensor, area: Tensor, others: Tensor, other_areas: Tensor) -> Tensor:
    """IoU of boxes [..., 4] with others of shapes that broadcast, given the areas [...]."""
    x1, y1, x2, y2 = box.unbind(-1)
    left, top, right, bottom = others.unbind(-1)
    # fmax and fmin ignore NaN, as the kernels' comparisons do; the area propagates it
    width = (right.fmin(x2) - left.fmax(x1)).clamp(min=0)
    height = (bottom.fmin(y2) - top.fmax(y1)).clamp(min=0)
    inter = width * height
    return inter / (area + other_areas - inter)


def areas(boxes: Tensor) -> Tensor:
    """[N] of boxes [N, 4]; negative if one side is."""
    x1, y1, x2, y2 = boxes.unbind(1)
    return (x2 - x1) * (y2 - y1)


def greedy(
    order: Tensor,
    idxs: Tensor | None,
    iou_threshold: float,
    overlaps: Callable[[int], Tensor],
) -> Tensor:
    """The boxes that no box kept before suppresses.

    Args:
        order: [N] indices of the boxes, as they are visited.
        idxs: [N] class labels, or None for a single class.
        iou_threshold: see :func:`fastvision.ops.nms`.
        overlaps: what box ``order[i]`` has with those after it.
    """
    classes = None if idxs is None else idxs[order]
    alive = torch.ones_like(order, dtype=torch.bool)
    for i in range(len(order)):
        if not alive[i]:
            continue
        rest = slice(i + 1, None)
        dropped = overlaps(i).double() > iou_threshold  # the threshold is not rounded to float32
        if classes is not None:
            dropped &= classes[rest] == classes[i]
        alive[rest] &= ~dropped
    return order[alive]


def nms(
    boxes: Tensor,
    scores: Tensor,
    idxs: Tensor | None,
    iou_threshold: float,
    score_threshold: float | None = None,
    max_output: int | None = None,
) -> Tensor:
    """Suppresses within each class of ``idxs`` and returns the indices of the kept boxes.

    Args:
        boxes: [N, 4] corners (x1, y1, x2, y2).
        scores: [N].
        idxs: [N] class labels, or None for a single class.
        iou_threshold: see :func:`fastvision.ops.nms`.
        score_threshold: see :func:`fastvision.ops.nms`.
        max_output: see :func:`fastvision.ops.nms`.

    Returns:
        int64 indices in descending order of score.
    """
    boxes = boxes if boxes.dtype == torch.float64 else boxes.float()  # exact for 16-bit boxes
    order = scores.argsort(descending=True, stable=True)
    if score_threshold is not None:
        order = order[scores[order] > score_threshold]
    visited = boxes[order]
    area = areas(visited)

    def overlaps(i: int) -> Tensor:
        rest = slice(i + 1, None)
        return iou(visited[i], area[i], visited[rest], area[rest])

    return greedy(order, idxs, iou_threshold, overlaps)[:max_output]


def nms_padded(
    boxes: Tensor,
    scores: Tensor,
    idxs: Tensor | None,
    iou_threshold: float,
    score_threshold: float | None,
    max_output: int,
) -> tuple[Tensor, Tensor]:
    """:func:`nms` per image: indices [B, max_output], padded with -1, and counts [B]."""
    images = boxes.shape[0]
    indices = boxes.new_full((images, max_output), -1, dtype=torch.int64)
    counts = boxes.new_zeros(images, dtype=torch.int64)
    for image in range(images):
        classes = None if idxs is None else idxs[image]
        kept = nms(boxes[image], scores[image], classes, iou_threshold, score_threshold, max_output)
        indices[image, : len(kept)] = kept
        counts[image] = len(kept)
    return indices, counts
