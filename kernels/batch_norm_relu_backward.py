"""Gradients of activation(batch_norm(input) + residual), with sums as in the forward."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from .common.activation import HARDSWISH, LEAKY_RELU, RELU, RELU6, SIGMOID, SILU
from .common.batch_norm import Layout, empty_channels, load_affine, tile_of
from .common.scalars import as_double, double_bits


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
        offsets, mask, channels = tile_of(
            block, channel_block, C, S, CHANNELS_LAST, INT64, BLOCK_S, BLOCK_C
        )
        mean, invstd, scale, shift = load_affine(
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
    offsets, mask, channels = tile_of(
        block, channel_block, C, S, CHANNELS_LAST, INT64, BLOCK_S, BLOCK_C
    )
    mean, invstd, scale, shift = load_affine(
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
    layout = Layout(input)
    given = residual is not None or output is not None
    dz = layout.empty_like(input) if given else None
    if input.numel() == 0:
        sums = empty_channels(input, 2, layout.C).zero_()
    else:
        partials = empty_channels(input, layout.splits, 2, layout.C)
        with torch.cuda.device_of(input):
            _batch_norm_relu_sums_kernel[(layout.splits * layout.channel_blocks,)](
                layout.dense(grad), layout.dense(input), mean, var, weight, bias,
                layout.dense(residual), layout.dense(output), dz, partials, layout.C, layout.S,
                layout.blocks, layout.splits, double_bits(eps), double_bits(negative_slope),
                ACTIVATION=activation, **layout.options,
            )  # fmt: skip
        sums = partials.sum(0)
    return sums, empty_channels(input, 0) if dz is None else dz


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
    layout = Layout(input)
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
