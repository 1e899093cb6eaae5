"""What roi_align runs where it takes the largest sample of each bin."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .. import reference
from .._memory_format import format_of, is_channels_last, memory_format
from ._functions import differentiated, in_one_step
from ._library import declare

# with_argmax: the second result, int32, is empty without it
_SCHEMA = (
    "(Tensor[] features, Tensor rois, float[] spatial_scales, SymInt pooled_height, "
    "SymInt pooled_width, int sampling_ratio, bool aligned, float canonical_scale, "
    "float canonical_level, int min_level, bool with_argmax) -> (Tensor, Tensor)"
)
# sizes: N, then H and W of each level
_BACKWARD_SCHEMA = (
    "(Tensor grad, Tensor rois, Tensor argmax, SymInt[] sizes, float[] spatial_scales, "
    "int sampling_ratio, bool aligned, float canonical_scale, float canonical_level, "
    "int min_level, bool channels_last) -> Tensor[]"
)


def _fake(
    features: list[Tensor],
    rois: Tensor,
    spatial_scales: list[float],
    pooled_height: int,
    pooled_width: int,
    *rest: Any,
) -> tuple[Tensor, Tensor]:
    first = features[0]
    shape = (rois.shape[0], first.shape[1], pooled_height, pooled_width)
    pooled = first.new_empty(shape).to(memory_format=format_of(first))
    if not rest[-1]:
        return pooled, first.new_empty((0,), dtype=torch.int32)
    return pooled, torch.empty_like(pooled, dtype=torch.int32)


def _fake_backward(
    grad: Tensor, rois: Tensor, argmax: Tensor, sizes: list[int], *rest: Any
) -> list[Tensor]:
    N, C = sizes[0], grad.shape[1]
    return [
        grad.new_empty((N, C, H, W)).to(memory_format=memory_format(rest[-1]))
        for H, W in zip(sizes[1::2], sizes[2::2], strict=True)
    ]


def _run_reference(*args: Any) -> tuple[Tensor, Tensor]:
    return reference.roi_align_max(*args[:-1])


# samples are looked at one by one, of a number that rois decide
_NO_TRITON = {"triton": 'roi_align has no Triton kernel for pool_mode="max"'}
FORWARD = declare("roi_align_max", _SCHEMA, fake=_fake, reference=_run_reference, lacks=_NO_TRITON)
_BACKWARD = declare(
    "roi_align_max_backward", _BACKWARD_SCHEMA, fake=_fake_backward, lacks=_NO_TRITON
)


class _RoIAlignMax(torch.autograd.Function):
    """Takes the samples whose numbers it finds: linear once those are known."""

    @staticmethod
    def forward(
        backend: str, rois: Tensor, options: tuple[Any, ...], *features: Tensor
    ) -> tuple[Tensor, Tensor]:
        pooled, argmax = FORWARD.run[backend](list(features), rois, *options, True)
        return pooled, argmax

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        backend, rois, options, *features = inputs
        argmax = output[1]
        ctx.mark_non_differentiable(argmax)
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(rois, argmax)
        ctx.save_for_forward(rois, argmax)
        ctx.backend, ctx.options = backend, options
        ctx.sizes = [features[0].shape[0]]
        for feature in features:
            ctx.sizes += feature.shape[2:]
        ctx.channels_last = is_channels_last(features[0])

    @staticmethod
    def backward(ctx: Any, grad: Tensor | None, _: None) -> tuple[Any, ...]:
        if grad is None:
            return (None,) * (3 + len(ctx.sizes) // 2)
        rois, argmax = ctx.saved_tensors
        needs_grad = torch.is_grad_enabled() and grad.requires_grad
        run = _RoIAlignMaxBackward.apply if needs_grad else _run_backward
        grads = run(ctx.backend, rois, argmax, ctx.options, ctx.sizes, ctx.channels_last, grad)
        return (None, None, None, *grads)


_RoIAlignMaxEager = in_one_step(_RoIAlignMax)


class _RoIAlignMaxDual(_RoIAlignMax):
    """With forward-mode derivatives."""

    @staticmethod
    def jvp(
        ctx: Any, _backend: None, _rois: None, _options: None, *tangents: Tensor
    ) -> tuple[Tensor, None]:
        rois, argmax = ctx.saved_tensors
        return reference.samples_at(tangents, rois, argmax, ctx.options), None


class _RoIAlignMaxBackward(torch.autograd.Function):
    @staticmethod
    def forward(*args: Any) -> tuple[Tensor, ...]:
        return tuple(_run_backward(*args))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        _, rois, argmax, ctx.options = inputs[:4]
        ctx.save_for_backward(rois, argmax)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Any, ...]:
        rois, argmax = ctx.saved_tensors
        return (*(None,) * 6, reference.samples_at(grads, rois, argmax, ctx.options))


def _run_backward(
    backend: str,
    rois: Tensor,
    argmax: Tensor,
    options: tuple[Any, ...],
    sizes: list[int],
    channels_last: bool,
    grad: Tensor,
) -> list[Tensor]:
    spatial_scales, _, _, *rest = options
    return _BACKWARD.run[backend](grad, rois, argmax, sizes, spatial_scales, *rest, channels_last)


def run(backend: str, rois: Tensor, options: tuple[Any, ...], features: list[Tensor]) -> Tensor:
    """The op, through autograd only where a derivative is wanted."""
    if backend == "reference":
        return reference.roi_align_max(features, rois, *options)[0]
    function = differentiated(features, _RoIAlignMax, _RoIAlignMaxEager, _RoIAlignMaxDual)
    if function is not None:
        pooled: Tensor = function.apply(backend, rois, options, *features)[0]
        return pooled
    return FORWARD.run[backend](features, rois, *options, False)[0]
