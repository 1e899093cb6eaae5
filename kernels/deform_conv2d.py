"""Deformable convolution as an implicit GEMM, whose rows are bilinear samples.

For a tile of output pixels, the place of a tap is found once per section of the channels, and a
step along the reduction loads the four corners of the tap's samples. Samples are rounded to the
weights' dtype before they are multiplied; positions and sums are float32.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from .._memory_format import is_channels_last, memory_format
from .common.deform import SIZES, Call, bilinear_samples, locate_samples, pixel_of
from .configs.deform_conv2d import BLOCK_C, STAGES, tile


@triton.jit(do_not_specialize=SIZES)
def _deform_conv2d_kernel(
    input_ptr,  # [N, H, W, C]
    offset_ptr,  # [N, offset_groups, R, S, 2, OH, OW]
    mask_ptr,  # [N, offset_groups, R, S, OH, OW], or None
    weight_ptr,  # [groups, K, R, S, C / groups]
    bias_ptr,  # [groups, K], or None
    output_ptr,  # [N, OH, OW, groups, K], or [N, groups, K, OH, OW]
    pixels,  # N * OH * OW
    H,
    W,
    OH,
    OW,
    C,
    K,
    groups,
    offset_groups,
    section,  # channels
    stride_h,
    stride_w,
    padding_h,
    padding_w,
    dilation_h,
    dilation_w,
    R: tl.constexpr,
    S: tl.constexpr,
    CHANNELS_LAST: tl.constexpr,  # the output
    INT64: tl.constexpr,
    TF32: tl.constexpr,  # float32 products on tensor cores
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    tiles = tl.cdiv(K, BLOCK_N)
    group = tl.program_id(1)
    m = tl.program_id(0) // tiles * BLOCK_M + tl.arange(0, BLOCK_M)
    k = tl.program_id(0) % tiles * BLOCK_N + tl.arange(0, BLOCK_N)
    k_mask = k < K
    m_mask, n, place, y0, x0 = pixel_of(
        m, pixels, OH, OW, stride_h, stride_w, padding_h, padding_w
    )  # fmt: skip
    if INT64:
        n = n.to(tl.int64)
        place = place.to(tl.int64)
    area = OH * OW
    image_ptr = input_ptr + n * H * W * C
    width = C // groups
    acc = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    for step in range(width // section * (R * S)):
        tap = step % (R * S)
        first = step // (R * S) * section  # channel in the group
        offset_group = (group * width + first) // (C // offset_groups)
        sample = (n * offset_groups + offset_group) * (R * S) + tap
        top, left, y, x, _, counts = locate_samples(
            offset_ptr, 2 * sample * area + place, m_mask, y0 + tap // S * dilation_h,
            x0 + tap % S * dilation_w, H, W, area,
        )  # fmt: skip
        for begin in range(0, section, BLOCK_C):
            c = begin + tl.arange(0, BLOCK_C)
            c_mask = c < section
            c += first
            column = bilinear_samples(
                image_ptr, top, left, y, x, counts, group * width + c, c_mask, C, H, W, INT64
            )
            if mask_ptr is not None:
                factor = tl.load(mask_ptr + sample * area + place, mask=m_mask, other=0.0)
                column *= factor.to(tl.float32)[:, None]
                # zeros beyond the section stay zeros if the factor is infinite
                column = tl.where(c_mask[None, :], column, 0.0)
            b = tl.load(
                weight_ptr + ((group * K + k) * (R * S) + tap)[None, :] * width + c[:, None],
                mask=c_mask[:, None] & k_mask[None, :],
                other=0.0,
            )
            acc = tl.dot(column.to(b.dtype), b, acc, input_precision="tf32" if TF32 else "ieee")
    k += group * K
    if bias_ptr is not None:
        acc += tl.load(bias_ptr + k, mask=k_mask, other=0.0).to(tl.float32)[None, :]
    if CHANNELS_LAST:
        at = (n * area + place)[:, None] * (groups * K) + k[None, :]
    else:
        at = (n * (groups * K) * area + place)[:, None] + k[None, :] * area
    tl.store(
        output_ptr + at, acc.to(output_ptr.dtype.element_ty), mask=m_mask[:, None] & k_mask[None, :]
    )


def launch_deform_conv2d(
    input: Tensor,  # [N, C, H, W]
    offset: Tensor,  # [N, offset_groups * R * S * 2, OH, OW]
    mask: Tensor | None,  # [N, offset_groups * R * S, OH, OW]
    weight: Tensor,  # [K, C / groups, R, S]
    bias: Tensor | None,  # [K]
    window: Sequence[int],
    groups: int,
    offset_groups: int,
) -> Tensor:
    """[N, K, OH, OW] in the memory format of ``input``."""
    call = Call(input, offset, mask, weight, window, groups, offset_groups)
    bias = None if bias is None else bias.contiguous()
    last = is_channels_last(input)
    shape = (input.shape[0], weight.shape[0], *offset.shape[2:])
    output = input.new_empty(shape).to(memory_format=memory_format(last))
    if output.numel() == 0:
        return output
    chosen = tile(call.K, call.tensor_cores)
    tiles = triton.cdiv(call.pixels, chosen.block_m) * triton.cdiv(call.K, chosen.block_n)
    with torch.cuda.device_of(input):
        _deform_conv2d_kernel[(tiles, groups)](
            *(call.input, call.offset, call.mask, call.weight, bias, output, *call.shared),
            CHANNELS_LAST=last, BLOCK_M=chosen.block_m, BLOCK_N=chosen.block_n, BLOCK_C=BLOCK_C,
            num_warps=chosen.warps, num_stages=STAGES, **call.options,
        )  # fmt: skip
    return output
