"""Weighted boxes fusion: a program per class visits its boxes one by one, and compares each with
all clusters of the class at once."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from .common.geometry import load_box
from .common.scalars import as_double, divide, double_bits

BLOCK, NUM_WARPS = 512, 4
NONE = tl.constexpr(2**31 - 1)


@triton.jit(do_not_specialize=["N", "iou_threshold"])
def _weighted_boxes_fusion_kernel(
    boxes_ptr,  # [N, 4] by class and descending score
    scores_ptr,  # [N]
    labels_ptr,  # [N]
    fused_ptr,  # [N, 4] clusters of each class, from its first box on
    sums_ptr,  # [N, 4] of scores times boxes
    totals_ptr,  # [N] of scores
    fused_scores_ptr,  # [N]
    counts_ptr,  # [N] of 0: boxes of each cluster
    N,
    iou_threshold,  # bits of a double
    MAXIMUM: tl.constexpr,
    BLOCK: tl.constexpr,
):
    begin = tl.program_id(0).to(tl.int64)
    label = tl.load(labels_ptr + begin)
    before = tl.load(labels_ptr + begin - 1, mask=begin > 0, other=0)
    if (begin == 0) | (before != label):
        threshold = as_double(iou_threshold)
        corner = tl.arange(0, 4)
        clusters = 0
        i = begin
        same = True
        while same:
            x1, y1, x2, y2 = load_box(boxes_ptr + i * 4, i < N)
            area = (x2 - x1) * (y2 - y1)
            best = area * 0.0 - float("inf")
            found = 0
            for first in range(0, clusters, BLOCK):
                index = first + tl.arange(0, BLOCK)
                some = index < clusters
                a1, b1, a2, b2 = load_box(fused_ptr + (begin + index) * 4, some)
                width = tl.maximum(tl.minimum(a2, x2) - tl.maximum(a1, x1), 0.0)
                height = tl.maximum(tl.minimum(b2, y2) - tl.maximum(b1, y1), 0.0)
                inter = width * height
                iou = divide(inter, (a2 - a1) * (b2 - b1) + area - inter)
                iou = tl.where(some & (iou == iou), iou, -float("inf"))
                largest = tl.max(iou, 0)
                at = tl.min(tl.where(iou == largest, index, NONE), 0)
                found = tl.where(largest > best, at, found)
                best = tl.maximum(best, largest)
            joins = best.to(tl.float64) > threshold
            slot = begin + tl.where(joins, found, clusters)
            score = tl.load(scores_ptr + i)
            total = tl.load(totals_ptr + slot, mask=joins, other=0.0) + score
            count = tl.load(counts_ptr + slot, mask=joins, other=0) + 1
            largest_score = tl.load(fused_scores_ptr + slot, mask=joins, other=0.0)
            box = tl.load(boxes_ptr + i * 4 + corner)
            place = slot * 4 + corner
            old = tl.where(corner >= 0, joins, False)
            weighted = tl.load(sums_ptr + place, mask=old, other=0.0) + score * box
            fused = tl.load(fused_ptr + place, mask=old, other=0.0)
            tl.debug_barrier()  # what follows changes what all have read
            mean = divide(weighted, tl.where(total > 0, total, 1.0) + tl.zeros_like(weighted))
            fused = tl.where(total > 0, mean, fused)
            tl.store(fused_ptr + place, tl.where(joins, fused, box))
            tl.store(sums_ptr + place, weighted)
            tl.store(totals_ptr + slot, total)
            tl.store(counts_ptr + slot, count)
            if MAXIMUM:
                tl.store(fused_scores_ptr + slot, tl.where(joins, largest_score, score))
            else:
                tl.store(fused_scores_ptr + slot, divide(total, count.to(total.dtype)))
            tl.debug_barrier()  # the next box reads these stores
            clusters += tl.where(joins, 0, 1)
            i += 1
            same = tl.load(labels_ptr + i, mask=i < N, other=0) == label
            same = same & (i < N)


def launch_weighted_boxes_fusion(
    boxes: Tensor,  # [N, 4]
    scores: Tensor,  # [N]
    labels: Tensor,  # [N]
    iou_threshold: float,
    maximum: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Fused boxes [N, 4], their scores [N] and numbers of boxes [N]. See
    :func:`fastvision.ops.weighted_boxes_fusion`."""
    boxes, scores, labels = boxes.contiguous(), scores.contiguous(), labels.contiguous()
    fused, sums = torch.zeros_like(boxes), torch.empty_like(boxes)
    fused_scores, totals = torch.zeros_like(scores), torch.empty_like(scores)
    counts = torch.zeros_like(labels)
    if len(boxes) > 0:
        with torch.cuda.device_of(boxes):
            _weighted_boxes_fusion_kernel[(len(boxes),)](
                boxes, scores, labels, fused, sums, totals, fused_scores, counts, len(boxes),
                double_bits(iou_threshold), MAXIMUM=maximum, BLOCK=BLOCK, num_warps=NUM_WARPS,
                enable_fp_fusion=False,
            )  # fmt: skip
    return fused, fused_scores, counts
