"""RoIPool."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ...ops._rois import as_rois, bins_of, check_feature
from ...ops.roi_pool import _BACKWARD, _FORWARD, _run


def forward(
    input: Tensor, rois: Tensor, spatial_scale: float, pooled_height: int, pooled_width: int
) -> tuple[Tensor, Tensor]:
    try:
        check_feature(input, "input")
        rois = as_rois(rois, input)
        options = (spatial_scale, *bins_of((pooled_height, pooled_width)))
    except (AssertionError, TypeError, ValueError) as error:
        raise RuntimeError(str(error)) from error  # as torchvision's operator
    backend = _FORWARD.choose(input, None)
    pooled, argmax = _run(backend, rois, options, input, with_argmax=True)
    # torchvision's results are contiguous, and callers view() them
    return pooled.contiguous(), argmax.contiguous()


def backward(
    grad: Tensor,
    rois: Tensor,
    argmax: Tensor,
    spatial_scale: float,
    pooled_height: int,
    pooled_width: int,
    batch_size: int,
    channels: int,
    height: int,
    width: int,
) -> Tensor:
    """For graphs that torchvision's own autograd has recorded, before enable()."""
    backend = _BACKWARD.choose(grad, None)
    if backend == "reference":
        raise RuntimeError(f"no kernel for the backward of torchvision::roi_pool on {grad.device}")
    sizes = [batch_size, height, width]
    gradient: Tensor = _BACKWARD.run[backend](
        grad, as_rois(rois, grad), argmax, spatial_scale, sizes, False
    )
    return gradient


def fake(
    input: Tensor, rois: Tensor, spatial_scale: float, pooled_height: int, pooled_width: int
) -> tuple[Tensor, Tensor]:
    shape = (rois.shape[0], input.shape[1], pooled_height, pooled_width)
    return input.new_empty(shape), input.new_empty(shape, dtype=torch.int32)


def fake_backward(grad: Tensor, *arguments: Any) -> Tensor:
    return grad.new_empty(arguments[-4:])  # N, C, H and W


def recorded(name: str) -> type[torch.autograd.Function]:
    """Of an operator of features and rois, whose second result is for the backward alone."""

    class Recorded(torch.autograd.Function):
        """torchvision's operators in both directions.

        torchvision's own formula is the same, but refuses CUDA in deterministic mode.
        """

        @staticmethod
        def forward(
            ctx: Any, keyset: Any, input: Tensor, rois: Tensor, *options: Any
        ) -> tuple[Tensor, Tensor]:
            operator = getattr(torch.ops.torchvision, name).default
            with torch._C._AutoDispatchBelowAutograd():
                pooled, source = operator.redispatch(keyset, input, rois, *options)
            ctx.mark_non_differentiable(source)
            ctx.set_materialize_grads(False)  # the source's would be zeros, as large as itself
            ctx.save_for_backward(rois, source)
            ctx.shape, ctx.options = input.shape, options
            return pooled, source

        @staticmethod
        def backward(ctx: Any, grad: Tensor | None, _: None) -> tuple[Tensor | None, ...]:
            if grad is None:
                return (None,) * (3 + len(ctx.options))
            operator = getattr(torch.ops.torchvision, f"_{name}_backward")
            grad_input = operator(grad, *ctx.saved_tensors, *ctx.options, *ctx.shape)
            return (None, grad_input, *(None,) * (1 + len(ctx.options)))

    return Recorded


Recorded = recorded("roi_pool")
