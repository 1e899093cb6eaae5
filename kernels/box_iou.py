"""Overlap of every box of one set with every box of another, and its gradients.

A program has a tile of pairs. For the gradients it goes down a strip of rows and keeps the sums of
its columns; sums of rows and of columns are written per strip and added up in order.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from .common.box_pairs import (
    ASPECT,
    COMPLETE,
    GENERALIZED,
    angle_of,
    batched_pairs,
    load_axis_aligned_box,
    not_negative,
    share_of_minimum,
    strip_of_pairs,
    summed_terms,
    tile_of_pairs,
)
from .common.scalars import as_double, divide, double_bits
from .configs.box_iou import GRADIENT_ROWS, NUM_WARPS, tile

TERMS = 6  # of a gradient: by x1, y1, x2, y2, area and the angle of the diagonal


@triton.jit(do_not_specialize=["eps"])
def _box_iou_kernel(
    boxes1_ptr,  # [B, N, 4]
    boxes2_ptr,  # [B, M, 4]
    output_ptr,  # [B, N, M]
    N,
    M,
    step1,  # boxes from one image to the next; 0 if all have the same
    step2,
    eps,  # bits of a double
    KIND: tl.constexpr,
    FORMAT: tl.constexpr,
    DOUBLE: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    image, rows, columns = tile_of_pairs(N, M, tl.program_id(0), BLOCK_M, BLOCK_N)
    ax1, ay1, ax2, ay2, a_area = load_axis_aligned_box(
        boxes1_ptr + (image * step1 + rows[:, None]) * 4, rows[:, None] < N, FORMAT, DOUBLE
    )
    bx1, by1, bx2, by2, b_area = load_axis_aligned_box(
        boxes2_ptr + (image * step2 + columns[None, :]) * 4, columns[None, :] < M, FORMAT, DOUBLE
    )
    inter = not_negative(tl.minimum(ax2, bx2) - tl.maximum(ax1, bx1)) * not_negative(
        tl.minimum(ay2, by2) - tl.maximum(ay1, by1)
    )
    union = a_area + b_area - inter
    result = divide(inter, union)
    if KIND >= GENERALIZED:
        # of the smallest box around both
        width = not_negative(tl.maximum(ax2, bx2) - tl.minimum(ax1, bx1))
        height = not_negative(tl.maximum(ay2, by2) - tl.minimum(ay1, by1))
        if KIND == GENERALIZED:
            area = width * height
            result -= divide(area - union, area)
        else:
            margin = as_double(eps).to(result.dtype)
            iou = result
            diagonal = width * width + height * height + margin
            dx = (ax1 + ax2) / 2 - (bx1 + bx2) / 2
            dy = (ay1 + ay2) / 2 - (by1 + by2) / 2
            result -= divide(dx * dx + dy * dy, diagonal)
            if KIND == COMPLETE:
                difference = angle_of(ax1, ay1, ax2, ay2) - angle_of(bx1, by1, bx2, by2)
                v = ASPECT * (difference * difference)
                result -= divide(v, 1 - iou + v + margin) * v
    mask = (rows[:, None] < N) & (columns[None, :] < M)
    offsets = (image * N + rows[:, None]) * M + columns[None, :]
    tl.store(output_ptr + offsets, result.to(output_ptr.dtype.element_ty), mask=mask)


@triton.jit
def _pair_gradients(a, b, gradient, eps, KIND: tl.constexpr):
    """Terms of both boxes of each pair, given the gradient of its overlap."""
    ax1, ay1, ax2, ay2, a_area = a
    bx1, by1, bx2, by2, b_area = b
    wide = tl.minimum(ax2, bx2) - tl.maximum(ax1, bx1)
    high = tl.minimum(ay2, by2) - tl.maximum(ay1, by1)
    w = not_negative(wide)
    h = not_negative(high)
    inter = w * h
    union = a_area + b_area - inter
    iou = divide(inter, union)
    by_union = divide(-gradient * iou, union)
    by_inter = divide(gradient, union)
    a_angle = tl.zeros_like(inter)
    dax1 = tl.zeros_like(inter)
    day1, dax2, day2, dbx1, dby1, dbx2, dby2 = dax1, dax1, dax1, dax1, dax1, dax1, dax1
    if KIND >= GENERALIZED:
        outer_wide = tl.maximum(ax2, bx2) - tl.minimum(ax1, bx1)
        outer_high = tl.maximum(ay2, by2) - tl.minimum(ay1, by1)
        width = not_negative(outer_wide)
        height = not_negative(outer_high)
        if KIND == GENERALIZED:
            # iou - 1 + union / area
            area = width * height
            by_area = divide(-gradient * divide(union, area), area)
            by_union += divide(gradient, area)
            by_width = by_area * height
            by_height = by_area * width
        else:
            diagonal = width * width + height * height + eps
            dx = (ax1 + ax2) / 2 - (bx1 + bx2) / 2
            dy = (ay1 + ay2) / 2 - (by1 + by2) / 2
            share = divide(gradient, diagonal)
            by_diagonal = share * divide(dx * dx + dy * dy, diagonal)
            by_width = by_diagonal * 2 * width
            by_height = by_diagonal * 2 * height
            # a center moves by half as much as a side
            by_dx = -share * dx
            by_dy = -share * dy
            dax1, dax2, day1, day2 = by_dx, by_dx, by_dy, by_dy
            dbx1, dbx2, dby1, dby2 = -by_dx, -by_dx, -by_dy, -by_dy
            if KIND == COMPLETE:
                difference = angle_of(ax1, ay1, ax2, ay2) - angle_of(bx1, by1, bx2, by2)
                v = ASPECT * (difference * difference)
                alpha = divide(v, 1 - iou + v + eps)  # a constant to the gradient
                a_angle = -gradient * alpha * (2 * ASPECT) * difference
        by_width = tl.where(outer_wide > 0, by_width, 0.0)
        by_height = tl.where(outer_high > 0, by_height, 0.0)
        dax2 += share_of_minimum(bx2, ax2, by_width)
        dbx2 += share_of_minimum(ax2, bx2, by_width)
        dax1 -= share_of_minimum(ax1, bx1, by_width)
        dbx1 -= share_of_minimum(bx1, ax1, by_width)
        day2 += share_of_minimum(by2, ay2, by_height)
        dby2 += share_of_minimum(ay2, by2, by_height)
        day1 -= share_of_minimum(ay1, by1, by_height)
        dby1 -= share_of_minimum(by1, ay1, by_height)
    by_inter -= by_union
    by_w = tl.where(wide > 0, by_inter * h, 0.0)
    by_h = tl.where(high > 0, by_inter * w, 0.0)
    dax2 += share_of_minimum(ax2, bx2, by_w)
    dbx2 += share_of_minimum(bx2, ax2, by_w)
    dax1 -= share_of_minimum(bx1, ax1, by_w)
    dbx1 -= share_of_minimum(ax1, bx1, by_w)
    day2 += share_of_minimum(ay2, by2, by_h)
    dby2 += share_of_minimum(by2, ay2, by_h)
    day1 -= share_of_minimum(by1, ay1, by_h)
    dby1 -= share_of_minimum(ay1, by1, by_h)
    return (dax1, day1, dax2, day2, by_union, a_angle), (dbx1, dby1, dbx2, dby2, by_union, -a_angle)


@triton.jit(do_not_specialize=["eps"])
def _box_iou_backward_kernel(
    grad_ptr,  # [B, N, M]
    boxes1_ptr,  # [B, N, 4]
    boxes2_ptr,  # [B, M, 4]
    rows_ptr,  # [blocks of columns, B, N, TERMS]
    columns_ptr,  # [strips of rows, B, M, TERMS]
    B,
    N,
    M,
    step1,  # boxes from one image to the next; 0 if all have the same
    step2,
    eps,  # bits of a double
    KIND: tl.constexpr,
    FORMAT: tl.constexpr,
    DOUBLE: tl.constexpr,
    STRIP: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    terms: tl.constexpr = 6
    dtype: tl.constexpr = tl.float64 if DOUBLE else tl.float32
    image, strip, block = strip_of_pairs(N, M, tl.program_id(0), STRIP, BLOCK_N)
    columns = block * BLOCK_N + tl.arange(0, BLOCK_N)
    margin = as_double(eps).to(dtype)
    b = load_axis_aligned_box(
        boxes2_ptr + (image * step2 + columns[None, :]) * 4, columns[None, :] < M, FORMAT, DOUBLE
    )
    of_x1 = tl.zeros([BLOCK_N], dtype)
    of_y1, of_x2, of_y2, of_area, of_angle = of_x1, of_x1, of_x1, of_x1, of_x1
    for first in range(strip * STRIP, tl.minimum((strip + 1) * STRIP, N), BLOCK_M):
        rows = first + tl.arange(0, BLOCK_M)
        a = load_axis_aligned_box(
            boxes1_ptr + (image * step1 + rows[:, None]) * 4, rows[:, None] < N, FORMAT, DOUBLE
        )
        mask = (rows[:, None] < N) & (columns[None, :] < M)
        offsets = (image * N + rows[:, None]) * M + columns[None, :]
        gradient = tl.load(grad_ptr + offsets, mask=mask, other=0.0)
        da, db = _pair_gradients(a, b, gradient, margin, KIND)
        of_x1 += tl.sum(db[0], 0)
        of_y1 += tl.sum(db[1], 0)
        of_x2 += tl.sum(db[2], 0)
        of_y2 += tl.sum(db[3], 0)
        of_area += tl.sum(db[4], 0)
        to = rows_ptr + ((block * B + image) * N + rows) * terms
        for k in tl.static_range(5):
            tl.store(to + k, tl.sum(da[k], 1), mask=rows < N)
        if KIND == COMPLETE:
            of_angle += tl.sum(db[5], 0)
            tl.store(to + 5, tl.sum(da[5], 1), mask=rows < N)
        else:
            tl.store(to + 5, 0.0, mask=rows < N)
    to = columns_ptr + ((strip * B + image) * M + columns) * terms
    tl.store(to, of_x1, mask=columns < M)
    tl.store(to + 1, of_y1, mask=columns < M)
    tl.store(to + 2, of_x2, mask=columns < M)
    tl.store(to + 3, of_y2, mask=columns < M)
    tl.store(to + 4, of_area, mask=columns < M)
    tl.store(to + 5, of_angle, mask=columns < M)


def launch_box_iou(
    boxes1: Tensor,  # [N, 4] or [B, N, 4]
    boxes2: Tensor,  # [M, 4] or [B, M, 4]
    kind: int,
    format: int,
    eps: float,
    narrow: bool,
) -> Tensor:
    """Overlaps [N, M] or [B, N, M]. See :func:`fastvision.ops.box_iou`."""
    batched = boxes1.dim() == 3
    boxes1, boxes2, B, step1, step2 = batched_pairs(boxes1, boxes2)
    N, M = boxes1.shape[1], boxes2.shape[1]
    double = boxes1.dtype == torch.float64
    dtype = torch.float64 if double and not narrow else torch.float32
    output = boxes1.new_empty((B, N, M), dtype=dtype)
    if output.numel() > 0:
        block_m, block_n = tile("box_iou", double)
        with torch.cuda.device_of(boxes1):
            _box_iou_kernel[(B * triton.cdiv(N, block_m) * triton.cdiv(M, block_n),)](
                boxes1, boxes2, output, N, M, step1, step2, double_bits(eps),
                KIND=kind, FORMAT=format, DOUBLE=double, BLOCK_M=block_m, BLOCK_N=block_n,
                num_warps=NUM_WARPS, enable_fp_fusion=False,
            )  # fmt: skip
    return output if batched else output[0]


def _by_coordinates(terms: Tensor, boxes: Tensor, kind: int, format: int) -> Tensor:
    """Gradients [B, N, 4] of the coordinates in their format from sums of terms [B, N, TERMS]."""
    by_corners, by_area, by_angle = terms[..., :4], terms[..., 4], terms[..., 5]
    boxes = boxes.to(terms.dtype)
    sides = boxes[..., 2:] - boxes[..., :2] if format == 0 else boxes[..., 2:]
    by_sides = by_area.unsqueeze(-1) * sides.flip(-1)
    if kind == 3:
        square = sides.square().sum(-1, keepdim=True)
        turned = torch.stack((sides[..., 1], -sides[..., 0]), -1)
        by_sides += torch.where(square > 0, by_angle.unsqueeze(-1) * turned / square, 0)
    low, high = by_corners[..., :2], by_corners[..., 2:]
    if format == 0:
        return torch.cat((low - by_sides, high + by_sides), -1)
    return torch.cat((low + high, by_sides + (high if format == 1 else (high - low) / 2)), -1)


def launch_box_iou_backward(
    grad: Tensor,  # [N, M] or [B, N, M]
    boxes1: Tensor,  # [N, 4] or [B, N, 4]
    boxes2: Tensor,  # [M, 4] or [B, M, 4]
    kind: int,
    format: int,
    eps: float,
) -> tuple[Tensor, Tensor]:
    """Gradients of the boxes, for every image."""
    double = grad.dtype == torch.float64
    rows, columns = summed_terms(
        _box_iou_backward_kernel, grad, boxes1, boxes2, TERMS, double_bits(eps),
        strip=GRADIENT_ROWS, blocks=tile("box_iou_backward", double), num_warps=NUM_WARPS,
        KIND=kind, FORMAT=format, DOUBLE=double,
    )  # fmt: skip
    first = _by_coordinates(rows, boxes1, kind, format)
    second = _by_coordinates(columns, boxes2, kind, format)
    return (first, second) if boxes1.dim() == 3 else (first[0], second[0])
