"""Overlap of every rotated box of one set with every box of another, and its gradients; flat boxes
or solid ones.

A program has a tile of pairs, and only compares upright boxes if none of them meet. For the
gradients it goes down a strip of rows and keeps the sums of its columns; sums of rows and of
columns are written per strip and added up in order.
"""

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from .common.box_pairs import batched_pairs, strip_of_pairs, summed_terms, tile_of_pairs
from .common.rotated_box import boxes_meet, load_sized_box, overlap_gradient, rotated_overlap
from .configs.box_iou import GRADIENT_ROWS, NUM_WARPS, ROTATED_REGISTERS, tile


@triton.jit
def _box_iou_rotated_kernel(
    boxes1_ptr,  # [B, N, 5], or 7 if they are solid
    boxes2_ptr,  # [B, M, 5]
    output_ptr,  # [B, N, M]
    N,
    M,
    step1,  # boxes from one image to the next; 0 if all have the same
    step2,
    SOLID: tl.constexpr,
    DOUBLE: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    image, rows, columns = tile_of_pairs(N, M, tl.program_id(0), BLOCK_M, BLOCK_N)
    in_rows = rows[:, None] < N
    in_columns = columns[None, :] < M
    size: tl.constexpr = 7 if SOLID else 5
    a = load_sized_box(boxes1_ptr + (image * step1 + rows[:, None]) * size, in_rows, SOLID, DOUBLE)
    b = load_sized_box(
        boxes2_ptr + (image * step2 + columns[None, :]) * size, in_columns, SOLID, DOUBLE
    )
    mask = in_rows & in_columns
    result = rotated_overlap(a, b, mask, SOLID)
    offsets = (image * N + rows[:, None]) * M + columns[None, :]
    tl.store(output_ptr + offsets, result, mask=mask)


@triton.jit
def _added(sums, terms):
    """Sums of columns with the terms of a tile."""
    if len(sums) == 7:
        return (
            sums[0] + tl.sum(terms[0], 0), sums[1] + tl.sum(terms[1], 0),
            sums[2] + tl.sum(terms[2], 0), sums[3] + tl.sum(terms[3], 0),
            sums[4] + tl.sum(terms[4], 0), sums[5] + tl.sum(terms[5], 0),
            sums[6] + tl.sum(terms[6], 0),
        )  # fmt: skip
    else:
        return (
            sums[0] + tl.sum(terms[0], 0), sums[1] + tl.sum(terms[1], 0),
            sums[2] + tl.sum(terms[2], 0), sums[3] + tl.sum(terms[3], 0),
            sums[4] + tl.sum(terms[4], 0),
        )  # fmt: skip


@triton.jit
def _box_iou_rotated_backward_kernel(
    grad_ptr,  # [B, N, M]
    boxes1_ptr,  # [B, N, 5], or 7 if they are solid
    boxes2_ptr,  # [B, M, 5]
    rows_ptr,  # [blocks of columns, B, N, terms] of 0
    columns_ptr,  # [strips of rows, B, M, terms]
    B,
    N,
    M,
    step1,  # boxes from one image to the next; 0 if all have the same
    step2,
    SOLID: tl.constexpr,
    DOUBLE: tl.constexpr,
    STRIP: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    terms: tl.constexpr = 7 if SOLID else 5  # a box has as many numbers
    dtype: tl.constexpr = tl.float64 if DOUBLE else tl.float32
    image, strip, block = strip_of_pairs(N, M, tl.program_id(0), STRIP, BLOCK_N)
    columns = block * BLOCK_N + tl.arange(0, BLOCK_N)
    in_columns = columns[None, :] < M
    b = load_sized_box(
        boxes2_ptr + (image * step2 + columns[None, :]) * terms, in_columns, SOLID, DOUBLE
    )
    zero = tl.zeros([BLOCK_N], dtype)
    sums = (zero, zero, zero, zero, zero, zero, zero) if SOLID else (zero, zero, zero, zero, zero)
    for first in range(strip * STRIP, tl.minimum((strip + 1) * STRIP, N), BLOCK_M):
        rows = first + tl.arange(0, BLOCK_M)
        in_rows = rows[:, None] < N
        a = load_sized_box(
            boxes1_ptr + (image * step1 + rows[:, None]) * terms, in_rows, SOLID, DOUBLE
        )
        meets = boxes_meet(a, b, SOLID) & in_rows & in_columns
        if tl.max(tl.max(meets.to(tl.int32), 1), 0) > 0:
            offsets = (image * N + rows[:, None]) * M + columns[None, :]
            gradient = tl.load(grad_ptr + offsets, mask=meets, other=0.0)
            of_a, of_b = overlap_gradient(a, b, meets, gradient, SOLID)
            to = rows_ptr + ((block * B + image) * N + rows) * terms
            for k in tl.static_range(terms):
                tl.store(to + k, tl.sum(of_a[k], 1), mask=rows < N)
            sums = _added(sums, of_b)
    to = columns_ptr + ((strip * B + image) * M + columns) * terms
    for k in tl.static_range(terms):
        tl.store(to + k, sums[k], mask=columns < M)


def _overlaps(boxes1: Tensor, boxes2: Tensor, solid: bool) -> Tensor:
    batched = boxes1.dim() == 3
    boxes1, boxes2, B, step1, step2 = batched_pairs(boxes1, boxes2)
    N, M = boxes1.shape[1], boxes2.shape[1]
    double = boxes1.dtype == torch.float64
    output = boxes1.new_empty((B, N, M), dtype=torch.float64 if double else torch.float32)
    if output.numel() > 0:
        block_m, block_n = tile("box_iou_rotated", double)
        tiles = B * triton.cdiv(N, block_m) * triton.cdiv(M, block_n)
        with torch.cuda.device_of(boxes1):
            _box_iou_rotated_kernel[(tiles,)](
                boxes1, boxes2, output, N, M, step1, step2,
                SOLID=solid, DOUBLE=double, BLOCK_M=block_m, BLOCK_N=block_n,
                num_warps=NUM_WARPS, enable_fp_fusion=False,
            )  # fmt: skip
    return output if batched else output[0]


def launch_box_iou_rotated(
    boxes1: Tensor,  # [N, 5] or [B, N, 5]
    boxes2: Tensor,  # [M, 5] or [B, M, 5]
) -> Tensor:
    """Overlaps [N, M] or [B, N, M]. See :func:`fastvision.ops.box_iou_rotated`."""
    return _overlaps(boxes1, boxes2, solid=False)


def launch_box_iou_3d(
    boxes1: Tensor,  # [N, 7] or [B, N, 7]
    boxes2: Tensor,  # [M, 7] or [B, M, 7]
) -> Tensor:
    """Overlaps [N, M] or [B, N, M]. See :func:`fastvision.ops.box_iou_3d`."""
    return _overlaps(boxes1, boxes2, solid=True)


def _gradients(grad: Tensor, boxes1: Tensor, boxes2: Tensor, solid: bool) -> tuple[Tensor, Tensor]:
    double = grad.dtype == torch.float64
    sums = summed_terms(
        _box_iou_rotated_backward_kernel, grad, boxes1, boxes2, boxes1.shape[-1],
        strip=GRADIENT_ROWS, blocks=tile("box_iou_rotated_backward", double), num_warps=NUM_WARPS,
        SOLID=solid, DOUBLE=double, maxnreg=ROTATED_REGISTERS,
    )  # fmt: skip
    for each in sums:  # by the angle in radians, which turns a solid box the other way
        each[..., -1] *= -1 if solid else math.pi / 180
    return sums if boxes1.dim() == 3 else (sums[0][0], sums[1][0])


def launch_box_iou_rotated_backward(
    grad: Tensor,  # [N, M] or [B, N, M]
    boxes1: Tensor,  # [N, 5] or [B, N, 5]
    boxes2: Tensor,  # [M, 5] or [B, M, 5]
) -> tuple[Tensor, Tensor]:
    """Gradients of the boxes, for every image."""
    return _gradients(grad, boxes1, boxes2, solid=False)


def launch_box_iou_3d_backward(
    grad: Tensor,  # [N, M] or [B, N, M]
    boxes1: Tensor,  # [N, 7] or [B, N, 7]
    boxes2: Tensor,  # [M, 7] or [B, M, 7]
) -> tuple[Tensor, Tensor]:
    """Gradients of the boxes, for every image."""
    return _gradients(grad, boxes1, boxes2, solid=True)
