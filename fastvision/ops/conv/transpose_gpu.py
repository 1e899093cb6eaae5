"""Transposed convolutions on GPUs: by cuDNN, or by Triton where it is faster."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ... import _device
from ..._memory_format import format_of
from .._backend import unsupported
from .prepared import by_torch, prepare
from .spec import ConvSpec, Weights, transposed_spec_of


def run(*args: Any) -> Tensor:
    """``fastvision::conv_transpose2d`` on CUDA tensors."""
    input, weights, residual = args[0], Weights(*args[1:7]), args[7]
    spec = transposed_spec_of(args[8:])
    if _triton_wins(input, weights.weight, spec.groups):
        return _by_triton(input, weights, residual, spec)
    return by_torch(input, prepare(weights, "aten", input.dtype, spec), residual, spec)


def run_triton(*args: Any) -> Tensor:
    """``fastvision::conv_transpose2d_triton``."""
    return _by_triton(args[0], Weights(*args[1:7]), args[7], transposed_spec_of(args[8:]))


def _triton_wins(input: Tensor, weight: Tensor, groups: int) -> bool:
    """Whether tensor cores support the dtype and the channels fill tiles, or there is one channel
    per group."""
    if input.dtype == torch.float64 or unsupported("triton", "cuda", input.device.index):
        return False
    C, K = weight.shape[0] // groups, weight.shape[1]
    if C == K == 1:
        return True
    fills = min(C, K) >= 16 and input.itemsize == 2
    return fills and _device.triton_has_tensor_cores(input.device.index)


def _by_triton(input: Tensor, weights: Weights, residual: Tensor | None, spec: ConvSpec) -> Tensor:
    from ...kernels.conv_transpose2d import launch_conv_transpose2d, launch_separable

    prepared = prepare(weights, "triton", input.dtype, spec)
    assert prepared.weight is not None
    kernel = tuple(weights.weight.shape[2:])
    shape = spec.output_shape(input.shape, weights.weight.shape)
    format = format_of(input) if prepared.separable is not None else torch.channels_last
    output = torch.empty(shape, dtype=input.dtype, device=input.device, memory_format=format)
    x = input.contiguous(memory_format=format)
    if residual is not None:
        residual = residual.contiguous(memory_format=format)
    left, _, top, _ = spec.padding
    end = (spec.stride, (top, left), spec.activation, spec.negative_slope)
    if prepared.separable is not None:
        scales = (prepared.separable.scale, prepared.shift)
        last = format == torch.channels_last
        launch_separable(x, prepared.weight, kernel, *scales, residual, output, last, *end)
        return output
    launch_conv_transpose2d(
        x, prepared.weight, prepared.scale, prepared.shift, residual, output, spec.groups,
        spec.dilation, *end,
    )  # fmt: skip
    return output.contiguous(memory_format=format_of(input))
