"""input * gate(mean(input)) of each image and channel: means, squeeze, and excitation with scaling.

An input is N images of S pixels and C channels in either memory format; a tile is a block of
pixels by a block of channels. Sums run over tiles in order, so results are deterministic.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from .._memory_format import format_of
from .common.activation import activate
from .configs.squeeze_excitation import LINEAR_BLOCK, NUM_WARPS, tile


@triton.jit
def _offsets(image, pixels, channels, C, S, CHANNELS_LAST: tl.constexpr, INT64: tl.constexpr):
    """Of the tile [BLOCK_S, BLOCK_C] of an image."""
    if INT64:
        image = image.to(tl.int64)
        pixels = pixels.to(tl.int64)
        channels = channels.to(tl.int64)
    if CHANNELS_LAST:
        return (image * S + pixels[:, None]) * C + channels[None, :]
    else:
        return (image * C + channels[None, :]) * S + pixels[:, None]


@triton.jit
def _squeeze_excitation_mean_kernel(
    input_ptr,  # [N, C, S], or [N, S, C] if CHANNELS_LAST
    mean_ptr,  # [N, C]
    C,
    S,
    CHANNELS_LAST: tl.constexpr,
    INT64: tl.constexpr,
    BLOCK_S: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    blocks = tl.cdiv(C, BLOCK_C)
    image = tl.program_id(0) // blocks
    channels = tl.program_id(0) % blocks * BLOCK_C + tl.arange(0, BLOCK_C)
    total = tl.zeros([BLOCK_S, BLOCK_C], mean_ptr.dtype.element_ty)
    for first in range(0, S, BLOCK_S):
        pixels = first + tl.arange(0, BLOCK_S)
        mask = (pixels[:, None] < S) & (channels[None, :] < C)
        offsets = _offsets(image, pixels, channels, C, S, CHANNELS_LAST, INT64)
        total += tl.load(input_ptr + offsets, mask=mask, other=0.0).to(total.dtype)
    tl.store(mean_ptr + image * C + channels, tl.sum(total, 0) / S, mask=channels < C)


@triton.jit
def _linear(
    weight_ptr,  # [rows, columns]
    bias_ptr,  # [rows], or None
    x_ptr,  # [columns]
    rows,  # [BLOCK]
    row_count,
    column_count,
    BLOCK: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    dtype: tl.constexpr = x_ptr.dtype.element_ty
    total = tl.zeros([BLOCK, BLOCK_K], dtype)
    for first in range(0, column_count, BLOCK_K):
        columns = first + tl.arange(0, BLOCK_K)
        mask = (rows[:, None] < row_count) & (columns[None, :] < column_count)
        offsets = rows[:, None] * column_count + columns[None, :]
        weight = tl.load(weight_ptr + offsets, mask=mask, other=0.0).to(dtype)
        x = tl.load(x_ptr + columns, mask=columns < column_count, other=0.0)
        total += weight * x[None, :]
    result = tl.sum(total, 1)
    if bias_ptr is not None:
        result += tl.load(bias_ptr + rows, mask=rows < row_count, other=0.0).to(dtype)
    return result


@triton.jit
def _squeeze_excitation_squeeze_kernel(
    mean_ptr,  # [N, C]
    weight_ptr,  # [K, C]
    bias_ptr,  # [K], or None
    hidden_ptr,  # [N, K]
    C,
    K,
    ACTIVATION: tl.constexpr,
    BLOCK: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    blocks = tl.cdiv(K, BLOCK)
    image = tl.program_id(0) // blocks
    rows = tl.program_id(0) % blocks * BLOCK + tl.arange(0, BLOCK)
    z = _linear(weight_ptr, bias_ptr, mean_ptr + image * C, rows, K, C, BLOCK, BLOCK_K)
    tl.store(hidden_ptr + image * K + rows, activate(z, 0.0, ACTIVATION), mask=rows < K)


@triton.jit
def _squeeze_excitation_scale_kernel(
    input_ptr,  # [N, C, S], or [N, S, C] if CHANNELS_LAST
    hidden_ptr,  # [N, K]
    weight_ptr,  # [C, K]
    bias_ptr,  # [C], or None
    output_ptr,  # as input
    C,
    S,
    K,
    HARD: tl.constexpr,
    CHANNELS_LAST: tl.constexpr,
    INT64: tl.constexpr,
    BLOCK_S: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    # each program makes the gates of its channels: cheaper than another launch
    blocks = tl.cdiv(C, BLOCK_C)
    channels = tl.program_id(0) % blocks * BLOCK_C + tl.arange(0, BLOCK_C)
    tiles = tl.cdiv(S, BLOCK_S)
    pixels = tl.program_id(0) // blocks % tiles * BLOCK_S + tl.arange(0, BLOCK_S)
    image = tl.program_id(0) // blocks // tiles
    z = _linear(weight_ptr, bias_ptr, hidden_ptr + image * K, channels, C, K, BLOCK_C, BLOCK_K)
    if HARD:
        z += 3
        gate = tl.where(z < 0, 0.0, tl.where(z > 6, 6.0, z)) / 6
    else:
        gate = tl.sigmoid(z)
    mask = (pixels[:, None] < S) & (channels[None, :] < C)
    offsets = _offsets(image, pixels, channels, C, S, CHANNELS_LAST, INT64)
    x = tl.load(input_ptr + offsets, mask=mask, other=0.0).to(gate.dtype)
    tl.store(output_ptr + offsets, (x * gate[None, :]).to(output_ptr.dtype.element_ty), mask=mask)


def launch_squeeze_excitation(
    input: Tensor,
    weight1: Tensor,
    bias1: Tensor | None,
    weight2: Tensor,
    bias2: Tensor | None,
    activation: int,
    hard: bool,
) -> Tensor:
    """input * gate, in the shape of ``input`` [N, C, H, W]."""
    format = format_of(input)
    output = torch.empty_like(input, memory_format=format)
    if input.numel() == 0:
        return output
    input = input.contiguous(memory_format=format)
    weight1, weight2 = weight1.contiguous(), weight2.contiguous()
    bias1, bias2 = (None if b is None else b.contiguous() for b in (bias1, bias2))
    (N, C, H, W), K = input.shape, weight1.shape[0]
    dtype = torch.promote_types(input.dtype, torch.float32)
    mean, hidden = (input.new_empty((N, n), dtype=dtype) for n in (C, K))
    block_s, block_c = tile(C, H * W, format == torch.channels_last)
    options = {
        "CHANNELS_LAST": format == torch.channels_last,
        "INT64": input.numel() >= 2**31,
        "BLOCK_S": block_s,
        "BLOCK_C": block_c,
        "num_warps": NUM_WARPS,
    }
    channel_blocks = triton.cdiv(C, block_c)
    with torch.cuda.device_of(input):
        _squeeze_excitation_mean_kernel[(N * channel_blocks,)](input, mean, C, H * W, **options)
        _squeeze_excitation_squeeze_kernel[(N * triton.cdiv(K, LINEAR_BLOCK),)](
            mean, weight1, bias1, hidden, C, K,
            ACTIVATION=activation, BLOCK=LINEAR_BLOCK,
            BLOCK_K=min(triton.next_power_of_2(C), 128), num_warps=NUM_WARPS,
        )  # fmt: skip
        _squeeze_excitation_scale_kernel[(N * channel_blocks * triton.cdiv(H * W, block_s),)](
            input, hidden, weight2, bias2, output, C, H * W, K,
            HARD=hard, BLOCK_K=min(triton.next_power_of_2(K), 64), **options,
        )  # fmt: skip
    return output
