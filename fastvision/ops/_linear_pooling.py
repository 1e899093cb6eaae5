"""Pooling of boxes from one map: declaration and derivatives of an op that is linear."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .._memory_format import format_of, is_channels_last, memory_format
from ._functions import differentiated, in_one_step
from ._library import Operator, declare
from ._rois import bins_of

ARGUMENTS = (
    "Tensor input, Tensor rois, float spatial_scale, SymInt pooled_height, SymInt pooled_width"
)


class _Operators(NamedTuple):
    forward: Operator
    backward: Operator
    reference: Callable[..., Tensor]


_OPERATORS: dict[str, _Operators] = {}


def _fake(
    sensitive: bool,
    input: Tensor,
    rois: Tensor,
    spatial_scale: float,
    pooled_height: int,
    pooled_width: int,
    *_: Any,
) -> Tensor:
    channels = input.shape[1] // (pooled_height * pooled_width if sensitive else 1)
    shape = (rois.shape[0], channels, pooled_height, pooled_width)
    return input.new_empty(shape).to(memory_format=format_of(input))


def _fake_backward(
    sensitive: bool,
    grad: Tensor,
    rois: Tensor,
    spatial_scale: float,
    sizes: list[int],
    *rest: Any,
) -> Tensor:
    N, H, W = sizes
    channels = grad.shape[1] * (grad.shape[2] * grad.shape[3] if sensitive else 1)
    return grad.new_empty((N, channels, H, W)).to(memory_format=memory_format(rest[-1]))


def declare_pooling(
    name: str, options: str, reference: Callable[..., Tensor], *, sensitive: bool
) -> _Operators:
    """Defines ``fastvision::name`` and ``fastvision::name_backward``.

    Args:
        name: of the public function, too.
        options: the schema of what follows ``ARGUMENTS``, each with a comma before it.
        reference: the op in eager PyTorch.
        sensitive: whether the map is position-sensitive, so that each bin has its own channels.
    """
    # the taps of a bin are few, and of other channels or at other places than the next one's
    lacks = {"triton": f"{name} has no Triton kernel"}
    forward = declare(
        name, f"({ARGUMENTS}{options}) -> Tensor", fake=partial(_fake, sensitive),
        reference=reference, lacks=lacks, serves=(name,),
    )  # fmt: skip
    # sizes: N, H, W
    schema = f"Tensor grad, Tensor rois, float spatial_scale, SymInt[] sizes{options}"
    backward = declare(
        f"{name}_backward", f"({schema}, bool channels_last) -> Tensor",
        fake=partial(_fake_backward, sensitive), lacks=lacks,
    )  # fmt: skip
    _OPERATORS[name] = _Operators(forward, backward, reference)
    return _OPERATORS[name]


class _Pool(torch.autograd.Function):
    """Linear in the features: backward is the transpose, whose backward is the op itself."""

    @staticmethod
    def forward(
        name: str, backend: str, rois: Tensor, options: tuple[Any, ...], input: Tensor
    ) -> Tensor:
        pooled: Tensor = _OPERATORS[name].forward.run[backend](input, rois, *options)
        return pooled

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.name, ctx.backend, rois, ctx.options, input = inputs
        ctx.save_for_backward(rois)
        ctx.save_for_forward(rois)
        ctx.sizes = [input.shape[0], *input.shape[2:]]
        ctx.channels_last = is_channels_last(input)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        (rois,) = ctx.saved_tensors
        arguments = (ctx.name, ctx.backend, rois, ctx.options, ctx.sizes, ctx.channels_last, grad)
        needs_grad = torch.is_grad_enabled() and grad.requires_grad
        run = _PoolBackward.apply if needs_grad else run_backward
        return (None, None, None, None, run(*arguments))


_PoolEager = in_one_step(_Pool)


class _PoolDual(_Pool):
    """With forward-mode derivatives."""

    @staticmethod
    def jvp(
        ctx: Any, _name: None, _backend: None, _rois: None, _options: None, tangent: Tensor
    ) -> Tensor:
        (rois,) = ctx.saved_tensors
        return run(ctx.name, ctx.backend, rois, ctx.options, tangent)


class _PoolBackward(torch.autograd.Function):
    @staticmethod
    def forward(*arguments: Any) -> Tensor:
        return run_backward(*arguments)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.name, ctx.backend, rois, ctx.options = inputs[:4]
        ctx.save_for_backward(rois)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        (rois,) = ctx.saved_tensors
        return (*(None,) * 6, run(ctx.name, ctx.backend, rois, ctx.options, grad))


def run_backward(
    name: str,
    backend: str,
    rois: Tensor,
    options: tuple[Any, ...],
    sizes: list[int],
    channels_last: bool,
    grad: Tensor,
) -> Tensor:
    """The gradient of the features. ``options`` are the op's, from spatial_scale on."""
    spatial_scale, _, _, *rest = options
    gradient: Tensor = _OPERATORS[name].backward.run[backend](
        grad, rois, spatial_scale, sizes, *rest, channels_last
    )
    return gradient


def run(name: str, backend: str, rois: Tensor, options: tuple[Any, ...], input: Tensor) -> Tensor:
    """The op, through autograd only where a derivative is wanted."""
    if backend == "reference":
        return _OPERATORS[name].reference(input, rois, *options)
    function = differentiated((input,), _Pool, _PoolEager, _PoolDual)
    pooled: Tensor
    if function is not None:
        pooled = function.apply(name, backend, rois, options, input)
    else:
        pooled = _OPERATORS[name].forward.run[backend](input, rois, *options)
    return pooled


def sensitive_bins_of(output_size: Any, input: Tensor) -> tuple[int, int]:
    """(PH, PW), of which the input's channels must be a multiple."""
    PH, PW = bins_of(output_size)
    if PH == 0 or PW == 0:
        raise ValueError(f"output_size must be at least 1, got {output_size!r}")
    if input.shape[1] % (PH * PW) != 0:
        raise ValueError(
            f"input must have a multiple of {PH} x {PW} channels, got {input.shape[1]}"
        )
    return PH, PW
