"""The operators of a batch normalization with residual and activation, and of its gradients."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from .. import reference
from .._memory_format import format_of
from ._library import by_activation_name as _named
from ._library import declare

# mean, var, weight, bias: [C] float32 (float64 for float64 inputs); activation: index in
# ACTIVATIONS. reference/batch_norm_relu.py has functions of the same names.
_AFFINE = "Tensor mean, Tensor var, Tensor? weight, Tensor? bias"
_RUNNING = "Tensor input, Tensor(a!)? running_mean, Tensor(b!)? running_var"
_END = "float eps, int activation, float negative_slope"
_SCHEMAS = {
    "_statistics": f"({_RUNNING}, float momentum) -> (Tensor, Tensor)",
    "": f"(Tensor input, {_AFFINE}, Tensor? residual, {_END}) -> Tensor",
    "_training": (
        f"({_RUNNING}, Tensor? weight, Tensor? bias, Tensor? residual, float momentum, {_END})"
        " -> (Tensor, Tensor, Tensor)"
    ),
    "_sums": (
        f"(Tensor grad, Tensor input, {_AFFINE}, Tensor? residual, Tensor? output, {_END})"
        " -> (Tensor, Tensor)"
    ),
    "_backward": (
        f"(Tensor grad, Tensor input, {_AFFINE}, Tensor? sums, SymInt count, {_END}) -> Tensor"
    ),
    "_gradients": (
        f"(Tensor grad, Tensor input, {_AFFINE}, Tensor? residual, Tensor? output, bool of_batch, "
        f"{_END}) -> (Tensor, Tensor, Tensor)"
    ),
}
_GRADIENTS = ("_sums", "_backward", "_gradients")


def _like(input: Tensor) -> Tensor:
    return torch.empty_like(input, memory_format=format_of(input))


def empty_channels(input: Tensor, *shape: Any) -> Tensor:
    return input.new_empty(shape, dtype=torch.promote_types(input.dtype, torch.float32))


def _fake_statistics(input: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
    return empty_channels(input, input.shape[1]), empty_channels(input, input.shape[1])


def _fake(input: Tensor, *_: Any) -> Tensor:
    return _like(input)


def _fake_training(input: Tensor, *_: Any) -> tuple[Tensor, Tensor, Tensor]:
    return _like(input), *_fake_statistics(input)


def _fake_sums(grad: Tensor, input: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
    residual, output = rest[4:6]
    given = residual is not None or output is not None
    dz = _like(input) if given else empty_channels(input, 0)
    return empty_channels(input, 2, input.shape[1]), dz


def _fake_backward(grad: Tensor, input: Tensor, *_: Any) -> Tensor:
    return _like(input)


def _fake_gradients(grad: Tensor, input: Tensor, *rest: Any) -> tuple[Tensor, Tensor, Tensor]:
    return *_fake_sums(grad, input, *rest), _like(input)


def _operator(part: str, fake: Callable[..., Any], run: Callable[..., Any], **options: Any) -> Any:
    name = f"batch_norm_relu{part}"
    file = "batch_norm_relu_backward" if part in _GRADIENTS else "batch_norm_relu"
    return declare(
        name, _SCHEMAS[part], fake=fake, triton=f"kernels.{file}.launch_{name}",
        reference=run, lacks={"cuda": "there is no batch_norm_relu in CUDA C++, use 'triton'"},
        **options,
    )  # fmt: skip


STATISTICS = _operator("_statistics", _fake_statistics, reference.batch_norm_relu_statistics)
FORWARD = _operator("", _fake, _named(reference.batch_norm_relu), serves=("batch_norm_relu",))
TRAINING = _operator("_training", _fake_training, _named(reference.batch_norm_relu_training))
SUMS = _operator("_sums", _fake_sums, _named(reference.batch_norm_relu_sums))
BACKWARD = _operator("_backward", _fake_backward, _named(reference.batch_norm_relu_backward))
GRADIENTS = _operator("_gradients", _fake_gradients, _named(reference.batch_norm_relu_gradients))
