"""Checks of the arguments that convolutions share, and the size of their results."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..reference.roi_align import is_channels_last
from ._checks import check_floating, check_tensor, integer
from ._checks import pair as pair

# of the ops that torch.jit.trace records; {geometry}: what the convolutions differ in
TRACED_SCHEMA = (
    "(Tensor input, Tensor weight, Tensor? bias, Tensor? bn_weight, Tensor? bn_bias, "
    "Tensor(a!)? running_mean, Tensor(b!)? running_var, Tensor? residual, bool training, "
    "float momentum, float eps, {geometry}, str activation, float negative_slope, str? backend)"
    " -> Tensor"
)
MOST = 2**31 - 1  # sizes are computed in 64 bits


def paddings(
    padding: int | Sequence[int] | str,
    kernel: Sequence[int],
    stride: tuple[int, int],
    dilation: tuple[int, int],
) -> tuple[int, int, int, int]:
    """Left, right, top, bottom of torch's forms of padding, or those four themselves."""
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


def sizes_of(value: Any) -> Sequence[int]:
    """As an op takes them."""
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


def format_of(maps: Tensor) -> torch.memory_format:
    return torch.channels_last if is_channels_last(maps) else torch.contiguous_format


def check_maps(input: object, weight: object) -> None:
    """Two four-dimensional tensors of a floating-point dtype on one device.

    16-bit input may come with a float32 weight.
    """
    for tensor, name in ((input, "input"), (weight, "weight")):
        check_tensor(tensor, name)
        assert isinstance(tensor, Tensor)
        if tensor.dim() != 4:
            raise ValueError(f"{name} must have 4 dimensions, got shape {list(tensor.shape)}")
        check_floating(tensor, name)
    assert isinstance(input, Tensor) and isinstance(weight, Tensor)
    if 0 in weight.shape:
        raise ValueError(f"weight must not be empty, got shape {list(weight.shape)}")
    if weight.dtype != input.dtype and not (weight.itemsize == 4 and input.itemsize == 2):
        raise TypeError(
            f"weight must have the type of input, {input.dtype}, or be float32 beside 16-bit "
            f"input, got {weight.dtype}"
        )
    if weight.device != input.device:
        raise ValueError(f"weight must be on {input.device} as input, got {weight.device}")


def check_channels(input: Tensor, name: str, expected: int) -> None:
    if input.shape[1] != expected:
        raise ValueError(f"input must have {expected} channels for {name}, got {input.shape[1]}")


def check_parameters(
    channels: int,
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    training: bool,
    **parameters: Tensor | None,
) -> None:
    """Vectors of one value per output channel, and statistics where they are needed."""
    statistics = {"running_mean": running_mean, "running_var": running_var}
    for name, tensor in (parameters | statistics).items():
        if tensor is None:
            continue
        check_tensor(tensor, name)
        if tensor.shape != (channels,):
            raise ValueError(f"{name} must have shape [{channels}], got {list(tensor.shape)}")
        check_floating(tensor, name)
        if tensor.device != input.device:
            raise ValueError(f"{name} must be on {input.device} as input, got {tensor.device}")
    if (running_mean is None) != (running_var is None):
        missing = "running_mean" if running_mean is None else "running_var"
        raise ValueError(f"running_mean and running_var go together, {missing} is None")
    normalizes = parameters.get("bn_weight") is not None or parameters.get("bn_bias") is not None
    if normalizes and running_mean is None and not training:
        raise ValueError("bn_weight and bn_bias need running_mean and running_var, which are None")


def check_residual(residual: Tensor | None, input: Tensor, shape: Sequence[int]) -> None:
    if residual is None:
        return
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


def check_window(
    stride: Sequence[int], padding: Sequence[int], dilation: Sequence[int], groups: int
) -> None:
    for values, name, least in (
        (stride, "stride", 1),
        (padding, "padding", 0),
        (dilation, "dilation", 1),
        ((groups,), "groups", 1),
    ):
        for value in values:
            if value < least:
                raise ValueError(f"{name} must be at least {least}, got {tuple(values)}")
            if value > MOST:
                raise ValueError(f"{name} must be at most {MOST}, got {tuple(values)}")
