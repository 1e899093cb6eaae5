"""Overlap of every rotated box of one set with every box of another, and its gradients; the overlap
of solid boxes.

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

from .common.box_pairs import batched_pairs, summed_terms, tile_of_pairs
from .common.rotated_box import (
    boxes_meet,
    intersection_area,
    intersection_gradient,
    load_rotated_box,
    load_sized_box,
    rotated_overlap,
    seen_from,
)
from .common.scalars import divide
from .configs.box_iou import GRADIENT_ROWS, NUM_WARPS, tile

TERMS = 5  # of a gradient: by center, width, height and angle in radians


@triton.jit
def _box_iou_rotated_kernel(
    boxes1_ptr,  # [B, N, 5]
    boxes2_ptr,  # [B, M, 5]
    output_ptr,  # [B, N, M]
    N,
    M,
    step1,  # boxes from one image to the next; 0 if all have the same
    step2,
    SOLID: tl.constexpr,  # boxes have 7 numbers
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
def _box_iou_rotated_backward_kernel(
    grad_ptr,  # [B, N, M]
    boxes1_ptr,  # [B, N, 5]
    boxes2_ptr,  # [B, M, 5]
    rows_ptr,  # [blocks of columns, B, N, TERMS] of 0
    columns_ptr,  # [strips of rows, B, M, TERMS]
    B,
    N,
    M,
    step1,  # boxes from one image to the next; 0 if all have the same
    step2,
    DOUBLE: tl.constexpr,
    STRIP: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    terms: tl.constexpr = 5
    dtype: tl.constexpr = tl.float64 if DOUBLE else tl.float32
    block = tl.program_id(0)
    strip = tl.program_id(1)
    image = tl.program_id(2).to(tl.int64)
    columns = block * BLOCK_N + tl.arange(0, BLOCK_N)
    in_columns = columns[None, :] < M
    b = load_rotated_box(boxes2_ptr + (image * step2 + columns[None, :]) * 5, in_columns, DOUBLE)
    area_b = b[2] * b[3]
    of_cx = tl.zeros([BLOCK_N], dtype)
    of_cy, of_width, of_height, of_angle = of_cx, of_cx, of_cx, of_cx
    for first in range(strip * STRIP, tl.minimum((strip + 1) * STRIP, N), BLOCK_M):
        rows = first + tl.arange(0, BLOCK_M)
        in_rows = rows[:, None] < N
        a = load_rotated_box(boxes1_ptr + (image * step1 + rows[:, None]) * 5, in_rows, DOUBLE)
        area_a = a[2] * a[3]
        meets = boxes_meet(a, b, area_a, area_b) & in_rows & in_columns
        if tl.max(tl.max(meets.to(tl.int32), 1), 0) > 0:
            offsets = (image * N + rows[:, None]) * M + columns[None, :]
            gradient = tl.load(grad_ptr + offsets, mask=meets, other=0.0)
            frame = seen_from(a, b)
            inter = intersection_area(frame)
            of_a, of_b = intersection_gradient(a, b, frame, inter)
            union = area_a + area_b - inter
            by_area = divide(-gradient * divide(inter, union), union)
            by_inter = divide(gradient, union) - by_area
            by_inter = tl.where(meets, by_inter, 0.0)
            by_area = tl.where(meets, by_area, 0.0)
            to = rows_ptr + ((block * B + image) * N + rows) * terms
            mask = rows < N
            tl.store(to, tl.sum(_times(meets, by_inter, of_a[0]), 1), mask=mask)
            tl.store(to + 1, tl.sum(_times(meets, by_inter, of_a[1]), 1), mask=mask)
            width = _times(meets, by_inter, of_a[2]) + by_area * a[3]
            tl.store(to + 2, tl.sum(width, 1), mask=mask)
            height = _times(meets, by_inter, of_a[3]) + by_area * a[2]
            tl.store(to + 3, tl.sum(height, 1), mask=mask)
            tl.store(to + 4, tl.sum(_times(meets, by_inter, of_a[4]), 1), mask=mask)
            of_cx += tl.sum(_times(meets, by_inter, of_b[0]), 0)
            of_cy += tl.sum(_times(meets, by_inter, of_b[1]), 0)
            of_width += tl.sum(_times(meets, by_inter, of_b[2]) + by_area * b[3], 0)
            of_height += tl.sum(_times(meets, by_inter, of_b[3]) + by_area * b[2], 0)
            of_angle += tl.sum(_times(meets, by_inter, of_b[4]), 0)
    to = columns_ptr + ((strip * B + image) * M + columns) * terms
    tl.store(to, of_cx, mask=columns < M)
    tl.store(to + 1, of_cy, mask=columns < M)
    tl.store(to + 2, of_width, mask=columns < M)
    tl.store(to + 3, of_height, mask=columns < M)
    tl.store(to + 4, of_angle, mask=columns < M)


@triton.jit
def _times(meets, by_inter, of_inter):
    # a pair that is apart may have no derivative at all
    return tl.where(meets, by_inter * of_inter, 0.0)


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


def launch_box_iou_rotated_backward(
    grad: Tensor,  # [N, M] or [B, N, M]
    boxes1: Tensor,  # [N, 5] or [B, N, 5]
    boxes2: Tensor,  # [M, 5] or [B, M, 5]
) -> tuple[Tensor, Tensor]:
    """Gradients of the boxes, for every image."""
    double = grad.dtype == torch.float64
    sums = summed_terms(
        _box_iou_rotated_backward_kernel, grad, boxes1, boxes2, TERMS,
        strip=GRADIENT_ROWS, blocks=tile("box_iou_rotated_backward", double), num_warps=NUM_WARPS,
        DOUBLE=double,
    )  # fmt: skip
    for each in sums:
        each[..., 4] *= math.pi / 180
    return sums if boxes1.dim() == 3 else (sums[0][0], sums[1][0])
