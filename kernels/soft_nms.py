"""Soft-NMS, a program per class: each pass over the boxes decays their scores by the box just kept
and finds the next one. The number of passes depends on the data, so the kernel loops."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from .common.scalars import as_double, divide, double_bits, threshold_bits

BLOCK = 2048
NUM_WARPS = 8
GONE = tl.constexpr(-1.0)  # the score of a box that is kept or has left


@triton.jit(do_not_specialize=["N", "iou_threshold", "exponent", "min_score"])
def _soft_nms_kernel(
    boxes_ptr,  # [N, 4] by class
    scores_ptr,  # [N] by class, changed in place
    begins_ptr,  # [N] where the class of each box begins, or None
    ends_ptr,  # [N] where it ends
    decayed_ptr,  # [N] score of each kept box, -1 before
    N,
    iou_threshold,  # bits of a double, as are the next two
    exponent,
    min_score,
    GAUSSIAN: tl.constexpr,
    BLOCK: tl.constexpr,
):
    begin = tl.program_id(0).to(tl.int64)
    end = begin + N
    is_first = True
    if begins_ptr is not None:
        end = tl.load(ends_ptr + begin)
        is_first = tl.load(begins_ptr + begin) == begin
    if is_first:
        dtype: tl.constexpr = scores_ptr.dtype.element_ty
        bits: tl.constexpr = tl.int64 if dtype == tl.float64 else tl.int32
        key_of_nan: tl.constexpr = 0x7FFFFFFFFFFFFFFF if dtype == tl.float64 else 0x7FFFFFFF
        threshold = as_double(iou_threshold).to(dtype)
        factor = as_double(exponent).to(dtype)
        lowest = as_double(min_score).to(dtype)
        # the first pass decays nothing
        kept = begin * 0 - 1
        searching = True
        while searching:
            x1 = tl.load(boxes_ptr + kept * 4, mask=kept >= 0, other=0.0)
            y1 = tl.load(boxes_ptr + kept * 4 + 1, mask=kept >= 0, other=0.0)
            x2 = tl.load(boxes_ptr + kept * 4 + 2, mask=kept >= 0, other=0.0)
            y2 = tl.load(boxes_ptr + kept * 4 + 3, mask=kept >= 0, other=0.0)
            area = (x2 - x1) * (y2 - y1)
            best = tl.full([BLOCK], -1, bits)
            best_at = tl.full([BLOCK], 0, tl.int64)
            for first in range(begin, end, BLOCK):
                at = first + tl.arange(0, BLOCK)
                here = at < end
                score = tl.load(scores_ptr + at, mask=here, other=GONE)
                score = tl.where(at == kept, GONE, score)
                # a box that has left is not loaded
                remains = score != GONE
                left = tl.load(boxes_ptr + at * 4, mask=remains, other=0.0)
                top = tl.load(boxes_ptr + at * 4 + 1, mask=remains, other=0.0)
                right = tl.load(boxes_ptr + at * 4 + 2, mask=remains, other=0.0)
                bottom = tl.load(boxes_ptr + at * 4 + 3, mask=remains, other=0.0)
                width = tl.maximum(tl.minimum(right, x2) - tl.maximum(left, x1), 0.0)
                height = tl.maximum(tl.minimum(bottom, y2) - tl.maximum(top, y1), 0.0)
                inter = width * height
                iou = divide(inter, area + (right - left) * (bottom - top) - inter)
                if GAUSSIAN:
                    weight = tl.exp(iou * iou * factor)
                    decays = remains & (iou > 0)
                else:
                    weight = 1 - iou
                    decays = remains & (inter > 0) & (iou > threshold)
                score = tl.where(decays, score * weight, score)
                score = tl.where(score < lowest, GONE, score)
                tl.store(scores_ptr + at, score, mask=here)
                # scores are 0 or more, so their bits are in the same order; NaN is the highest
                key = tl.where(score == score, score.to(bits, bitcast=True), key_of_nan)
                better = key > best
                best = tl.where(better, key, best)
                best_at = tl.where(better, at, best_at)
            highest = tl.max(best, 0)
            searching = highest >= 0
            kept = tl.min(tl.where(best == highest, best_at, end), 0)
            tl.store(decayed_ptr + kept, highest.to(dtype, bitcast=True), mask=searching)
            tl.debug_barrier()  # the next pass reads the stored scores


def launch_soft_nms(
    boxes: Tensor,  # [N, 4]
    scores: Tensor,  # [N]
    idxs: Tensor | None,  # [N]
    iou_threshold: float,
    gaussian: bool,
    sigma: float,
    min_score: float,
) -> tuple[Tensor, Tensor]:
    """Kept boxes and their decayed scores, [K] each. See :func:`fastvision.ops.soft_nms`."""
    N = len(boxes)
    if N == 0:
        return scores.new_empty(0, dtype=torch.int64), scores.new_empty(0)
    dtype = torch.float64 if boxes.dtype == torch.float64 else torch.float32
    # copies, since the kernel writes the scores; -0 becomes 0
    in_order, remaining = boxes.to(dtype).contiguous(), scores.to(dtype) + 0.0
    begins = ends = order = None
    if idxs is not None:
        classes, order = idxs.sort(stable=True)
        begins = torch.searchsorted(classes, classes)
        ends = torch.searchsorted(classes, classes, right=True)
        in_order, remaining = in_order[order], remaining[order]
    decayed = torch.full_like(remaining, -1)
    # finite, since an IoU whose square underflows must not give NaN
    exponent = max(-1 / sigma, torch.finfo(dtype).min)
    with torch.cuda.device_of(boxes):
        _soft_nms_kernel[(1 if idxs is None else N,)](
            in_order, remaining, begins, ends, decayed, N, threshold_bits(iou_threshold, dtype),
            double_bits(exponent), double_bits(min_score),
            GAUSSIAN=gaussian, BLOCK=BLOCK, num_warps=NUM_WARPS, enable_fp_fusion=False,
        )  # fmt: skip
    if order is not None:
        decayed = torch.empty_like(decayed).scatter_(0, order, decayed)
    keep = (decayed != -1).nonzero()[:, 0]
    keep = keep[decayed[keep].argsort(descending=True, stable=True)]
    return keep, decayed[keep].to(scores.dtype)
