"""Parses and checks the options of a convolution, and checks its tensors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from ...reference.activations import ACTIVATIONS
from .._checks import (
    check_activation,
    check_floating,
    check_tensor,
    integer,
    pair,
)

MAX_SIZE = 2**31 - 1  # sizes are computed in 64 bits

# schema of the operators that torch.jit.trace records; {geometry} differs between them
TRACED_SCHEMA = (
    "(Tensor input, Tensor weight, Tensor? bias, Tensor? bn_weight, Tensor? bn_bias, "
    "Tensor(a!)? running_mean, Tensor(b!)? running_var, Tensor? residual, bool training, "
    "float momentum, float eps, {geometry}, str activation, float negative_slope, str? backend)"
    " -> Tensor"
)


class Weights(NamedTuple):
    """The parameters of a convolution and the normalization after it."""

    weight: Tensor  # [K, C / groups, R, S]; transposed: [C, K / groups, R, S]
    bias: Tensor | None = None
    bn_weight: Tensor | None = None
    bn_bias: Tensor | None = None
    running_mean: Tensor | None = None
    running_var: Tensor | None = None


class ConvSpec(NamedTuple):
    """The options of a convolution and its epilogue; hashable."""

    stride: tuple[int, int]  # vertical, horizontal, like all pairs
    padding: tuple[int, int, int, int]  # left, right, top, bottom
    dilation: tuple[int, int]
    groups: int
    eps: float
    activation: int  # index in ACTIVATIONS
    negative_slope: float
    transposed: bool = False
    output_padding: tuple[int, int] = (0, 0)

    def output_size(self, size: Sequence[int], kernel: Sequence[int]) -> tuple[int, int]:
        """Height and width of the result."""
        if self.transposed:
            window = (self.stride, self.padding, self.output_padding, self.dilation)
            return transposed_output_size(size, kernel, *window)
        return output_size(size, kernel, self.stride, self.padding, self.dilation)

    def output_shape(
        self, shape: Sequence[int], weight: Sequence[int]
    ) -> tuple[int, int, int, int]:
        """Shape of the result, given the shapes of input and weight."""
        channels = weight[1] * self.groups if self.transposed else weight[0]
        return (shape[0], channels, *self.output_size(shape[2:], weight[2:]))

    def arguments(self) -> tuple[Any, ...]:
        """The operator's arguments after the tensors."""
        end = (self.eps, self.activation, self.negative_slope)
        if self.transposed:
            left, _, top, _ = self.padding
            window = (self.stride, (top, left), self.output_padding, self.groups, self.dilation)
            return (*window, *end)
        return (self.stride, self.padding, self.dilation, self.groups, *end)

    @property
    def activation_name(self) -> str:
        return ACTIVATIONS[self.activation]


def spec_of(arguments: Sequence[Any]) -> ConvSpec:
    """Inverse of :meth:`ConvSpec.arguments` for a convolution."""
    stride, padding, dilation, *rest = arguments
    return ConvSpec(tuple(stride), tuple(padding), tuple(dilation), *rest)


def transposed_spec_of(arguments: Sequence[Any]) -> ConvSpec:
    """Inverse of :meth:`ConvSpec.arguments` for a transposed convolution."""
    stride, (top, left), output_padding, groups, dilation, *end = arguments
    window = (tuple(stride), (left, left, top, top), tuple(dilation), groups)
    return ConvSpec(*window, *end, True, tuple(output_padding))  # type: ignore[call-arg]


def parse(
    kernel: Sequence[int],
    stride: int | Sequence[int],
    padding: int | Sequence[int] | str,
    dilation: int | Sequence[int],
    groups: int,
    eps: float,
    activation: str,
    negative_slope: float,
    output_padding: int | Sequence[int] = 0,
    *,
    transposed: bool = False,
) -> ConvSpec:
    """The spec for options in any form torch accepts. ``kernel``: height and width of the window.

    Raises:
        TypeError, ValueError: an invalid option; the message names it.
    """
    check_activation(activation, negative_slope)
    strides, dilations = pair(stride, "stride"), pair(dilation, "dilation")
    if transposed:
        top, left = pair(padding, "padding")  # type: ignore[arg-type]
        sides = (left, left, top, top)
    else:
        sides = paddings(padding, kernel, strides, dilations)
    groups = integer(groups, "groups must be an integer")
    for values, name, least in (
        (strides, "stride", 1),
        ((top, left) if transposed else sides, "padding", 0),
        (dilations, "dilation", 1),
        ((groups,), "groups", 1),
    ):
        for value in values:
            if value < least:
                raise ValueError(f"{name} must be at least {least}, got {tuple(values)}")
            if value > MAX_SIZE:
                raise ValueError(f"{name} must be at most {MAX_SIZE}, got {tuple(values)}")
    window = (strides, sides, dilations, groups)
    end = (eps, ACTIVATIONS.index(activation), negative_slope)
    if not transposed:
        return ConvSpec(*window, *end)
    extra = pair(output_padding, "output_padding")
    for p, s, d in zip(extra, strides, dilations, strict=True):
        if not 0 <= p < max(s, d):
            raise ValueError(
                "output_padding must not be negative, and smaller than stride or dilation, got "
                f"{output_padding} with stride {stride} and dilation {dilation}"
            )
    return ConvSpec(*window, *end, transposed=True, output_padding=extra)


def paddings(
    padding: int | Sequence[int] | str,
    kernel: Sequence[int],
    stride: tuple[int, int],
    dilation: tuple[int, int],
) -> tuple[int, int, int, int]:
    """Left, right, top, bottom of a padding in any form torch accepts, or as those four."""
    if isinstance(padding, str):
        if padding == "valid":
            return 0, 0, 0, 0
        if padding != "same":
            raise ValueError(f"padding must be 'same', 'valid' or numbers, got {padding!r}")
        if stride != (1, 1):
            raise ValueError(f"padding='same' needs stride 1, got {stride}")
        vertical, horizontal = (d * (k - 1) for d, k in zip(dilation, kernel, strict=True))
        left, top = horizontal // 2, vertical // 2
        return left, horizontal - left, top, vertical - top
    if isinstance(padding, (tuple, list)) and len(padding) == 4:
        what = "padding must be one, two or four integers"
        left, right, top, bottom = (integer(side, what) for side in padding)
        return left, right, top, bottom
    vertical, horizontal = pair(padding, "padding")
    return horizontal, horizontal, vertical, vertical


def symmetric_padding(input: Tensor, padding: Sequence[int]) -> tuple[Tensor, tuple[int, int]]:
    """Input and (vertical, horizontal) padding for torch's convolution.

    Pads the input if the padding is asymmetric.
    """
    left, right, top, bottom = padding
    if left == right and top == bottom:
        return input, (top, left)
    return F.pad(input, (left, right, top, bottom)), (0, 0)


def sizes_of(value: Any) -> Sequence[int]:
    """``value`` as a sequence, which operators take."""
    return value if isinstance(value, (tuple, list)) else (value,)


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


def transposed_output_size(
    size: Sequence[int],
    kernel: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    output_padding: Sequence[int],
    dilation: Sequence[int],
) -> tuple[int, int]:
    """Height and width of a transposed convolution's result; padding as in :func:`output_size`."""
    left, _, top, _ = padding
    height, width = (
        (n - 1) * s - 2 * p + d * (k - 1) + extra + 1
        for n, k, s, p, extra, d in zip(
            size, kernel, stride, (top, left), output_padding, dilation, strict=True
        )
    )
    return height, width


def autocast(
    input: Tensor, weight: Any, residual: Tensor | None
) -> tuple[Tensor, Any, Tensor | None]:
    """Casts the arguments as autocast does for a convolution, except for a float32 weight.

    That is packed without rounding.
    """
    if not (input.is_cpu or input.is_cuda) or not input.is_floating_point():
        return input, weight, residual
    kind = input.device.type
    if input.dtype == torch.float64 or not torch.is_autocast_enabled(kind):
        return input, weight, residual
    dtype = torch.get_autocast_dtype(kind)
    if weight is not None and weight.dtype != torch.float32:
        weight = weight.to(dtype)
    residual = residual.to(dtype) if isinstance(residual, Tensor) else residual
    return input.to(dtype), weight, residual


def check_maps(input: object, weight: object) -> None:
    """Checks for 4-D floating-point tensors on one device; ``input`` is known to be a tensor.

    16-bit input may have a float32 weight.
    """
    check_tensor(weight, "weight")
    assert isinstance(input, Tensor) and isinstance(weight, Tensor)
    for tensor, name in ((input, "input"), (weight, "weight")):
        if tensor.dim() != 4:
            raise ValueError(f"{name} must have 4 dimensions, got shape {list(tensor.shape)}")
        check_floating(tensor.dtype, name)
    if 0 in weight.shape:
        raise ValueError(f"weight must not be empty, got shape {list(weight.shape)}")
    if weight.dtype != input.dtype and not (weight.itemsize == 4 and input.itemsize == 2):
        raise TypeError(
            f"weight must have the type of input, {input.dtype}, or be float32 with 16-bit "
            f"input, got {weight.dtype}"
        )
    if weight.device != input.device:
        raise ValueError(f"weight must be on {input.device} as input, got {weight.device}")


def check_channels(channels: int, name: str, expected: int) -> None:
    if channels != expected:
        raise ValueError(f"input must have {expected} channels for {name}, got {channels}")


def check_parameters(channels: int, device: torch.device, weights: Weights, training: bool) -> None:
    """Checks for one value per output channel, and for statistics if they are needed."""
    for name, tensor in zip(weights._fields[1:], weights[1:], strict=True):
        if tensor is None:
            continue
        check_tensor(tensor, name)
        if tensor.shape != (channels,):
            raise ValueError(f"{name} must have shape [{channels}], got {list(tensor.shape)}")
        check_floating(tensor.dtype, name)
        if tensor.device != device:
            raise ValueError(f"{name} must be on {device} as input, got {tensor.device}")
    running_mean, running_var = weights.running_mean, weights.running_var
    if (running_mean is None) != (running_var is None):
        missing = "running_mean" if running_mean is None else "running_var"
        raise ValueError(f"running_mean and running_var go together, {missing} is None")
    normalizes = weights.bn_weight is not None or weights.bn_bias is not None
    if normalizes and running_mean is None and not training:
        raise ValueError("bn_weight and bn_bias need running_mean and running_var, which are None")


def check_residual(residual: Tensor, input: Tensor, shape: Sequence[int]) -> None:
    check_tensor(residual, "residual")
    if residual.shape != tuple(shape):
        raise ValueError(
            f"residual must have the result's shape {list(shape)}, got {list(residual.shape)}"
        )
    if residual.dtype != input.dtype or residual.device != input.device:
        raise ValueError(
            f"residual must be {input.dtype} on {input.device} as input, "
            f"got {residual.dtype} on {residual.device}"
        )
