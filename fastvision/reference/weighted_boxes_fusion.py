"""Weighted boxes fusion, box by box."""

from __future__ import annotations

import torch
from torch import Tensor


def weighted_boxes_fusion(
    boxes: Tensor, scores: Tensor, labels: Tensor, iou_threshold: float, maximum: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Clusters of the boxes of each class, and what each is fused to.

    Args:
        boxes: [N, 4] corners (x1, y1, x2, y2), by class and descending score.
        scores: [N].
        labels: [N] int64.
        iou_threshold: see :func:`fastvision.ops.weighted_boxes_fusion`.
        maximum: of the scores of a cluster, instead of their mean.

    Returns:
        Fused boxes [N, 4], their scores [N], and how many boxes [N] each is of. Those of a class
        are at its first places, and 0 is at the others.
    """
    fused, sums = torch.zeros_like(boxes), torch.zeros_like(boxes)
    totals, first_scores = torch.zeros_like(scores), torch.zeros_like(scores)
    counts = torch.zeros_like(labels)
    classes = labels.tolist()
    begin = used = 0  # clusters [begin, used) are of the current class
    for i, label in enumerate(classes):
        if i == 0 or label != classes[i - 1]:
            begin = used = i
        at = used
        if used > begin:
            low = torch.maximum(fused[begin:used, :2], boxes[i, :2])
            high = torch.minimum(fused[begin:used, 2:], boxes[i, 2:])
            inter = (high - low).clamp(min=0).prod(1)
            area, other = (
                (b[..., 2] - b[..., 0]) * (b[..., 3] - b[..., 1])
                for b in (fused[begin:used], boxes[i])
            )
            iou = (inter / (area + other - inter)).nan_to_num(-torch.inf)
            best = int(iou.argmax())
            if iou[best].double() > iou_threshold:
                at = begin + best
        if at == used:
            fused[at] = boxes[i]
            first_scores[at] = scores[i]
            used += 1
        counts[at] += 1
        totals[at] += scores[i]
        sums[at] += scores[i] * boxes[i]
        if counts[at] > 1 and totals[at] > 0:
            fused[at] = sums[at] / totals[at]
    return fused, first_scores if maximum else totals / counts.clamp(min=1), counts
