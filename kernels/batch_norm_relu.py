"""activation(batch_norm(input) + residual), forward and backward, with deterministic sums.

The input has N images of S pixels and C channels; channels_last is treated as a single image. A
tile is a block of pixels of one image by a block of channels. Sums run over tiles with one
accumulator per element of the tile, then over the tile, and finally over the programs' partial
results.

Over 450 lines because all kernels of the op share their tile.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from .._memory_format import is_channels_last, memory_format
from .common.activation import (
    HARDSWISH,
    LEAKY_RELU,
    RELU,
    RELU6,
    SIGMOID,
    SILU,
    activate,
)
from .common.scalars import as_double, double_bits
from .configs.batch_norm_relu import NUM_WARPS, splits, tile


@triton.jit
def _activation_gradient(grad, z, negative_slope, ACTIVATION: tl.constexpr):
    if ACTIVATION == RELU:
        grad = tl.where(z <= 0, 0.0, grad)
    elif ACTIVATION == RELU6:
        grad = tl.where((z <= 0) | (z >= 6), 0.0, grad)
    elif ACTIVATION == LEAKY_RELU:
        grad = tl.where(z > 0, grad, grad * negative_slope)
    elif ACTIVATION == SILU:
        s = tl.sigmoid(z)
        grad = grad * (s * (1 + z * (1 - s)))
    elif ACTIVATION == HARDSWISH:
        grad = tl.where(z <= -3, 0.0, tl.where(z >= 3, grad, grad * (z / 3 + 0.5)))
    elif ACTIVATION == SIGMOID:
        s = tl.sigmoid(z)
        grad = grad * (s * (1 - s))
    return grad


@triton.jit
def _tile(
    block,
    channel_block,
    C,
    S,
    CHANNELS_LAST: tl.constexpr,
    INT64: tl.constexpr,
    BLOCK_S: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """Offsets, mask and channels of a tile: [BLOCK_S, BLOCK_C], or [BLOCK_C, BLOCK_S] in NCHW."""
    blocks = tl.cdiv(S, BLOCK_S)
    image = block // blocks
    first = block % blocks * BLOCK_S
    if INT64:
        image = image.to(tl.int64)
        first = first.to(tl.int64)
    places = first + tl.arange(0, BLOCK_S)
    channels = channel_block * BLOCK_C + tl.arange(0, BLOCK_C)
    if CHANNELS_LAST:
        places = places[:, None]
        channels = channels[None, :]
        offsets = places * C + channels
    else:
        places = places[None, :]
        channels = channels[:, None]
        offsets = (image * C + channels) * S + places
    return offsets, (places < S) & (channels < C), channels


@triton.jit
def _load_affine(mean_ptr, var_ptr, weight_ptr, bias_ptr, channels, C, eps):
    mask = channels < C
    mean = tl.load(mean_ptr + channels, mask=mask, other=0.0)
    var = tl.load(var_ptr + channels, mask=mask, other=1.0)
    invstd = 1.0 / tl.sqrt(var + as_double(eps).to(var.dtype))
    scale = invstd
    if weight_ptr is not None:
        scale = invstd * tl.load(weight_ptr + channels, mask=mask, other=0.0)
    shift = tl.zeros_like(mean)
    if bias_ptr is not None:
        shift = tl.load(bias_ptr + channels, mask=mask, other=0.0)
    return mean, invstd, scale, shift


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
        offsets, mask, _ = _tile(block, channel_block, C, S, CHANNELS_LAST, INT64, BLOCK_S, BLOCK_C)
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
    offsets, mask, channels = _tile(
        block, channel_block, C, S, CHANNELS_LAST, INT64, BLOCK_S, BLOCK_C
    )
    mean, _, scale, shift = _load_affine(mean_ptr, var_ptr, weight_ptr, bias_ptr, channels, C, eps)
    x = tl.load(input_ptr + offsets, mask=mask, other=0.0).to(mean.dtype)
    z = tl.fma(x - mean, tl.broadcast_to(scale, x.shape), tl.broadcast_to(shift, x.shape))
    if residual_ptr is not None:
        z += tl.load(residual_ptr + offsets, mask=mask, other=0.0).to(z.dtype)
    slope = as_double(negative_slope).to(z.dtype)
    y = activate(z, slope, ACTIVATION)
    tl.store(output_ptr + offsets, y.to(output_ptr.dtype.element_ty), mask=mask)


@triton.jit
def _batch_norm_relu_sums_kernel(
    grad_ptr,  # [N, C, S], or [S, C] if CHANNELS_LAST
    input_ptr,  # as grad
    mean_ptr,  # [C]
    var_ptr,
    weight_ptr,  # [C], or None
    bias_ptr,
    residual_ptr,  # as grad, or None
    result_ptr,  # output of the forward, as grad, or None
    dz_ptr,  # as grad, or None
    partials_ptr,  # [splits, 2, C]
    C,
    S,
    blocks,
    splits,
    eps,  # bits of doubles
    negative_slope,
    ACTIVATION: tl.constexpr,
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
        first = tl.zeros([BLOCK_S, BLOCK_C], dtype)
    else:
        first = tl.zeros([BLOCK_C, BLOCK_S], dtype)
    second = tl.zeros_like(first)
    slope = as_double(negative_slope).to(dtype)
    for block in range(split, blocks, splits):
        offsets, mask, channels = _tile(
            block, channel_block, C, S, CHANNELS_LAST, INT64, BLOCK_S, BLOCK_C
        )
        mean, invstd, scale, shift = _load_affine(
            mean_ptr, var_ptr, weight_ptr, bias_ptr, channels, C, eps
        )
        x = tl.load(input_ptr + offsets, mask=mask, other=0.0).to(dtype)
        if result_ptr is not None:
            z = tl.load(result_ptr + offsets, mask=mask, other=0.0).to(dtype)
        else:
            z = tl.fma(x - mean, tl.broadcast_to(scale, x.shape), tl.broadcast_to(shift, x.shape))
            if residual_ptr is not None:
                z += tl.load(residual_ptr + offsets, mask=mask, other=0.0).to(dtype)
        grad = tl.load(grad_ptr + offsets, mask=mask, other=0.0).to(dtype)
        dz = _activation_gradient(grad, z, slope, ACTIVATION)
        if dz_ptr is not None:
            tl.store(dz_ptr + offsets, dz.to(dz_ptr.dtype.element_ty), mask=mask)
        dz = tl.where(mask, dz, 0.0)
        first += dz
        second += tl.where(mask, dz * ((x - mean) * invstd), 0.0)
    channels = channel_block * BLOCK_C + tl.arange(0, BLOCK_C)
    to = partials_ptr + split * 2 * C + channels
    tl.store(to, tl.sum(first, axis), mask=channels < C)
    tl.store(to + C, tl.sum(second, axis), mask=channels < C)


@triton.jit
def _batch_norm_relu_backward_kernel(
    grad_ptr,  # [N, C, S], or [S, C] if CHANNELS_LAST
    input_ptr,  # as grad
    mean_ptr,  # [C]
    var_ptr,
    weight_ptr,  # [C], or None
    bias_ptr,
    sums_ptr,  # [2, C], or None
    output_ptr,  # as grad
    C,
    S,
    share,  # bits of doubles: 1 / elements per channel
    eps,
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
    offsets, mask, channels = _tile(
        block, channel_block, C, S, CHANNELS_LAST, INT64, BLOCK_S, BLOCK_C
    )
    mean, invstd, scale, shift = _load_affine(
        mean_ptr, var_ptr, weight_ptr, bias_ptr, channels, C, eps
    )
    x = tl.load(input_ptr + offsets, mask=mask, other=0.0).to(mean.dtype)
    z = tl.fma(x - mean, tl.broadcast_to(scale, x.shape), tl.broadcast_to(shift, x.shape))
    grad = tl.load(grad_ptr + offsets, mask=mask, other=0.0).to(mean.dtype)
    slope = as_double(negative_slope).to(mean.dtype)
    dx = _activation_gradient(grad, z, slope, ACTIVATION)
    if sums_ptr is not None:
        part = as_double(share).to(mean.dtype)
        of_bias = tl.load(sums_ptr + channels, mask=channels < C, other=0.0) * part
        of_weight = tl.load(sums_ptr + C + channels, mask=channels < C, other=0.0) * part
        dx = dx - of_bias - (x - mean) * (invstd * of_weight)
    tl.store(output_ptr + offsets, (dx * scale).to(output_ptr.dtype.element_ty), mask=mask)


class _Layout:
    """Images, pixels, channels and tiles of an input."""

    def __init__(self, input: Tensor) -> None:
        self.N, self.C = input.shape[:2]
        self.S = input.numel() // max(self.N * self.C, 1)
        last = input.dim() == 4 and is_channels_last(input)
        self.format = memory_format(last)
        self.channels_last = last or self.S == 1
        if self.channels_last:
            self.N, self.S = 1, self.N * self.S
        block_s, block_c = tile(max(self.C, 1), max(self.S, 1), self.channels_last)
        self.blocks = self.N * triton.cdiv(self.S, block_s)
        self.channel_blocks = triton.cdiv(self.C, block_c)
        self.splits = splits(self.blocks, self.channel_blocks)
        self.options = {
            "CHANNELS_LAST": self.channels_last,
            "INT64": input.numel() >= 2**31,
            "BLOCK_S": block_s,
            "BLOCK_C": block_c,
            "num_warps": NUM_WARPS,
        }

    def dense(self, x: Tensor | None) -> Tensor | None:
        return None if x is None else x.contiguous(memory_format=self.format)

    def empty_like(self, x: Tensor) -> Tensor:
        return torch.empty_like(x, memory_format=self.format)


def _channels(input: Tensor, *shape: int) -> Tensor:
    return input.new_empty(shape, dtype=torch.promote_types(input.dtype, torch.float32))


def launch_batch_norm_relu_statistics(
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    momentum: float,
) -> tuple[Tensor, Tensor]:
    """Returns mean and variance, [C] each, and updates the running statistics."""
    layout = _Layout(input)
    partials = _channels(input, layout.splits, 3, layout.C)
    mean, var = (_channels(input, layout.C) for _ in range(2))
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
    layout = _Layout(input)
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


def launch_batch_norm_relu_sums(
    grad: Tensor,
    input: Tensor,
    mean: Tensor,
    var: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    residual: Tensor | None,
    output: Tensor | None,
    eps: float,
    activation: int,
    negative_slope: float,
) -> tuple[Tensor, Tensor]:
    """Gradients of bias and weight, [2, C], and dz if ``residual`` or ``output`` is given."""
    layout = _Layout(input)
    given = residual is not None or output is not None
    dz = layout.empty_like(input) if given else None
    if input.numel() == 0:
        sums = _channels(input, 2, layout.C).zero_()
    else:
        partials = _channels(input, layout.splits, 2, layout.C)
        with torch.cuda.device_of(input):
            _batch_norm_relu_sums_kernel[(layout.splits * layout.channel_blocks,)](
                layout.dense(grad), layout.dense(input), mean, var, weight, bias,
                layout.dense(residual), layout.dense(output), dz, partials, layout.C, layout.S,
                layout.blocks, layout.splits, double_bits(eps), double_bits(negative_slope),
                ACTIVATION=activation, **layout.options,
            )  # fmt: skip
        sums = partials.sum(0)
    return sums, _channels(input, 0) if dz is None else dz


def launch_batch_norm_relu_backward(
    grad: Tensor,
    input: Tensor,
    mean: Tensor,
    var: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    sums: Tensor | None,
    count: int,
    eps: float,
    activation: int,
    negative_slope: float,
) -> Tensor:
    """Gradient of ``input``."""
    layout = _Layout(input)
    output = layout.empty_like(input)
    if input.numel() > 0:
        with torch.cuda.device_of(input):
            _batch_norm_relu_backward_kernel[(layout.blocks * layout.channel_blocks,)](
                layout.dense(grad), layout.dense(input), mean, var, weight, bias, sums, output,
                layout.C, layout.S, double_bits(1 / count), double_bits(eps),
                double_bits(negative_slope), ACTIVATION=activation, **layout.options,
            )  # fmt: skip
    return output


def launch_batch_norm_relu_gradients(
    grad: Tensor,
    input: Tensor,
    mean: Tensor,
    var: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    residual: Tensor | None,
    output: Tensor | None,
    of_batch: bool,
    eps: float,
    activation: int,
    negative_slope: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """Sums and dz, and the gradient of ``input``, of whose statistics ``of_batch`` tells."""
    affine = (mean, var, weight, bias)
    sums, dz = launch_batch_norm_relu_sums(
        grad, input, *affine, residual, output, eps, activation, negative_slope
    )
    if residual is not None or output is not None:  # the sums took the activation into account
        grad, activation = dz, 0
    count = max(input.numel() // max(input.shape[1], 1), 1)
    dx = launch_batch_norm_relu_backward(
        grad, input, *affine, sums if of_batch else None, count, eps, activation, negative_slope
    )
    return sums, dz, dx
