"""The convolution operators and their CPU implementation."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from ... import reference
from ..._memory_format import format_of
from .._checks import is_eager
from .._library import by_activation_name, declare
from .memo import layer_of, made_once
from .spec import ConvSpec, Weights, spec_of, transposed_spec_of

# activation: index in ACTIVATIONS; padding: left, right, top, bottom, but vertical, horizontal for
# transposed convolutions, like the other pairs
_SCHEMA = (
    "(Tensor input, Tensor weight, Tensor? bias, Tensor? bn_weight, Tensor? bn_bias, "
    "Tensor? running_mean, Tensor? running_var, Tensor? residual, {window}, float eps, "
    "int activation, float negative_slope) -> Tensor"
)


_Parse = Callable[[Sequence[Any]], ConvSpec]  # takes an operator's arguments after the tensors


def _fake(parse: _Parse) -> Callable[..., Tensor]:
    def run(input: Tensor, weight: Tensor, *rest: Any) -> Tensor:
        output = input.new_empty(parse(rest[6:]).output_shape(input.shape, weight.shape))
        return output.to(memory_format=format_of(input))

    return run


def _on_cpu(parse: _Parse) -> Callable[..., Tensor]:
    def run(input: Tensor, *args: Any) -> Tensor:
        weights = Weights(*args[:6])
        return made_once(weights, input.dtype, parse(args[7:]))(input, args[6], weights)

    return run


CONV = declare(
    "conv_bn_relu",
    _SCHEMA.format(window="SymInt[] stride, SymInt[] padding, SymInt[] dilation, SymInt groups"),
    fake=_fake(spec_of), cpu=_on_cpu(spec_of),
    cuda="ops.conv.gpu.run", triton="ops.conv.gpu.run_triton",
    reference=by_activation_name(reference.conv_bn_relu), serves=("conv_bn_relu",),
)  # fmt: skip
TRANSPOSED = declare(
    "conv_transpose2d",
    _SCHEMA.format(
        window="SymInt[] stride, SymInt[] padding, SymInt[] output_padding, SymInt groups, "
        "SymInt[] dilation"
    ),
    fake=_fake(transposed_spec_of), cpu=_on_cpu(transposed_spec_of),
    cuda="ops.conv.transpose_gpu.run", triton="ops.conv.transpose_gpu.run_triton",
    reference=by_activation_name(reference.conv_transpose2d),
    lacks={"cuda": "transposed convolution has no CUDA C++ kernel, only triton, cpp and reference"},
    serves=("conv_transpose2d", "conv_transpose2d_bn_relu"),
)  # fmt: skip
# weight: [taps, taps, C]; images channels_last (csrc/ops/conv_depthwise.h)
torch.library.define(
    "fastvision::conv_depthwise",
    "(Tensor input, Tensor weight, Tensor? scale, Tensor? shift, Tensor? residual, int[] stride, "
    "int[] padding, int activation, float negative_slope) -> Tensor",
)


def run(
    backend: str,
    input: Tensor,
    weights: Weights,
    residual: Tensor | None,
    spec: ConvSpec,
    *,
    once: bool = False,
) -> Tensor:
    """The operator without derivatives. ``once``: do not cache packs, the weights will change."""
    if backend == "cpp" and input.is_cpu and type(input) is Tensor and is_eager():
        # boxing so many arguments for the dispatcher takes longer than a small convolution
        make = functools.partial(layer_of, once=True) if once else made_once
        return make(weights, input.dtype, spec)(input, residual, weights)
    operator = TRANSPOSED if spec.transposed else CONV
    return operator.run[backend](input, *weights, residual, *spec.arguments())
