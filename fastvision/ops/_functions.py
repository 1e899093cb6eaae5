"""Forms of an autograd.Function that has a ``setup_context``, and which one a call takes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function, forward_ad

from ._checks import needs_gradient


def in_one_step(function: type[Function]) -> type[Function]:
    """The form for eager mode: torch binds a signature in each call of a Function that has a
    ``setup_context``, which is slow."""

    class InOneStep(function):  # type: ignore[misc,valid-type]
        @staticmethod
        def forward(ctx: Any, *inputs: Any) -> Any:
            output = function.forward(*inputs)
            function.setup_context(ctx, inputs, output)
            return output

        setup_context = Function.setup_context

    InOneStep.__name__ = InOneStep.__qualname__ = f"{function.__name__}Eager"
    return InOneStep


def differentiated(
    tensors: Sequence[Tensor],
    function: type[Function],
    eager: type[Function],
    dual: type[Function],
) -> Any:
    """The form that a call needs for its derivatives; None without any, since a Function costs
    microseconds.

    Args:
        tensors: that the op is differentiable in.
        function: with a ``setup_context``, which torch.func needs.
        eager: :func:`in_one_step` of it.
        dual: with a ``jvp``; a form of its own, since torch.compile rejects a Function with one.
    """
    if forward_ad._current_level >= 0:
        return dual
    if needs_gradient(tensors):
        return function if torch._C._are_functorch_transforms_active() else eager
    return None
