"""The modules that hold fused layers: their forward is the model's own, on values."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from .._memory_format import is_channels_last
from ..ops._checks import is_transformed
from ..ops._layers import has_global_hooks
from .border import Entrance, holds_values, leave, settle
from .classes import Fused
from .trees import tensors_in
from .values import Image, is_value


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
        if (args and is_value(args[0])) or holds_values((args, kwargs)):
            result = own(self, *args, **kwargs)
            return settle(result) if self._forward_hooks else result
        if not may_defer(args, kwargs):
            return own(self, *args, **kwargs)
        return run(functools.partial(own, self), args, kwargs)

    return forward


def run(call: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """``call`` on the values of its arguments; its results as tensors."""
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
    """What the model made of an input: the caller's own object, with what the model put into its
    lists and dicts."""
    if type(ours) is Image and ours._memory is theirs:
        return theirs
    if theirs is ours:  # there was nothing to turn into a value, but now there may be values in it
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
    return Entrance().enter(inputs)


def tensors_of_graph(result: Any, *inputs: Any) -> Any:
    """What goes out, if what came in were tensors."""
    if any(map(holds_values, inputs)):
        return result
    channels_last = any(is_channels_last(t) for t in inputs if isinstance(t, Tensor))
    return leave(result, channels_last=channels_last)


torch.fx.wrap("values_of_graph")
torch.fx.wrap("tensors_of_graph")
