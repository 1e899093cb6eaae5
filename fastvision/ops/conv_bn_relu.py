"""Convolution, batch normalization, residual and activation as one op."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .. import _extension, reference
from ..reference.activations import ACTIVATIONS
from ..reference.roi_align import is_channels_last
from . import _onednn
from ._backend import choose
from ._checks import is_eager
from ._convolution import (
    check_channels,
    check_maps,
    check_parameters,
    check_residual,
    check_window,
)
from ._packing import remembered

# padding: left, right, top, bottom; activation: index in ACTIVATIONS
_SCHEMA = (
    "(Tensor input, Tensor weight, Tensor? bias, Tensor? bn_weight, Tensor? bn_bias, "
    "Tensor? running_mean, Tensor? running_var, Tensor? residual, SymInt[] stride, "
    "SymInt[] padding, SymInt[] dilation, SymInt groups, float eps, int activation, "
    "float negative_slope) -> Tensor"
)
for _suffix in ("", "_triton"):
    torch.library.define(f"fastvision::conv_bn_relu{_suffix}", _SCHEMA)
torch.library.define(
    "fastvision::conv_pack", "(Tensor weight, Tensor? bias, SymInt groups) -> Tensor"
)
torch.library.define(
    "fastvision::conv_packed",
    "(Tensor input, Tensor packed, Tensor? residual, int K, int R, int S, int stride_y, "
    "int stride_x, int left, int right, int top, int bottom, int dilation_y, int dilation_x, "
    "int groups, int activation, float negative_slope) -> Tensor",
)

torch.library.define("fastvision::conv_winograd_pack", "(Tensor weight, Tensor? bias) -> Tensor")
torch.library.define(
    "fastvision::conv_winograd",
    "(Tensor input, Tensor packed, Tensor? residual, int K, int left, int right, int top, "
    "int bottom, int activation, float negative_slope) -> Tensor",
)


def output_size(
    size: Sequence[int],
    kernel: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
) -> tuple[int, int]:
    """Height and width of a convolution's result; ``padding`` is left, right, top, bottom."""
    left, right, top, bottom = padding
    height = (size[0] + top + bottom - dilation[0] * (kernel[0] - 1) - 1) // stride[0] + 1
    width = (size[1] + left + right - dilation[1] * (kernel[1] - 1) - 1) // stride[1] + 1
    return height, width


def _fake(input: Tensor, weight: Tensor, *rest: Any) -> Tensor:
    stride, padding, dilation = rest[6:9]
    size = output_size(input.shape[2:], weight.shape[2:], stride, padding, dilation)
    output = input.new_empty((input.shape[0], weight.shape[0], *size))
    format = torch.channels_last if is_channels_last(input) else torch.contiguous_format
    return output.to(memory_format=format)


def _pack(tensors: Sequence[Any], dtype: torch.dtype, groups: int | None, eps: float) -> Tensor:
    """Weight, bias and batch normalization in the engine's layout, or Winograd's for no groups."""
    weight, bias, bn_weight, bn_bias, mean, var = tensors
    weight, bias = reference.fold_batch_norm(weight, bias, bn_weight, bn_bias, mean, var, eps)
    weight, bias = weight.to(dtype), None if bias is None else bias.to(dtype)
    if groups is None:
        return torch.ops.fastvision.conv_winograd_pack.default(weight, bias)
    return torch.ops.fastvision.conv_pack.default(weight, bias, groups)


def _winograd_wins(
    input: Tensor, weight: Tensor, stride: Sequence[int], dilation: Sequence[int], groups: int
) -> bool:
    """3x3 with so many channels that the transforms, and tiles that the weights, are worth it."""
    images, C, height, width = input.shape
    return (
        weight.shape[2] == weight.shape[3] == 3
        and groups == 1
        and C >= 32
        and weight.shape[0] >= 32
        and input.dtype == torch.float32
        and images * height * width >= 144
        and (stride[0], stride[1], dilation[0], dilation[1]) == (1, 1, 1, 1)
        and is_channels_last(input)
    )


def _cpu(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    bn_weight: Tensor | None,
    bn_bias: Tensor | None,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    residual: Tensor | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
    eps: float,
    activation: int,
    negative_slope: float,
) -> Tensor:
    dtype = torch.float64 if input.dtype == torch.float64 else torch.float32
    tensors = (weight, bias, bn_weight, bn_bias, running_mean, running_var)
    name = ACTIVATIONS[activation]
    if _onednn.preferred(input, weight, residual, padding, groups, name):
        return _onednn.convolution(
            input, tensors, residual, stride, padding, dilation, eps, activation
        )
    level = _extension.cpu_level()
    if _winograd_wins(input, weight, stride, dilation, groups):
        packed = remembered(tensors, ("winograd", eps, level), _pack, dtype, None, eps)
        return torch.ops.fastvision.conv_winograd.default(
            input, packed, residual, weight.shape[0], *padding, activation, negative_slope
        )
    purpose = ("conv", dtype, groups, eps, level)
    packed = remembered(tensors, purpose, _pack, dtype, groups, eps)
    return torch.ops.fastvision.conv_packed.default(
        input,
        packed,
        residual,
        weight.shape[0],
        *weight.shape[2:],
        *stride,
        *padding,
        *dilation,
        groups,
        activation,
        negative_slope,
    )


for _suffix in ("", "_triton"):
    torch.library.register_fake(f"fastvision::conv_bn_relu{_suffix}", _fake)
torch.library.impl("fastvision::conv_bn_relu", "CPU", _cpu)

_OP = torch.ops.fastvision.conv_bn_relu.default


def _pair(value: int | Sequence[int], name: str) -> tuple[int, int]:
    if isinstance(value, int):
        return value, value
    if len(value) != 2:
        raise ValueError(f"{name} must be an int or two of them, got {value!r}")
    return value[0], value[1]


def _paddings(
    padding: int | Sequence[int] | str,
    kernel: Sequence[int],
    stride: tuple[int, int],
    dilation: tuple[int, int],
) -> tuple[int, int, int, int]:
    """Left, right, top, bottom of torch's forms of padding, or those four themselves."""
    if padding == "valid":
        return 0, 0, 0, 0
    if padding == "same":
        if stride != (1, 1):
            raise ValueError(f"padding='same' needs stride 1, got {stride}")
        vertical, horizontal = (d * (k - 1) for d, k in zip(dilation, kernel, strict=True))
        left, top = horizontal // 2, vertical // 2
        return left, horizontal - left, top, vertical - top
    if isinstance(padding, str):
        raise ValueError(f"padding must be 'same', 'valid' or numbers, got {padding!r}")
    if not isinstance(padding, int) and len(padding) == 4:
        return padding[0], padding[1], padding[2], padding[3]
    vertical, horizontal = _pair(padding, "padding")
    return horizontal, horizontal, vertical, vertical


def conv_bn_relu(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    bn_weight: Tensor | None = None,
    bn_bias: Tensor | None = None,
    running_mean: Tensor | None = None,
    running_var: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
    stride: int | Sequence[int] = 1,
    padding: int | Sequence[int] | str = 0,
    dilation: int | Sequence[int] = 1,
    groups: int = 1,
    residual: Tensor | None = None,
    activation: str = "relu",
    negative_slope: float = 0.01,
    backend: str | None = None,
) -> Tensor:
    """activation(batch_norm(conv2d(input, weight, bias)) + residual).

    On the CPU in float32 and channels_last, 3x3 convolutions of stride 1 with 32 channels and more
    are computed by Winograd's minimal filtering (Lavin and Gray, 2016), whose root mean square
    error stays below twice that of the plain sum, and which makes NaN of infinite values.
    """
    check_maps(input, weight)
    if activation not in ACTIVATIONS:
        raise ValueError(f"activation must be one of {ACTIVATIONS}, got {activation!r}")
    strides, dilations = _pair(stride, "stride"), _pair(dilation, "dilation")
    paddings = _paddings(padding, weight.shape[2:], strides, dilations)
    check_window(strides, paddings, dilations, groups)
    K = weight.shape[0]
    if K % groups != 0:
        raise ValueError(f"groups must divide the {K} filters of weight, got {groups}")
    check_channels(
        input, f"weight {list(weight.shape)} and {groups} groups", groups * weight.shape[1]
    )
    check_parameters(
        K,
        input,
        running_mean,
        running_var,
        training,
        bias=bias,
        bn_weight=bn_weight,
        bn_bias=bn_bias,
    )
    size = output_size(input.shape[2:], weight.shape[2:], strides, paddings, dilations)
    if min(size) < 1:
        raise ValueError(
            f"weight's window {list(weight.shape[2:])} with dilation {dilations} does not fit into "
            f"input {list(input.shape[2:])} with padding {paddings}"
        )
    check_residual(residual, input, (input.shape[0], K, *size))
    tensors = (input, weight, bias, bn_weight, bn_bias, running_mean, running_var, residual)
    options = (strides, paddings, dilations, groups, eps)
    if choose(input, backend) == "reference" or (
        torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors)
    ):
        return reference.conv_bn_relu(*tensors, *options, activation, negative_slope)
    # the dispatcher's boxing of so many arguments takes longer than a small convolution
    run = _cpu if input.is_cpu and type(input) is Tensor and is_eager() else _OP
    return run(*tensors, *options, ACTIVATIONS.index(activation), negative_slope)
