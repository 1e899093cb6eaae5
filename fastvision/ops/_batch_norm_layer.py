"""A training step of a batch normalization in few calls: on a small map, arguments and checks take
longer than the arithmetic."""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor

from ._batch_norm_statistics import arithmetic, mark_written
from ._library import direct
from ._normalization import BatchNormReLU, train
from ._plain import is_plain

# weight and bias are given; numbers: momentum, eps, index of the activation and negative slope
for _name, _schema in {
    "batch_norm_relu_layer": (
        "(Tensor input, Tensor(a!)? running_mean, Tensor(b!)? running_var, Tensor weight, "
        "Tensor bias, Tensor numbers) -> (Tensor, Tensor, Tensor)"
    ),
    "batch_norm_relu_layer_gradients": (
        "(Tensor grad, Tensor input, Tensor mean, Tensor var, Tensor weight, Tensor bias, "
        "Tensor numbers) -> (Tensor, Tensor, Tensor)"
    ),
}.items():
    torch.library.define(f"fastvision::{_name}", _schema)
_layer = direct(torch.ops.fastvision.batch_norm_relu_layer.default)
_layer_gradients = direct(torch.ops.fastvision.batch_norm_relu_layer_gradients.default)


@functools.lru_cache(maxsize=256)
def _numbers_of(*numbers: float) -> Tensor:
    with torch.inference_mode(False):
        return torch.tensor(numbers, dtype=torch.float64, device="cpu")


class _Layer(BatchNormReLU):
    """Input, weight and bias need a gradient, and there is no residual."""

    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any,
        input: Tensor,
        weight: Tensor,
        bias: Tensor,
        running_mean: Tensor | None,
        running_var: Tensor | None,
        momentum: float,
        end: tuple[float, int, float],
    ) -> Tensor:
        numbers = _numbers_of(momentum, *end)
        output: Tensor
        output, mean, var = _layer(input, running_mean, running_var, weight, bias, numbers)
        ctx.save_for_backward(input, weight, bias, mean, var, None, None)
        ctx.numbers, ctx.options = numbers, ("cpp", *end)
        ctx.count, ctx.group = input.numel() // input.shape[1], None
        return output

    @staticmethod
    def backward(ctx: Any, grad: Any) -> tuple[Any, ...]:
        if torch.is_grad_enabled() or not is_plain(grad):
            return BatchNormReLU.backward(ctx, grad)[:7]
        input, weight, bias, mean, var, _, _ = ctx.saved_tensors
        grads = _layer_gradients(grad, input, mean, var, weight, bias, ctx.numbers)
        return *grads, None, None, None, None


def train_at_once(
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    residual: Tensor | None,
    momentum: float,
    *end: Any,  # eps, activation and negative slope
) -> Tensor:
    """:func:`train` with the arguments of a plain call, not checked: the op refuses what does not
    fit, before it writes anything.

    Raises:
        TypeError: weight or bias would have to be converted, which autograd has to see.
        ValueError: the input has no channels or is empty.
    """
    statistics = (running_mean, running_var)
    if (
        residual is None
        and weight is not None
        and bias is not None
        and torch.is_grad_enabled()
        and input.requires_grad
        and weight.requires_grad
        and bias.requires_grad
    ):
        output: Tensor = _Layer.apply(input, weight, bias, *statistics, momentum, end)
        mark_written(*statistics)
        return output
    if input.dim() < 2 or input.numel() == 0:
        raise ValueError(f"input must be [N, C, ...] and not empty, got {list(input.shape)}")
    dtype = arithmetic(input.dtype)
    for values in (weight, bias):
        if values is not None and values.dtype is not dtype:
            raise TypeError(f"weight and bias must be {dtype}, got {values.dtype}")
    return train("cpp", input, *statistics, weight, bias, residual, momentum, *end)
