"""oneDNN convolutions with packed weights and fused post-ops, as exposed by torch.

On AVX2 our own engine is at least as fast, unless dilated taps read much padding. With AVX-512,
oneDNN is faster on large convolutions with many terms per sum (cpu.py), and only oneDNN uses the
16-bit instructions of newer CPUs.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from ... import _extension
from ..._memory_format import memory_format
from .spec import ConvSpec

MIN_CHANNELS = 16  # below, the engine merges channels and taps, oneDNN does not

# oneDNN's relu and hardtanh turn NaN into 0, so these run after it, in place
_IN_PLACE: dict[str, Callable[[Tensor], Tensor]] = {
    "none": lambda y: y,
    "relu": torch.relu_,
    "relu6": lambda y: y.clamp_(0, 6),
}
# oneDNN's names of the activations that propagate NaN
_POST_OPS = {"silu": "swish", "hardswish": "hardswish", "sigmoid": "sigmoid"}


def fast_dtypes() -> tuple[torch.dtype, ...]:
    """The dtypes for which oneDNN has fast instructions on this CPU."""
    return _fast_dtypes(_extension.cpu_level())


@functools.cache
def _fast_dtypes(level: str) -> tuple[torch.dtype, ...]:
    if level != "avx512" or not is_available():
        return ()
    supports = getattr(torch.cpu, "_is_avx512_bf16_supported", None)
    return (torch.float32, torch.bfloat16) if supports and supports() else (torch.float32,)


@functools.cache
def is_available() -> bool:
    has_op = hasattr(torch.ops.mkldnn, "_convolution_pointwise")
    return torch.backends.mkldnn.is_available() and has_op


def supports(
    input: Tensor,
    shape: Sequence[int],  # the weight's
    residual: Tensor | None,
    spec: ConvSpec,
) -> bool:
    """Whether oneDNN supports this convolution."""
    left, right, top, bottom = spec.padding
    name = spec.activation_name
    return (
        spec.groups == 1
        and left == right
        and top == bottom
        and shape[1] >= MIN_CHANNELS
        and input.numel() > 0
        and (name in _IN_PLACE or (name in _POST_OPS and residual is None))
        and torch._C._get_mkldnn_enabled()
    )


def pack(
    weight: Tensor, bias: Tensor | None, shape: Sequence[int], dtype: torch.dtype, spec: ConvSpec
) -> tuple[Tensor, Tensor | None]:
    """Weight and bias in :func:`convolution`'s form for inputs of this shape and dtype."""
    reorder: Any = torch._C._nn.mkldnn_reorder_conv2d_weight
    packed = reorder(weight.to(dtype).contiguous().to_mkldnn(), *_window(spec), 1, list(shape))
    return packed, None if bias is None else bias.to(dtype).contiguous()


def _window(spec: ConvSpec) -> tuple[Sequence[int], Sequence[int], Sequence[int]]:
    """In torch's order: padding, stride, dilation."""
    left, _, top, _ = spec.padding
    return (top, left), spec.stride, spec.dilation


def convolution(
    input: Tensor,
    packed: tuple[Tensor, Tensor | None],
    shape: Sequence[int],  # the weight's
    residual: Tensor | None,
    spec: ConvSpec,
) -> Tensor:
    """activation(convolution + residual); requires that :func:`supports` is true."""
    weight, bias = packed
    name = spec.activation_name
    run = torch.ops.mkldnn._convolution_pointwise
    format = memory_format(input.is_contiguous(memory_format=torch.channels_last))
    if residual is not None and (
        spec.output_shape(input.shape, shape) != residual.shape or residual.dtype != input.dtype
    ):
        raise RuntimeError("residual must have the shape and dtype of the result")
    # torch adds a float32 residual faster; 16-bit sums have to be added before they are rounded
    adds_later = residual is not None and input.dtype == torch.float32
    if residual is None or adds_later:
        post = _POST_OPS.get(name, "none")
        y = run(input, weight, bias, *_window(spec), 1, post, [], "")
    else:
        residual = residual.contiguous(memory_format=format)
        y = run.binary(input, residual, weight, bias, *_window(spec), 1, "add", None, None, [], "")
    y = y.contiguous(memory_format=format)  # of bfloat16 it may be channels_last in any case
    if adds_later:
        y += residual
    return _IN_PLACE[name](y) if name in _IN_PLACE else y
