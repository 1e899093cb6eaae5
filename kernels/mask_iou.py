"""Overlaps of masks as bits, and non-maximum suppression by them.

Masks are packed into words of 32 pixels. A program counts the pixels that a mask shares with a
block of others, inside of its own bounding box.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from .common.scalars import as_double, double_bits

PIXELS = 32  # of a word
BLOCK_WORDS, PACK_WARPS = 32, 4
BLOCK_M, TILE, OVERLAP_WARPS = 16, 64, 4
BLOCK, SUPPRESS_WARPS = 1024, 8


@triton.jit(do_not_specialize=["words", "row_words", "W"])
def _mask_pack_kernel(
    masks_ptr,  # [N, H, W] bytes
    words_ptr,  # [N, H, row_words]
    words,  # N * H * row_words
    row_words,
    W,
    PIXELS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    word = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    bit = tl.arange(0, PIXELS)
    column = word[:, None] % row_words * PIXELS + bit[None, :]
    inside = (word[:, None] < words) & (column < W)
    pixels = tl.load(masks_ptr + word[:, None] // row_words * W + column, mask=inside, other=0)
    bits = (pixels != 0).to(tl.int32) << bit[None, :]
    tl.store(words_ptr + word, tl.sum(bits, 1), mask=word < words)


@triton.jit
def _count_bits(x):
    x = x.to(tl.uint32, bitcast=True)
    x = x - ((x >> 1) & 0x55555555)
    x = (x & 0x33333333) + ((x >> 2) & 0x33333333)
    x = (x + (x >> 4)) & 0x0F0F0F0F
    x = x + (x >> 8)
    return ((x + (x >> 16)) & 0x3F).to(tl.int32)


@triton.jit(do_not_specialize=["M", "H", "row_words", "threshold"])
def _mask_overlap_kernel(
    words1_ptr,  # [N, H, row_words]
    words2_ptr,  # [M, H, row_words]
    extents1_ptr,  # [N, 5] pixels, then top, bottom, left, right in words, ends exclusive
    extents2_ptr,  # [M, 5]
    classes_ptr,  # [M] of both sets, or None
    result_ptr,  # [N, M] overlaps, or whether the first of two masks is better and suppresses
    M,
    H,
    row_words,
    threshold,  # bits of a double
    COVERS: tl.constexpr,  # which of the results
    BLOCK_M: tl.constexpr,
    TILE: tl.constexpr,
):
    across = tl.cdiv(M, BLOCK_M)
    first = (tl.program_id(0) // across).to(tl.int64)
    second = tl.program_id(0) % across * BLOCK_M + tl.arange(0, BLOCK_M)
    exists = second < M
    extents1_ptr += first * 5
    pixels1 = tl.load(extents1_ptr)
    top = tl.load(extents1_ptr + 1)
    left = tl.load(extents1_ptr + 3)
    height = tl.load(extents1_ptr + 2) - top
    width = tl.load(extents1_ptr + 4) - left
    extents2 = extents2_ptr + second * 5
    pixels2 = tl.load(extents2, mask=exists, other=0)
    meet = exists & (tl.load(extents2 + 1, mask=exists, other=0) < top + height)
    meet = meet & (tl.load(extents2 + 2, mask=exists, other=0) > top)
    meet = meet & (tl.load(extents2 + 3, mask=exists, other=0) < left + width)
    meet = meet & (tl.load(extents2 + 4, mask=exists, other=0) > left)
    inter = tl.zeros([BLOCK_M], tl.int64)
    count = height * width * (tl.max(meet.to(tl.int32), 0))
    for start in range(0, count, TILE):
        at = start + tl.arange(0, TILE)
        here = at < count
        offset = (top + at // width) * row_words + left + at % width
        a = tl.load(words1_ptr + first * H * row_words + offset, mask=here, other=0)
        b = tl.load(
            words2_ptr + second[:, None].to(tl.int64) * H * row_words + offset[None, :],
            mask=meet[:, None] & here[None, :],
            other=0,
        )
        inter += tl.sum(_count_bits(a[None, :] & b), 1)
    union = pixels1 + pixels2 - inter
    iou = inter.to(tl.float64) / tl.where(inter > 0, union, 1).to(tl.float64)
    if COVERS:
        covers = (iou > as_double(threshold)) & (first < second)
        if classes_ptr is not None:
            label = tl.load(classes_ptr + first)
            covers &= tl.load(classes_ptr + second, mask=exists, other=0) == label
        result = covers.to(tl.int8)
    else:
        result = iou.to(tl.float32)
    tl.store(result_ptr + first * M + second, result, mask=exists)


@triton.jit(do_not_specialize=["N"])
def _mask_suppress_kernel(
    covers_ptr,  # [N, N] whether a mask suppresses another, by descending score
    alive_ptr,  # [N] changed in place
    N,
    BLOCK: tl.constexpr,
):
    for mask in range(N):
        if tl.load(alive_ptr + mask) != 0:
            for first in range(mask // BLOCK * BLOCK, N, BLOCK):
                other = first + tl.arange(0, BLOCK)
                covered = tl.load(covers_ptr + other, mask=other < N, other=0) != 0
                tl.store(alive_ptr + other, 0, mask=covered)
        covers_ptr += N
        tl.debug_barrier()  # the next mask reads these stores


def _pack(masks: Tensor) -> tuple[Tensor, Tensor]:
    """Words [N, H, row_words], and pixels, top, bottom, left and right [N, 5]."""
    N, H, W = masks.shape
    row_words = triton.cdiv(W, PIXELS)
    words = masks.new_empty((N, H, row_words), dtype=torch.int32)
    if words.numel() == 0:
        return words, masks.new_zeros((N, 5), dtype=torch.int64)
    _mask_pack_kernel[(triton.cdiv(words.numel(), BLOCK_WORDS),)](
        masks.contiguous().view(torch.uint8), words, words.numel(), row_words, W,
        PIXELS=PIXELS, BLOCK=BLOCK_WORDS, num_warps=PACK_WARPS,
    )  # fmt: skip
    columns = [masks.flatten(1).sum(1)]
    for dim in (2, 1):
        occupied = (words != 0).any(dim)
        size = occupied.shape[1]
        index = torch.arange(size, device=masks.device)
        columns.append(torch.where(occupied, index, size).amin(1))
        columns.append(torch.where(occupied, index, -1).amax(1) + 1)
    # an empty mask has its ends before its beginnings, so no loop runs
    return words, torch.stack(columns, 1)


def _overlaps(
    masks1: Tensor,
    masks2: Tensor,
    idxs: Tensor | None,
    iou_threshold: float | None,
) -> Tensor:
    N, M = len(masks1), len(masks2)
    covers = iou_threshold is not None
    result = masks1.new_empty((N, M), dtype=torch.int8 if covers else torch.float32)
    if N * M == 0:
        return result
    with torch.cuda.device_of(masks1):
        words1, extents1 = _pack(masks1)
        words2, extents2 = (words1, extents1) if masks1 is masks2 else _pack(masks2)
        _mask_overlap_kernel[(N * triton.cdiv(M, BLOCK_M),)](
            words1, words2, extents1, extents2, idxs, result, M, *words1.shape[1:],
            double_bits(0.0 if iou_threshold is None else iou_threshold),
            COVERS=covers, BLOCK_M=BLOCK_M, TILE=TILE, num_warps=OVERLAP_WARPS,
        )  # fmt: skip
    return result


def launch_mask_iou(masks1: Tensor, masks2: Tensor) -> Tensor:
    """float32 overlaps [N, M]. See :func:`fastvision.ops.mask_iou`."""
    return _overlaps(masks1, masks2, None, None)


def launch_mask_nms(
    masks: Tensor,  # [N, H, W]
    scores: Tensor,  # [N]
    idxs: Tensor | None,  # [N]
    iou_threshold: float,
) -> Tensor:
    """Indices of the kept masks in descending order of score. See
    :func:`fastvision.ops.mask_nms`."""
    order = scores.argsort(descending=True, stable=True)
    in_order = masks[order]
    covers = _overlaps(in_order, in_order, None if idxs is None else idxs[order], iou_threshold)
    alive = torch.ones_like(order, dtype=torch.int8)
    if len(order) > 0:
        with torch.cuda.device_of(masks):
            _mask_suppress_kernel[(1,)](
                covers, alive, len(order), BLOCK=BLOCK, num_warps=SUPPRESS_WARPS
            )
    return order[alive != 0]
