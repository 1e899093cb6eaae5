"""Depthwise convolution, which has no matrix to multiply, with the epilogue of conv_bn_relu."""

from __future__ import annotations

from collections.abc import Sequence

import triton
import triton.language as tl
from torch import Tensor

from .common.convolution import epilogue, exceeds_int32, unit_of
from .configs.conv_bn_relu import DEPTHWISE_REGISTERS, DEPTHWISE_WARPS, Tile, depthwise_block


@triton.jit(do_not_specialize=["N", "negative_slope"])
def _depthwise_kernel(
    input_ptr,  # [N, H, W, C]
    weight_ptr,  # [R, S, K]
    scale_ptr,  # [K] float32, or None
    shift_ptr,  # [K] float32, or None
    residual_ptr,  # like output, or None
    output_ptr,  # [N, OH, OW, K]
    N,
    H,
    W,
    OH,
    OW,
    C_UNITS,
    stride_h,
    stride_w,
    pad_top,
    pad_left,
    dilation_h,
    dilation_w,
    negative_slope,
    R: tl.constexpr,
    S: tl.constexpr,
    UNIT_C: tl.constexpr,
    MULTIPLIER: tl.constexpr,  # output channels per input channel
    INT64: tl.constexpr,
    ACTIVATION: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    C = C_UNITS * UNIT_C
    K = C * MULTIPLIER
    P = OH * OW
    channel_blocks = tl.cdiv(K, BLOCK_N)
    m = tl.program_id(0) // channel_blocks * BLOCK_M + tl.arange(0, BLOCK_M)
    k = tl.program_id(0) % channel_blocks * BLOCK_N + tl.arange(0, BLOCK_N)
    m_mask = m < N * P
    k_mask = k < K
    h = m % P // OW * stride_h - pad_top
    w = m % OW * stride_w - pad_left
    base = (m // P * H + h) * W + w
    if INT64:
        base = base.to(tl.int64)
    pixel_ptr = input_ptr + base[:, None] * C + (k // MULTIPLIER)[None, :]

    acc = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    for r in range(R):
        y = h + r * dilation_h
        y_mask = m_mask & (y >= 0) & (y < H)
        for s in tl.static_range(S):
            x = w + s * dilation_w
            mask = (y_mask & (x >= 0) & (x < W))[:, None] & k_mask[None, :]
            value = tl.load(
                pixel_ptr + (r * dilation_h * W + s * dilation_w) * C, mask=mask, other=0.0
            )
            weight = tl.load(weight_ptr + (r * S + s) * K + k, mask=k_mask, other=0.0)
            acc += value.to(tl.float32) * weight.to(tl.float32)[None, :]

    if INT64:
        m = m.to(tl.int64)
    offset = m[:, None] * K + k[None, :]
    mask = m_mask[:, None] & k_mask[None, :]
    acc = epilogue(
        acc, k, k_mask, offset, mask, scale_ptr, shift_ptr, residual_ptr, negative_slope, 1,
        ACTIVATION,
    )  # fmt: skip
    tl.store(output_ptr + offset, acc.to(output_ptr.dtype.element_ty), mask=mask)


def launch_depthwise(
    input: Tensor,
    weight: Tensor,
    scale: Tensor | None,
    shift: Tensor | None,
    residual: Tensor | None,
    output: Tensor,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
    activation: int,
    negative_slope: float,
    _tf32: bool,
    _tile: Tile | None,
) -> None:
    N, C, H, W = input.shape
    R, S, K = weight.shape
    OH, OW = output.shape[2:]
    unit = unit_of(C)
    block_m, block_n = depthwise_block(K)
    _depthwise_kernel[(triton.cdiv(N * OH * OW, block_m) * triton.cdiv(K, block_n),)](
        input,
        weight,
        scale,
        shift,
        residual,
        output,
        N,
        H,
        W,
        OH,
        OW,
        C // unit,
        *stride,
        padding[2],
        padding[0],
        *dilation,
        negative_slope,
        R=R,
        S=S,
        UNIT_C=unit,
        MULTIPLIER=K // groups,
        INT64=exceeds_int32(input, output),
        ACTIVATION=activation,
        BLOCK_M=block_m,
        BLOCK_N=block_n,
        num_warps=DEPTHWISE_WARPS,
        maxnreg=DEPTHWISE_REGISTERS,
    )
