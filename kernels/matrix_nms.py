"""Matrix NMS: a program per block of boxes compares them with all better ones of their class, once
for the largest overlap of each box and once for the decay of its score."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from .common.geometry import intersection_over_union, load_box
from .common.scalars import as_double, divide, double_bits

BLOCK = 32
TILE = 64
NUM_WARPS = 4


@triton.jit(do_not_specialize=["N", "sigma"])
def _matrix_nms_kernel(
    boxes_ptr,  # [N, 4] by class, then by descending score
    begins_ptr,  # [N] where the class of each box begins
    compensation_ptr,  # [N] largest overlap with a better box, or None in the pass that finds it
    result_ptr,  # [N] that overlap, or the factor of the score
    N,
    sigma,  # bits of a double
    GAUSSIAN: tl.constexpr,
    BLOCK: tl.constexpr,
    TILE: tl.constexpr,
):
    dtype: tl.constexpr = boxes_ptr.dtype.element_ty
    target = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    here = target < N
    target_boxes = load_box(boxes_ptr + target * 4, here)
    begins = tl.load(begins_ptr + target, mask=here, other=N)
    # the largest overlap; or the largest negated quotient, or what remains of its exponent
    worst = tl.full([BLOCK], 0.0 if compensation_ptr is None or GAUSSIAN else -1.0, dtype)
    end = tl.minimum(tl.max(target, 0), N)
    for first in range(tl.min(begins, 0), end, TILE):
        source = first + tl.arange(0, TILE)
        exists = source < end
        iou = intersection_over_union(load_box(boxes_ptr + source * 4, exists), target_boxes)
        better = (source[:, None] >= begins[None, :]) & (source[:, None] < target[None, :])
        if compensation_ptr is None:
            value = tl.where(better & (iou > 0), iou, 0.0)
        else:
            c = tl.load(compensation_ptr + source, mask=exists, other=1.0)[:, None]
            # otherwise the quotient is 1 or more
            decays = better & (iou > c)
            if GAUSSIAN:
                value = tl.where(decays, iou * iou - c * c, 0.0)
            else:
                value = -divide(tl.where(decays, 1 - iou, 1.0), tl.where(decays, 1 - c, 1.0))
        worst = tl.maximum(worst, tl.max(value, 0))
    if compensation_ptr is not None:
        worst = tl.exp(-as_double(sigma).to(dtype) * worst) if GAUSSIAN else -worst
    tl.store(result_ptr + target, worst, mask=here)


def launch_matrix_nms(
    boxes: Tensor,  # [N, 4]
    scores: Tensor,  # [N]
    idxs: Tensor | None,  # [N]
    gaussian: bool,
    sigma: float,
) -> Tensor:
    """Decayed scores [N]. See :func:`fastvision.ops.matrix_nms`."""
    N = len(boxes)
    if N == 0:
        return scores.clone()
    dtype = torch.float64 if boxes.dtype == torch.float64 else torch.float32
    order = scores.argsort(descending=True, stable=True)
    begins = torch.zeros_like(order)
    if idxs is not None:
        classes, rank = idxs[order].sort(stable=True)
        begins, order = torch.searchsorted(classes, classes), order[rank]
    in_order = boxes.to(dtype)[order].contiguous()
    compensation, decay = in_order.new_empty(N), in_order.new_empty(N)
    # finite, since infinity times 0 is NaN
    bits = double_bits(min(sigma, torch.finfo(dtype).max))
    with torch.cuda.device_of(boxes):
        for known, result in ((None, compensation), (compensation, decay)):
            _matrix_nms_kernel[(triton.cdiv(N, BLOCK),)](
                in_order, begins, known, result, N, bits,
                GAUSSIAN=gaussian, BLOCK=BLOCK, TILE=TILE, num_warps=NUM_WARPS,
                enable_fp_fusion=False,
            )  # fmt: skip
    return (scores.to(dtype) * torch.empty_like(decay).scatter_(0, order, decay)).to(scores.dtype)
