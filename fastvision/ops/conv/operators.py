"""The operators of convolutions, and what runs them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ... import reference
from ..._memory_format import format_of
from .._checks import is_eager
from .._library import by_activation_name, declare
from .cpu import Layer
from .memo import made_once
from .spec import ConvSpec, Weights, spec_of, transposed_spec_of

# activation: index in ACTIVATIONS; padding: left, right, top, bottom, of a transposed convolution
# vertical, horizontal, as the other pairs
_SCHEMA = (
    "(Tensor input, Tensor weight, Tensor? bias, Tensor? bn_weight, Tensor? bn_bias, "
    "Tensor? running_mean, Tensor? running_var, Tensor? residual, {window}, float eps, "
    "int activation, float negative_slope) -> Tensor"
)


def _fake(input: Tensor, weight: Tensor, *rest: Any) -> Tensor:
    spec = spec_of(rest[6:])
    size = spec.output_size(input.shape[2:], weight.shape[2:])
    output = input.new_empty((input.shape[0], weight.shape[0], *size))
    return output.to(memory_format=format_of(input))


def _fake_transposed(input: Tensor, weight: Tensor, *rest: Any) -> Tensor:
    spec = transposed_spec_of(rest[6:])
    size = spec.output_size(input.shape[2:], weight.shape[2:])
    output = input.new_empty((input.shape[0], weight.shape[1] * spec.groups, *size))
    return output.to(memory_format=format_of(input))


def _on_cpu(input: Tensor, *args: Any) -> Tensor:
    weights = Weights(*args[:6])
    return made_once(weights, input.dtype, spec_of(args[7:]))(input, args[6], weights)


def _transposed_on_cpu(input: Tensor, *args: Any) -> Tensor:
    weights = Weights(*args[:6])
    return made_once(weights, input.dtype, transposed_spec_of(args[7:]))(input, args[6], weights)


CONV = declare(
    "conv_bn_relu",
    _SCHEMA.format(window="SymInt[] stride, SymInt[] padding, SymInt[] dilation, SymInt groups"),
    fake=_fake, cpu=_on_cpu, cuda="ops.conv.gpu.run", triton="ops.conv.gpu.run_triton",
    reference=by_activation_name(reference.conv_bn_relu), serves=("conv_bn_relu",),
)  # fmt: skip
TRANSPOSED = declare(
    "conv_transpose2d",
    _SCHEMA.format(
        window="SymInt[] stride, SymInt[] padding, SymInt[] output_padding, SymInt groups, "
        "SymInt[] dilation"
    ),
    fake=_fake_transposed, cpu=_transposed_on_cpu, cuda="ops.conv.transpose_gpu.run",
    triton="ops.conv.transpose_gpu.run_triton",
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
    """The operator without derivatives. ``once``: with weights that change before the next call."""
    if backend == "cpp" and input.is_cpu and type(input) is Tensor and is_eager():
        # the dispatcher's boxing of so many arguments takes longer than a small convolution
        layer = (Layer if once else made_once)(weights, input.dtype, spec)
        return layer(input, residual, weights)
    operator = TRANSPOSED if spec.transposed else CONV
    return operator.run[backend](input, *weights, residual, *spec.arguments())
