"""Losses from the overlap of boxes one by one, and their gradients."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from .common.box_pairs import (
    ASPECT,
    COMPLETE,
    GENERALIZED,
    XYXY,
    angle_of,
    load_axis_aligned_box,
    share_of_minimum,
)
from .common.scalars import as_double, divide, double_bits
from .configs.box_iou import LOSS_BLOCK, LOSS_WARPS


@triton.jit
def _margin(eps, like, KIND: tl.constexpr):
    """eps of denominators: as in torchvision, the complete IoU's own is only in the weight of the
    aspect ratio."""
    if KIND == COMPLETE:
        return 1e-7
    else:
        return as_double(eps).to(like.dtype)


@triton.jit
def _aspect(a, b, iou, eps):
    """Difference of the angles of the diagonals, penalty, and its weight."""
    difference = angle_of(b[0], b[1], b[2], b[3]) - angle_of(a[0], a[1], a[2], a[3])
    v = ASPECT * (difference * difference)
    return difference, v, divide(v, 1 - iou + v + as_double(eps).to(v.dtype))


@triton.jit
def _overlap(a, b, margin):
    """Width, height and area of the intersection, union, IoU, and the sides of the smallest box
    around both."""
    width = tl.minimum(a[2], b[2]) - tl.maximum(a[0], b[0])
    height = tl.minimum(a[3], b[3]) - tl.maximum(a[1], b[1])
    inter = tl.where((width > 0) & (height > 0), width * height, 0.0)
    union = a[4] + b[4] - inter
    around_width = tl.maximum(a[2], b[2]) - tl.minimum(a[0], b[0])
    around_height = tl.maximum(a[3], b[3]) - tl.minimum(a[1], b[1])
    iou = divide(inter, union + margin)
    return width, height, inter, union, iou, around_width, around_height


@triton.jit
def _centers(a, b):
    return (a[2] + a[0]) / 2 - (b[0] + b[2]) / 2, (a[3] + a[1]) / 2 - (b[1] + b[3]) / 2


@triton.jit(do_not_specialize=["eps"])
def _box_iou_loss_kernel(
    boxes1_ptr,  # [N, 4]
    boxes2_ptr,  # [N, 4]
    losses_ptr,  # [N]
    N,
    eps,  # bits of a double
    KIND: tl.constexpr,
    DOUBLE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    i = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    a = load_axis_aligned_box(boxes1_ptr + i * 4, i < N, XYXY, DOUBLE)
    b = load_axis_aligned_box(boxes2_ptr + i * 4, i < N, XYXY, DOUBLE)
    margin = _margin(eps, a[0], KIND)
    _, _, _, union, iou, width, height = _overlap(a, b, margin)
    if KIND == GENERALIZED:
        area = width * height
        loss = 1 - (iou - divide(area - union, area + margin))
    else:
        dx, dy = _centers(a, b)
        diagonal = width * width + height * height + margin
        loss = 1 - iou + divide(dx * dx + dy * dy, diagonal)
        if KIND == COMPLETE:
            _, v, alpha = _aspect(a, b, iou, eps)
            loss += alpha * v
    tl.store(losses_ptr + i, loss, mask=i < N)


@triton.jit
def _store_gradient(ptr, mask, box, x1, y1, x2, y2, by_area, by_angle, KIND: tl.constexpr):
    """Of the corners of a box, with what area and angle add to them."""
    width = box[2] - box[0]
    height = box[3] - box[1]
    by_width = by_area * height
    by_height = by_area * width
    if KIND == COMPLETE:
        square = width * width + height * height
        share = tl.where(square > 0, divide(by_angle, tl.where(square > 0, square, 1.0)), 0.0)
        by_width += share * height
        by_height -= share * width
    tl.store(ptr, x1 - by_width, mask=mask)
    tl.store(ptr + 1, y1 - by_height, mask=mask)
    tl.store(ptr + 2, x2 + by_width, mask=mask)
    tl.store(ptr + 3, y2 + by_height, mask=mask)


@triton.jit(do_not_specialize=["eps"])
def _box_iou_loss_backward_kernel(
    grad_ptr,  # [N]
    boxes1_ptr,  # [N, 4]
    boxes2_ptr,  # [N, 4]
    grad1_ptr,  # [N, 4]
    grad2_ptr,  # [N, 4]
    N,
    eps,  # bits of a double
    KIND: tl.constexpr,
    DOUBLE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    i = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    mask = i < N
    a = load_axis_aligned_box(boxes1_ptr + i * 4, mask, XYXY, DOUBLE)
    b = load_axis_aligned_box(boxes2_ptr + i * 4, mask, XYXY, DOUBLE)
    g = tl.load(grad_ptr + i, mask=mask, other=0.0)
    margin = _margin(eps, a[0], KIND)
    width, height, inter, union, iou, around_width, around_height = _overlap(a, b, margin)
    by_union = divide(g * iou, union + margin)
    by_inter = divide(-g, union + margin)
    by_angle = tl.zeros_like(g)
    if KIND == GENERALIZED:
        area = around_width * around_height
        by_area = g * divide(1 - divide(area - union, area + margin), area + margin)
        by_union -= divide(g, area + margin)
        by_around_width = by_area * around_height
        by_around_height = by_area * around_width
        by_dx = tl.zeros_like(g)
        by_dy = tl.zeros_like(g)
    else:
        dx, dy = _centers(a, b)
        diagonal = around_width * around_width + around_height * around_height + margin
        share = divide(g, diagonal)
        by_diagonal = -share * divide(dx * dx + dy * dy, diagonal)
        by_around_width = by_diagonal * 2 * around_width
        by_around_height = by_diagonal * 2 * around_height
        # a center moves by half as much as a side
        by_dx = share * dx
        by_dy = share * dy
        if KIND == COMPLETE:
            difference, _, alpha = _aspect(a, b, iou, eps)
            by_angle = -g * alpha * (2 * ASPECT) * difference
    by_inter -= by_union
    meet = (width > 0) & (height > 0)
    by_width = tl.where(meet, by_inter * height, 0.0)
    by_height = tl.where(meet, by_inter * width, 0.0)
    ax1, ay1, ax2, ay2, _ = a
    bx1, by1, bx2, by2, _ = b
    dax1 = by_dx - share_of_minimum(ax1, bx1, by_around_width)
    dbx1 = -by_dx - share_of_minimum(bx1, ax1, by_around_width)
    day1 = by_dy - share_of_minimum(ay1, by1, by_around_height)
    dby1 = -by_dy - share_of_minimum(by1, ay1, by_around_height)
    dax2 = by_dx + share_of_minimum(bx2, ax2, by_around_width)
    dbx2 = -by_dx + share_of_minimum(ax2, bx2, by_around_width)
    day2 = by_dy + share_of_minimum(by2, ay2, by_around_height)
    dby2 = -by_dy + share_of_minimum(ay2, by2, by_around_height)
    dax1 -= share_of_minimum(bx1, ax1, by_width)
    dbx1 -= share_of_minimum(ax1, bx1, by_width)
    day1 -= share_of_minimum(by1, ay1, by_height)
    dby1 -= share_of_minimum(ay1, by1, by_height)
    dax2 += share_of_minimum(ax2, bx2, by_width)
    dbx2 += share_of_minimum(bx2, ax2, by_width)
    day2 += share_of_minimum(ay2, by2, by_height)
    dby2 += share_of_minimum(by2, ay2, by_height)
    _store_gradient(grad1_ptr + i * 4, mask, a, dax1, day1, dax2, day2, by_union, by_angle, KIND)
    _store_gradient(grad2_ptr + i * 4, mask, b, dbx1, dby1, dbx2, dby2, by_union, -by_angle, KIND)


def launch_box_iou_loss(
    boxes1: Tensor,  # [N, 4]
    boxes2: Tensor,  # [N, 4]
    kind: int,
    eps: float,
) -> Tensor:
    """Losses [N]. See :func:`fastvision.ops.generalized_box_iou_loss` and its siblings."""
    N = len(boxes1)
    losses = boxes1.new_empty(N)
    if N > 0:
        with torch.cuda.device_of(boxes1):
            _box_iou_loss_kernel[(triton.cdiv(N, LOSS_BLOCK),)](
                boxes1.contiguous(), boxes2.contiguous(), losses, N, double_bits(eps),
                KIND=kind, DOUBLE=boxes1.dtype == torch.float64, BLOCK=LOSS_BLOCK,
                num_warps=LOSS_WARPS, enable_fp_fusion=False,
            )  # fmt: skip
    return losses


def launch_box_iou_loss_backward(
    grad: Tensor,  # [N]
    boxes1: Tensor,  # [N, 4]
    boxes2: Tensor,  # [N, 4]
    kind: int,
    eps: float,
) -> tuple[Tensor, Tensor]:
    """The gradients of both boxes, [N, 4] each."""
    N = len(boxes1)
    grad1, grad2 = (b.new_empty(b.shape) for b in (boxes1, boxes2))
    if N > 0:
        with torch.cuda.device_of(boxes1):
            _box_iou_loss_backward_kernel[(triton.cdiv(N, LOSS_BLOCK),)](
                grad.contiguous(), boxes1.contiguous(), boxes2.contiguous(), grad1, grad2, N,
                double_bits(eps), KIND=kind, DOUBLE=boxes1.dtype == torch.float64,
                BLOCK=LOSS_BLOCK, num_warps=LOSS_WARPS, enable_fp_fusion=False,
            )  # fmt: skip
    return grad1, grad2
