"""Deformable convolution."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ... import ops
from ...ops._deform_checks import check
from ...ops.deform_conv2d import _BACKWARD, _choose

_TENSORS = 5  # input, weight, offset, mask and bias


def _check_groups(
    input: Tensor, weight: Tensor, offset: Tensor, groups: int, offset_groups: int
) -> None:
    """Against the shapes, from which our op takes them."""
    if groups * weight.shape[1] != input.shape[1]:
        raise RuntimeError(
            f"n_weight_grps must be {input.shape[1]} / {weight.shape[1]} channels, got {groups}"
        )
    channels = 2 * offset_groups * weight.shape[2] * weight.shape[3]
    if offset.shape[1] != channels:
        raise RuntimeError(
            f"offset.shape[1] is not valid: got: {offset.shape[1]} expected: {channels}"
        )


def forward(
    input: Tensor,
    weight: Tensor,
    offset: Tensor,
    mask: Tensor,
    bias: Tensor,
    *options: Any,  # of the schema
) -> Tensor:
    groups, offset_groups, use_mask = options[6:]
    pairs = options[:2], options[2:4], options[4:6]  # stride, padding, dilation
    try:
        result = ops.deform_conv2d(input, offset, weight, bias, *pairs, mask if use_mask else None)
    except (TypeError, ValueError) as error:
        raise RuntimeError(str(error)) from error  # as torchvision's operator
    _check_groups(input, weight, offset, groups, offset_groups)
    # torchvision's result is contiguous, and callers view() it
    return result.contiguous()


def backward(
    grad: Tensor,
    input: Tensor,
    weight: Tensor,
    offset: Tensor,
    mask: Tensor,
    bias: Tensor,
    *options: Any,  # of the schema
) -> tuple[Tensor, ...]:
    """For graphs that torchvision's own autograd has recorded, before enable()."""
    window, (groups, offset_groups, use_mask) = options[:6], options[6:]
    factors = mask if use_mask else None
    try:
        check(input, offset, factors, weight, bias, window)
    except (TypeError, ValueError) as error:
        raise RuntimeError(str(error)) from error
    _check_groups(input, weight, offset, groups, offset_groups)
    run = _BACKWARD.run[_choose(grad, None)]
    needs = 0b11111 if use_mask else 0b11011
    tensors = (grad, input, offset, factors, weight)
    dx, doffset, dmask, dweight, dbias = run(*tensors, window, groups, offset_groups, needs)
    dmask = dmask if use_mask else torch.zeros_like(mask)
    found = (dx, dweight, doffset, dmask, dbias.view_as(bias))
    return tuple(gradient.contiguous() for gradient in found)


def fake(input: Tensor, weight: Tensor, offset: Tensor, *_: Any) -> Tensor:
    return input.new_empty((input.shape[0], weight.shape[0], *offset.shape[-2:]))


def fake_backward(grad: Tensor, *arguments: Any) -> tuple[Tensor, ...]:
    return tuple(tensor.new_empty(tensor.shape) for tensor in arguments[:_TENSORS])


class Recorded(torch.autograd.Function):
    """torchvision's operators in both directions.

    torchvision's own formula is the same, but refuses CUDA in deterministic mode.
    """

    @staticmethod
    def forward(ctx: Any, keyset: Any, *arguments: Any) -> Tensor:
        ctx.save_for_backward(*arguments[:_TENSORS])
        ctx.options = arguments[_TENSORS:]
        with torch._C._AutoDispatchBelowAutograd():
            result: Tensor = torch.ops.torchvision.deform_conv2d.default.redispatch(
                keyset, *arguments
            )
        return result

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        tensors: Sequence[Tensor] = ctx.saved_tensors
        grads = torch.ops.torchvision._deform_conv2d_backward(grad, *tensors, *ctx.options)
        return (None, *grads, *(None,) * len(ctx.options))
