"""The gradients of deformable convolution.

Those of input, offset and mask are one kernel: a program multiplies the result's gradient by the
weights of a tap, which gives the gradients of the tap's samples. They are added to the image
atomically; all other sums have a fixed order. The weight's gradient is a product of samples and the
result's gradient, in parts that are added up in order.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from .._memory_format import is_channels_last, memory_format
from .common.deform import (
    SIZES,
    Call,
    bilinear_samples,
    in_image,
    load_corner,
    locate_samples,
    pixel_of,
)
from .configs.deform_conv2d import BLOCK_C, STAGES, points_tile, splits, weight_tile


@triton.jit
def _add_corner(
    target_ptr, gradient, weight, row, column, valid, c, c_mask, C, H, W, INT64: tl.constexpr
):  # fmt: skip
    """Adds to the gradient of one corner; without a weight it gets nothing, not even NaN."""
    mask = (valid & (weight != 0) & in_image(row, column, H, W))[:, None] & c_mask[None, :]
    offset = row * W + column
    if INT64:
        offset = offset.to(tl.int64)
    at = target_ptr[:, None] + (offset * C)[:, None] + c[None, :]
    tl.atomic_add(at, gradient * weight[:, None], mask=mask, sem="relaxed")


@triton.jit(do_not_specialize=SIZES)
def _deform_conv2d_points_kernel(
    grad_ptr,  # [N, OH, OW, groups, K]
    input_ptr,  # [N, H, W, C]
    offset_ptr,  # [N, offset_groups, R, S, 2, OH, OW]
    mask_ptr,  # [N, offset_groups, R, S, OH, OW], or None
    weight_ptr,  # [groups, K, R, S, C / groups]
    grad_input_ptr,  # [N, H, W, C] float32, added to, or None
    grad_offset_ptr,  # like offset
    grad_mask_ptr,  # like mask, or None
    pixels,
    H,
    W,
    OH,
    OW,
    C,
    K,
    groups,
    offset_groups,
    section,
    stride_h,
    stride_w,
    padding_h,
    padding_w,
    dilation_h,
    dilation_w,
    R: tl.constexpr,
    S: tl.constexpr,
    INT64: tl.constexpr,
    TF32: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    blocks = tl.cdiv(pixels, BLOCK_M)
    m = tl.program_id(0) % blocks * BLOCK_M + tl.arange(0, BLOCK_M)
    tap = tl.program_id(0) // blocks % (R * S)
    offset_group = tl.program_id(0) // blocks // (R * S)
    m_mask, n, place, y0, x0 = pixel_of(
        m, pixels, OH, OW, stride_h, stride_w, padding_h, padding_w
    )  # fmt: skip
    if INT64:
        n = n.to(tl.int64)
        place = place.to(tl.int64)
    area = OH * OW
    sample = (n * offset_groups + offset_group) * (R * S) + tap
    top, left, y, x, reached, counts = locate_samples(
        offset_ptr, 2 * sample * area + place, m_mask, y0 + tap // S * dilation_h,
        x0 + tap % S * dilation_w, H, W, area,
    )  # fmt: skip
    factor = tl.full([BLOCK_M], 1.0, tl.float32)
    if mask_ptr is not None:
        factor = tl.load(mask_ptr + sample * area + place, mask=m_mask, other=0.0).to(tl.float32)
    image_ptr = input_ptr + n * H * W * C
    width = C // groups
    by_y = tl.zeros([BLOCK_M], tl.float32)
    by_x = tl.zeros([BLOCK_M], tl.float32)
    by_mask = tl.zeros([BLOCK_M], tl.float32)
    steps = tl.cdiv(section, BLOCK_C)
    for step in range(C // offset_groups // section * steps):
        first = offset_group * (C // offset_groups) + step // steps * section
        c = step % steps * BLOCK_C + tl.arange(0, BLOCK_C)
        c_mask = c < section
        c += first
        group = first // width
        gradient = tl.zeros([BLOCK_M, BLOCK_C], tl.float32)
        for begin in range(0, K, BLOCK_N):
            k = begin + tl.arange(0, BLOCK_N)
            k_mask = k < K
            a = tl.load(
                grad_ptr + (n * area + place)[:, None] * (groups * K) + (group * K + k)[None, :],
                mask=m_mask[:, None] & k_mask[None, :],
                other=0.0,
            )
            b = tl.load(
                weight_ptr
                + ((group * K + k) * (R * S) + tap)[:, None] * width
                + (c - group * width)[None, :],
                mask=k_mask[:, None] & c_mask[None, :],
                other=0.0,
            )
            gradient = tl.dot(a, b, gradient, input_precision="tf32" if TF32 else "ieee")
        v0, _, _ = load_corner(image_ptr, top, left, reached, c, c_mask, C, H, W, INT64)
        v1, _, _ = load_corner(image_ptr, top, left + 1, reached, c, c_mask, C, H, W, INT64)
        v2, _, _ = load_corner(image_ptr, top + 1, left, reached, c, c_mask, C, H, W, INT64)
        v3, _, _ = load_corner(image_ptr, top + 1, left + 1, reached, c, c_mask, C, H, W, INT64)
        # differences come first: neighbours may be nearly equal
        down = v2 - v0
        right = v1 - v0
        twist = (v3 - v1) - down
        by_y += tl.sum(gradient * (down + x[:, None] * twist), 1)
        by_x += tl.sum(gradient * (right + y[:, None] * twist), 1)
        if grad_mask_ptr is not None:
            value = (1 - y)[:, None] * ((1 - x)[:, None] * v0 + x[:, None] * v1)
            value += y[:, None] * ((1 - x)[:, None] * v2 + x[:, None] * v3)
            value = tl.where(counts[:, None], value, 0.0)
            by_mask += tl.sum(gradient * value, 1)
        if grad_input_ptr is not None:
            target_ptr = grad_input_ptr + n * H * W * C
            gradient *= factor[:, None]
            _add_corner(
                target_ptr, gradient, (1 - y) * (1 - x), top, left, reached, c, c_mask, C, H, W,
                INT64,
            )  # fmt: skip
            _add_corner(
                target_ptr, gradient, (1 - y) * x, top, left + 1, reached, c, c_mask, C, H, W, INT64
            )
            _add_corner(
                target_ptr, gradient, y * (1 - x), top + 1, left, reached, c, c_mask, C, H, W, INT64
            )
            _add_corner(
                target_ptr, gradient, y * x, top + 1, left + 1, reached, c, c_mask, C, H, W, INT64
            )
    at = grad_offset_ptr + 2 * sample * area + place
    kind = grad_offset_ptr.dtype.element_ty
    tl.store(at, (by_y * factor).to(kind), mask=m_mask)
    tl.store(at + area, (by_x * factor).to(kind), mask=m_mask)
    if grad_mask_ptr is not None:
        tl.store(grad_mask_ptr + sample * area + place, by_mask.to(kind), mask=m_mask)


@triton.jit(do_not_specialize=[*SIZES, "split_pixels"])
def _deform_conv2d_weight_kernel(
    grad_ptr,  # [N, OH, OW, groups, K]
    input_ptr,  # [N, H, W, C]
    offset_ptr,  # [N, offset_groups, R, S, 2, OH, OW]
    mask_ptr,  # [N, offset_groups, R, S, OH, OW], or None
    sums_ptr,  # [splits, R, S, C, K] float32
    pixels,
    H,
    W,
    OH,
    OW,
    C,
    K,
    groups,
    offset_groups,
    section,
    stride_h,
    stride_w,
    padding_h,
    padding_w,
    dilation_h,
    dilation_w,
    split_pixels,  # a multiple of BLOCK_M
    R: tl.constexpr,
    S: tl.constexpr,
    INT64: tl.constexpr,
    TF32: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    tiles = tl.cdiv(K, BLOCK_N)
    steps = tl.cdiv(section, BLOCK_C)
    k = tl.program_id(0) % tiles * BLOCK_N + tl.arange(0, BLOCK_N)
    part = tl.program_id(0) // tiles
    tap = tl.program_id(1)
    k_mask = k < K
    c = part % steps * BLOCK_C + tl.arange(0, BLOCK_C)
    c_mask = c < section
    first = part // steps * section
    c += first
    group = first // (C // groups)
    offset_group = first // (C // offset_groups)
    area = OH * OW
    start = tl.program_id(2) * split_pixels
    acc = tl.zeros([BLOCK_C, BLOCK_N], tl.float32)
    for begin in range(0, split_pixels, BLOCK_M):
        m = start + begin + tl.arange(0, BLOCK_M)
        m_mask, n, place, y0, x0 = pixel_of(
            m, pixels, OH, OW, stride_h, stride_w, padding_h, padding_w
        )  # fmt: skip
        if INT64:
            n = n.to(tl.int64)
            place = place.to(tl.int64)
        sample = (n * offset_groups + offset_group) * (R * S) + tap
        top, left, y, x, _, counts = locate_samples(
            offset_ptr, 2 * sample * area + place, m_mask, y0 + tap // S * dilation_h,
            x0 + tap % S * dilation_w, H, W, area,
        )  # fmt: skip
        image_ptr = input_ptr + n * H * W * C
        column = bilinear_samples(image_ptr, top, left, y, x, counts, c, c_mask, C, H, W, INT64)
        if mask_ptr is not None:
            factor = tl.load(mask_ptr + sample * area + place, mask=m_mask, other=0.0)
            column *= factor.to(tl.float32)[:, None]
        b = tl.load(
            grad_ptr + (n * area + place)[:, None] * (groups * K) + (group * K + k)[None, :],
            mask=m_mask[:, None] & k_mask[None, :],
            other=0.0,
        )
        acc = tl.dot(
            tl.trans(column.to(b.dtype)), b, acc, input_precision="tf32" if TF32 else "ieee"
        )
    split = tl.program_id(2).to(tl.int64)
    row = (split * (R * S) + tap) * C + c
    tl.store(sums_ptr + row[:, None] * K + k[None, :], acc, mask=c_mask[:, None] & k_mask[None, :])


def launch_deform_conv2d_backward(
    grad: Tensor,
    input: Tensor,
    offset: Tensor,
    mask: Tensor | None,
    weight: Tensor,
    window: Sequence[int],
    groups: int,
    offset_groups: int,
    needs: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients of input, offset, mask, weight and bias; empty where the bit of ``needs`` is 0."""
    call = Call(input, offset, mask, weight, window, groups, offset_groups)
    empty = grad.new_empty(0)
    dx, doffset, dmask, dweight, dbias = (empty,) * 5
    g = call.last(grad)
    with torch.cuda.device_of(input):
        if needs & 0b111:
            dx, doffset, dmask = _point_gradients(
                call, g, input, offset, mask, needs, offset_groups
            )
        if needs & 0b1000:
            dweight = _weight_gradient(call, g, weight, groups)
    if needs & 0b10000:
        dbias = grad.sum((0, 2, 3), dtype=torch.float32).to(weight.dtype)
    return dx, doffset, dmask, dweight, dbias


def _point_gradients(
    call: Call,
    grad: Tensor,
    input: Tensor,
    offset: Tensor,
    mask: Tensor | None,
    needs: int,
    offset_groups: int,
) -> tuple[Tensor, Tensor, Tensor]:
    N, C, H, W = input.shape
    image = None
    if needs & 1:
        image = torch.zeros(N, H, W, C, device=input.device)
    doffset = torch.empty_like(call.offset)
    dmask = torch.empty_like(call.mask) if call.mask is not None and needs & 4 else None
    if grad.numel() == 0 or input.numel() == 0:
        doffset.zero_()
        if dmask is not None:
            dmask.zero_()
    else:
        chosen = points_tile(call.K, call.tensor_cores)
        blocks = triton.cdiv(call.pixels, chosen.block_m)
        _deform_conv2d_points_kernel[(blocks * offset_groups * call.R * call.S,)](
            *(grad, call.input, call.offset, call.mask, call.weight, image, doffset, dmask),
            *call.shared,
            BLOCK_M=chosen.block_m, BLOCK_N=chosen.block_n, BLOCK_C=BLOCK_C,
            num_warps=chosen.warps, num_stages=STAGES, **call.options,
        )  # fmt: skip
    empty = input.new_empty(0)
    if image is None:
        dx = empty
    else:
        dx = input.new_empty(input.shape).to(memory_format=_format(input))
        dx.copy_(image.permute(0, 3, 1, 2))
    return (
        dx,
        doffset.contiguous(memory_format=_format(offset)) if needs & 2 else empty,
        empty if dmask is None or mask is None else dmask.contiguous(memory_format=_format(mask)),
    )


def _weight_gradient(call: Call, grad: Tensor, weight: Tensor, groups: int) -> Tensor:
    if grad.numel() == 0 or call.input.numel() == 0:
        return torch.zeros(weight.shape, dtype=weight.dtype, device=weight.device)
    taps, C = call.R * call.S, call.input.shape[3]
    chosen = weight_tile(call.K, call.tensor_cores)
    parts = C // call.section * triton.cdiv(call.section, BLOCK_C)
    programs = parts * triton.cdiv(call.K, chosen.block_n)
    count = splits(programs * taps, call.pixels, chosen.block_m)
    split_pixels = triton.cdiv(triton.cdiv(call.pixels, count), chosen.block_m) * chosen.block_m
    sums = torch.empty(count, taps, C, call.K, device=weight.device)
    _deform_conv2d_weight_kernel[(programs, taps, count)](
        *(grad, call.input, call.offset, call.mask, sums, *call.shared, split_pixels),
        BLOCK_M=chosen.block_m, BLOCK_N=chosen.block_n, BLOCK_C=BLOCK_C,
        num_warps=chosen.warps, num_stages=STAGES, **call.options,
    )  # fmt: skip
    total = sums.sum(0).view(taps, groups, C // groups, call.K).permute(1, 3, 2, 0)
    return total.reshape(weight.shape).to(weight.dtype)


def _format(x: Tensor) -> torch.memory_format:
    return memory_format(is_channels_last(x))
