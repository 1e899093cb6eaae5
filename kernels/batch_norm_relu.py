"""activation(batch_norm(input) + residual), with deterministic sums.

Sums run over tiles with one accumulator per element of the tile, then over the tile, and finally
over the programs' partial results.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from .common.activation import activate
from .common.batch_norm import Layout, empty_channels, load_affine, tile_of
from .common.scalars import as_double, double_bits


@triton.jit
def _batch_norm_relu_statistics_kernel(
    input_ptr,  # [N, C, S], or [S, C] if CHANNELS_LAST
    partials_ptr,  # [splits, 3, C] count, mean, sum of squared deviations
    C,
    S,
    blocks,
    splits,
    CHANNELS_LAST: tl.constexpr,
    INT64: tl.constexpr,
    BLOCK_S: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    channel_blocks = tl.cdiv(C, BLOCK_C)
    channel_block = tl.program_id(0) % channel_blocks
    split = tl.program_id(0) // channel_blocks
    axis: tl.constexpr = 0 if CHANNELS_LAST else 1
    dtype: tl.constexpr = partials_ptr.dtype.element_ty
    if CHANNELS_LAST:
        mean = tl.zeros([BLOCK_S, BLOCK_C], dtype)
    else:
        mean = tl.zeros([BLOCK_C, BLOCK_S], dtype)
    count = tl.zeros_like(mean)
    squares = tl.zeros_like(mean)
    # one update per element (Welford 1962) avoids cancellation if the mean is large
    for block in range(split, blocks, splits):
        offsets, mask, _ = tile_of(
            block, channel_block, C, S, CHANNELS_LAST, INT64, BLOCK_S, BLOCK_C
        )
        x = tl.load(input_ptr + offsets, mask=mask, other=0.0).to(dtype)
        count += mask.to(dtype)
        difference = tl.where(mask, x - mean, 0.0)
        mean += difference / tl.maximum(count, 1.0)
        squares += tl.where(mask, difference * (x - mean), 0.0)
    # merge the accumulators of the tile (Chan, Golub and LeVeque 1983)
    total = tl.sum(count, axis, keep_dims=True)
    merged = tl.sum(count * mean, axis, keep_dims=True) / tl.maximum(total, 1.0)
    merged += tl.sum(count * (mean - merged), axis, keep_dims=True) / tl.maximum(total, 1.0)
    squares += count * (mean - merged) * (mean - merged)
    channels = channel_block * BLOCK_C + tl.arange(0, BLOCK_C)
    to = partials_ptr + split * 3 * C + channels
    tl.store(to, tl.sum(count, axis), mask=channels < C)
    tl.store(to + C, tl.sum(merged, axis), mask=channels < C)
    tl.store(to + 2 * C, tl.sum(squares, axis), mask=channels < C)


@triton.jit
def _batch_norm_relu_merge_kernel(
    partials_ptr,  # [splits, 3, C]
    mean_ptr,  # [C]
    var_ptr,
    running_mean_ptr,  # [C], or None
    running_var_ptr,
    C,
    splits,
    momentum,  # bits of a double
    BLOCK_C: tl.constexpr,
):
    channels = tl.program_id(0) * BLOCK_C + tl.arange(0, BLOCK_C)
    mask = channels < C
    count = tl.zeros([BLOCK_C], tl.float64)
    mean = tl.zeros([BLOCK_C], tl.float64)
    for split in range(splits):
        at = partials_ptr + split * 3 * C + channels
        n = tl.load(at, mask=mask, other=0.0).to(tl.float64)
        count += n
        mean += n * tl.load(at + C, mask=mask, other=0.0).to(tl.float64)
    mean /= tl.where(mask, count, 1.0)
    squares = tl.zeros([BLOCK_C], tl.float64)
    for split in range(splits):
        at = partials_ptr + split * 3 * C + channels
        n = tl.load(at, mask=mask, other=0.0).to(tl.float64)
        difference = tl.load(at + C, mask=mask, other=0.0).to(tl.float64) - mean
        squares += tl.load(at + 2 * C, mask=mask, other=0.0).to(tl.float64)
        squares += n * difference * difference
    var = squares / tl.where(mask, count, 1.0)
    tl.store(mean_ptr + channels, mean, mask=mask)
    tl.store(var_ptr + channels, var, mask=mask)
    if running_mean_ptr is not None:
        old = tl.load(running_mean_ptr + channels, mask=mask, other=0.0).to(tl.float64)
        new = old + (mean - old) * as_double(momentum)
        tl.store(running_mean_ptr + channels, new, mask=mask)
    if running_var_ptr is not None:
        unbiased = squares / tl.where(mask, count - 1.0, 1.0)
        old = tl.load(running_var_ptr + channels, mask=mask, other=0.0).to(tl.float64)
        new = old + (unbiased - old) * as_double(momentum)
        tl.store(running_var_ptr + channels, new, mask=mask)


@triton.jit
def _batch_norm_relu_forward_kernel(
    input_ptr,  # [N, C, S], or [S, C] if CHANNELS_LAST
    mean_ptr,  # [C]
    var_ptr,
    weight_ptr,  # [C], or None
    bias_ptr,
    residual_ptr,  # as input, or None
    output_ptr,  # as input
    C,
    S,
    eps,  # bits of doubles
    negative_slope,
    ACTIVATION: tl.constexpr,
    CHANNELS_LAST: tl.constexpr,
    INT64: tl.constexpr,
    BLOCK_S: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    channel_blocks = tl.cdiv(C, BLOCK_C)
    block = tl.program_id(0) // channel_blocks
    channel_block = tl.program_id(0) % channel_blocks
    offsets, mask, channels = tile_of(
        block, channel_block, C, S, CHANNELS_LAST, INT64, BLOCK_S, BLOCK_C
    )
    mean, _, scale, shift = load_affine(mean_ptr, var_ptr, weight_ptr, bias_ptr, channels, C, eps)
    x = tl.load(input_ptr + offsets, mask=mask, other=0.0).to(mean.dtype)
    z = tl.fma(x - mean, tl.broadcast_to(scale, x.shape), tl.broadcast_to(shift, x.shape))
    if residual_ptr is not None:
        z += tl.load(residual_ptr + offsets, mask=mask, other=0.0).to(z.dtype)
    slope = as_double(negative_slope).to(z.dtype)
    y = activate(z, slope, ACTIVATION)
    tl.store(output_ptr + offsets, y.to(output_ptr.dtype.element_ty), mask=mask)


def launch_batch_norm_relu_statistics(
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    momentum: float,
) -> tuple[Tensor, Tensor]:
    """Returns mean and variance, [C] each, and updates the running statistics."""
    layout = Layout(input)
    partials = empty_channels(input, layout.splits, 3, layout.C)
    mean, var = (empty_channels(input, layout.C) for _ in range(2))
    with torch.cuda.device_of(input):
        _batch_norm_relu_statistics_kernel[(layout.splits * layout.channel_blocks,)](
            layout.dense(input), partials, layout.C, layout.S, layout.blocks, layout.splits,
            **layout.options,
        )  # fmt: skip
        block = min(triton.next_power_of_2(layout.C), 128)
        _batch_norm_relu_merge_kernel[(triton.cdiv(layout.C, block),)](
            partials, mean, var, running_mean, running_var, layout.C, layout.splits,
            double_bits(momentum), BLOCK_C=block,
        )  # fmt: skip
    return mean, var


def launch_batch_norm_relu(
    input: Tensor,
    mean: Tensor,
    var: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    residual: Tensor | None,
    eps: float,
    activation: int,
    negative_slope: float,
) -> Tensor:
    """activation(batch_norm(input) + residual), in the shape of ``input``."""
    layout = Layout(input)
    output = layout.empty_like(input)
    if input.numel() > 0:
        with torch.cuda.device_of(input):
            _batch_norm_relu_forward_kernel[(layout.blocks * layout.channel_blocks,)](
                layout.dense(input), mean, var, weight, bias, layout.dense(residual), output,
                layout.C, layout.S, double_bits(eps), double_bits(negative_slope),
                ACTIVATION=activation, **layout.options,
            )  # fmt: skip
    return output


def launch_batch_norm_relu_training(
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    residual: Tensor | None,
    momentum: float,
    eps: float,
    activation: int,
    negative_slope: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """The same with the batch's mean and var, which are returned too."""
    mean, var = launch_batch_norm_relu_statistics(input, running_mean, running_var, momentum)
    affine = (mean, var, weight, bias)
    output = launch_batch_norm_relu(input, *affine, residual, eps, activation, negative_slope)
    return output, mean, var
