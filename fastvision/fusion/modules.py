"""The modules that hold fused layers: their forward is the model's own, on values."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ..ops._checks import is_transformed
from ..ops._layers import has_global_hooks
from .classes import Fused
from .values import (
    Deferred,
    Image,
    enter,
    holds_values,
    is_channels_last,
    leave,
    settle,
    tensors_in,
)


class FusedModule(Fused):
    """Mixed into the class of a module with fused layers inside. Called from outside it turns its
    inputs into values and its results back into tensors."""

    @classmethod
    def body_for(cls, base: type) -> dict[str, Any]:
        return {"forward": forward_of(base)}


def forward_of(base: Any, own: Callable[..., Any] | None = None) -> Callable[..., Any]:
    """The forward of a fused module of class ``base``, under the signature of its own; ``own`` runs
    in its place."""
    own = own or base.forward

    @functools.wraps(base.forward)
    def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
        if (args and type(args[0]) in (Image, Deferred)) or holds_values((args, kwargs)):
            result = own(self, *args, **kwargs)
            return settle(result) if self._forward_hooks else result
        if not may_defer(args, kwargs):
            return own(self, *args, **kwargs)
        return run(functools.partial(own, self), args, kwargs)

    return forward


def run(call: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """``call`` on the values of its arguments; its results as tensors."""
    channels_last = any(map(is_channels_last, tensors_in((args, kwargs))))
    values, named = enter(args), enter(kwargs)
    result = call(*values, **named)
    result = leave(result, channels_last=channels_last)
    for theirs, ours in zip((*args, *kwargs.values()), (*values, *named.values()), strict=True):
        _hand_back(theirs, ours, channels_last)
    return result


def _hand_back(theirs: Any, ours: Any, channels_last: bool) -> None:
    """Changes that the model made to a list or dict that it was given."""
    if theirs is ours or not isinstance(theirs, (list, dict)):
        return
    before = enter(theirs)
    same = len(theirs) == len(ours) and all(
        a is b or (type(a) is type(b) and getattr(a, "_plain", 0) is getattr(b, "_plain", 1))
        for a, b in zip(_items(before), _items(ours), strict=True)
    )
    if not same:
        leave(ours, channels_last=channels_last)
        if isinstance(theirs, list):
            theirs[:] = ours
        else:
            theirs.clear()
            theirs.update(ours)


def _items(container: Any) -> list[Any]:
    return [*container.keys(), *container.values()] if isinstance(container, dict) else container


def may_defer(args: Any, kwargs: Any) -> bool:
    if is_transformed() or has_global_hooks():
        return False
    if torch.onnx.is_in_onnx_export():  # whose operators are the standard ones
        return False
    tensors = list(tensors_in((args, kwargs)))
    differentiates = torch.is_grad_enabled() and any(t.requires_grad for t in tensors)
    return bool(tensors) and not differentiates


def values_of_graph(*inputs: Any) -> Any:
    """What comes in, as a graph of torch.fx calls it; see :func:`fastvision.fuse`."""
    if any(map(holds_values, inputs)) or not may_defer(inputs, {}):
        return inputs
    return enter(inputs)


def tensors_of_graph(result: Any, *inputs: Any) -> Any:
    """What goes out, if what came in were tensors."""
    if any(map(holds_values, inputs)):
        return result
    channels_last = any(is_channels_last(t) for t in inputs if isinstance(t, Tensor))
    return leave(result, channels_last=channels_last)


torch.fx.wrap("values_of_graph")
torch.fx.wrap("tensors_of_graph")
