"""Axis-aligned boxes, and tiles of the pairs of two sets of boxes."""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from .angles import arctangent
from .scalars import divide

# kinds of overlap and formats of boxes, as reference.box_iou has them
GENERALIZED, DISTANCE, COMPLETE = tl.constexpr(1), tl.constexpr(2), tl.constexpr(3)
XYXY, XYWH = tl.constexpr(0), tl.constexpr(1)
ASPECT = tl.constexpr(0.40528473456935109)  # 4 / pi^2


@triton.jit
def load_axis_aligned_box(ptr, mask, FORMAT: tl.constexpr, DOUBLE: tl.constexpr):
    """x1, y1, x2, y2, area; a unit box where ``mask`` is false. The area of a box with a NaN is
    NaN, which every result inherits."""
    dtype: tl.constexpr = tl.float64 if DOUBLE else tl.float32
    x1 = tl.load(ptr, mask=mask, other=0.0).to(dtype)
    y1 = tl.load(ptr + 1, mask=mask, other=0.0).to(dtype)
    x2 = tl.load(ptr + 2, mask=mask, other=1.0).to(dtype)
    y2 = tl.load(ptr + 3, mask=mask, other=1.0).to(dtype)
    if FORMAT == XYXY:
        area = (x2 - x1) * (y2 - y1)
    else:
        area = x2 * y2
        if FORMAT == XYWH:
            x2 = x1 + x2
            y2 = y1 + y2
        else:
            half_width = x2 / 2
            half_height = y2 / 2
            x2 = x1 + half_width
            y2 = y1 + half_height
            x1 = x1 - half_width
            y1 = y1 - half_height
    is_number = (x1 == x1) & (y1 == y1) & (x2 == x2) & (y2 == y2)
    return x1, y1, x2, y2, tl.where(is_number, area, float("nan"))


@triton.jit
def angle_of(x1, y1, x2, y2):
    return arctangent(divide(x2 - x1, y2 - y1))


@triton.jit
def not_negative(x):
    return tl.where(x < 0, 0.0, x)  # propagates NaN


@triton.jit
def share_of_minimum(a, b, gradient):
    """What of the gradient of min(a, b) is a's: half of it if they are equal, as in torch."""
    return tl.where(a < b, gradient, tl.where(a == b, gradient / 2, 0.0))


@triton.jit
def tile_of_pairs(N, M, tile, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr):
    """Image, rows [BLOCK_M] and columns [BLOCK_N] of a tile of [B, N, M] pairs."""
    across = tl.cdiv(M, BLOCK_N)
    down = tl.cdiv(N, BLOCK_M)
    image = (tile // (across * down)).to(tl.int64)
    rows = tile // across % down * BLOCK_M + tl.arange(0, BLOCK_M)
    return image, rows, tile % across * BLOCK_N + tl.arange(0, BLOCK_N)


@triton.jit
def strip_of_pairs(N, M, program, STRIP: tl.constexpr, BLOCK_N: tl.constexpr):
    """Image, strip of rows and block of columns of a program over [B, N, M] pairs."""
    across = tl.cdiv(M, BLOCK_N)
    strips = tl.cdiv(N, STRIP)
    image = (program // (across * strips)).to(tl.int64)
    return image, program // across % strips, program % across


def batched_pairs(boxes1: Tensor, boxes2: Tensor) -> tuple[Tensor, Tensor, int, int, int]:
    """Both sets with a dimension of images, their number, and for each the boxes from one image to
    the next (0 if all images have the same)."""
    boxes1, boxes2 = (
        (b if b.dim() == 3 else b.unsqueeze(0)).contiguous() for b in (boxes1, boxes2)
    )
    images = len(boxes2) if len(boxes1) == 1 else len(boxes1)
    step1, step2 = (b.shape[1] if len(b) > 1 else 0 for b in (boxes1, boxes2))
    return boxes1, boxes2, images, step1, step2


def summed_terms(
    kernel: Any,
    grad: Tensor,  # [N, M] or [B, N, M]
    boxes1: Tensor,
    boxes2: Tensor,
    terms: int,
    *arguments: Any,
    strip: int,
    blocks: tuple[int, int],
    **options: Any,
) -> tuple[Tensor, Tensor]:
    """Sums of the gradients' terms over pairs, [B, N, terms] and [B, M, terms].

    Programs write partial sums of a block of columns by a strip of rows, which are added in order.
    """
    boxes1, boxes2, B, step1, step2 = batched_pairs(boxes1, boxes2)
    N, M = boxes1.shape[1], boxes2.shape[1]
    block_m, block_n = blocks
    across, strips = triton.cdiv(M, block_n), triton.cdiv(N, strip)
    rows = grad.new_zeros((across, B, N, terms))
    columns = grad.new_zeros((strips, B, M, terms))
    if B * N * M > 0:
        with torch.cuda.device_of(boxes1):
            kernel[(across * strips * B,)](
                grad.contiguous(), boxes1, boxes2, rows, columns, B, N, M, step1, step2,
                *arguments, STRIP=strip, BLOCK_M=block_m, BLOCK_N=block_n, enable_fp_fusion=False,
                **options,
            )  # fmt: skip
    return rows.sum(0), columns.sum(0)
