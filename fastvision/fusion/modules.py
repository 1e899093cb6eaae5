"""Modules that contain fused layers: they run the model's own forward on values."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from .._memory_format import is_channels_last
from ..ops._checks import is_transformed
from ..ops._layers import wants_layers
from .border import Entrance, holds_values, leave, settle
from .chains import is_value
from .classes import Fused
from .images import Image
from .trees import tensors_in


class FusedModule(Fused):
    """Mixin of modules that contain fused layers. A call from outside converts inputs to values
    and results back to tensors."""

    @classmethod
    def body_for(cls, base: type) -> dict[str, Any]:
        return {"forward": forward_of(base)}


def forward_of(base: Any, own: Callable[..., Any] | None = None) -> Callable[..., Any]:
    """The forward of a fused module of class ``base``, with the signature of the original.

    ``own`` replaces the original forward.
    """
    own = own or base.forward

    @functools.wraps(base.forward)
    def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
        if (args and is_value(args[0])) or holds_values((args, kwargs)):
            result = own(self, *args, **kwargs)
            return settle(result) if self._forward_hooks else result
        if not may_defer(args, kwargs):
            return own(self, *args, **kwargs)
        return run(functools.partial(own, self), args, kwargs)

    return forward


def run(call: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Runs ``call`` on its arguments as values and returns its results as tensors."""
    channels_last = any(map(is_channels_last, tensors_in((args, kwargs))))
    entrance = Entrance()
    values, named = entrance.enter(args), entrance.enter(kwargs)
    try:
        result = leave(call(*values, **named), channels_last=channels_last)
        for theirs, ours in zip((*args, *kwargs.values()), (*values, *named.values()), strict=True):
            _hand_back(theirs, ours, channels_last)
    finally:
        entrance.close()
    return result


def _hand_back(theirs: Any, ours: Any, channels_last: bool) -> Any:
    """The caller's own input object, with the model's writes to its lists and dicts applied."""
    if type(ours) is Image and ours._memory is theirs:
        return theirs
    if theirs is ours:  # had nothing to convert, but may contain values now
        return leave(theirs, channels_last=channels_last)
    if type(theirs) is not type(ours) or not isinstance(theirs, (list, dict, tuple)):
        return leave(ours, channels_last=channels_last)
    if isinstance(theirs, dict):
        items = {
            key: _hand_back(theirs.get(key), item, channels_last) for key, item in ours.items()
        }
        if items.keys() != theirs.keys() or any(items[key] is not theirs[key] for key in items):
            theirs.clear()
            theirs.update(items)
        return theirs
    before = [*theirs, *[None] * len(ours)]
    found = [_hand_back(b, o, channels_last) for b, o in zip(before, ours, strict=False)]
    if isinstance(theirs, list) and (
        len(found) != len(theirs) or any(f is not t for f, t in zip(found, theirs, strict=True))
    ):
        theirs[:] = found
    return theirs


def may_defer(args: Any, kwargs: Any) -> bool:
    if is_transformed() or wants_layers():
        return False
    tensors = list(tensors_in((args, kwargs)))
    differentiates = torch.is_grad_enabled() and any(t.requires_grad for t in tensors)
    return bool(tensors) and not differentiates


def values_of_graph(*inputs: Any) -> Any:
    """Converts a graph's inputs; called by nodes that fuse() adds to torch.fx graphs."""
    if any(map(holds_values, inputs)) or not may_defer(inputs, {}):
        return inputs
    return Entrance().enter(inputs)


def tensors_of_graph(result: Any, *inputs: Any) -> Any:
    """Converts a graph's result if the inputs were tensors."""
    if any(map(holds_values, inputs)):
        return result
    channels_last = any(is_channels_last(t) for t in inputs if isinstance(t, Tensor))
    return leave(result, channels_last=channels_last)


torch.fx.wrap("values_of_graph")
torch.fx.wrap("tensors_of_graph")
