"""Converts tensors to values when they enter a fused model, and back when they leave it."""

from __future__ import annotations

import dataclasses
import weakref
from typing import Any

import torch
from torch import Tensor

from .._memory_format import is_channels_last
from ..ops._checks import is_eager
from .chains import Deferred, Traced, compute_readers, is_deferred, is_value, plain_of
from .images import ORDINARY, Image, Shared, new_image
from .trees import map_tree


class Entrance:
    """Converts the arguments of one call from outside."""

    def __init__(self) -> None:
        self.scope: list[weakref.ref[Deferred]] = []
        self.known: dict[int, Shared] = {}  # by memory address

    def enter(self, value: Any) -> Any:
        """Converts tensors, also inside lists, tuples and dicts."""
        if type(value) in ORDINARY or (isinstance(value, Tensor) and not is_eager()):
            if not value.is_floating_point() or value.layout != torch.strided:
                return value
            if not is_eager():
                return Traced(value)
            address = value.untyped_storage().data_ptr()
            return new_image(value, self.scope, self.known.setdefault(address, Shared()))
        return map_tree(self.enter, value)

    def close(self) -> None:
        """Ends the call: computes deferred values that are still referenced, before their inputs
        change."""
        for reference in self.scope:
            deferred = reference()
            if deferred is not None and not deferred.is_lost():
                deferred.compute()
        self.scope.clear()


def leave(value: Any, *, channels_last: bool, seen: set[int] | None = None) -> Any:
    """Converts results to plain tensors; lists and dicts keep their identity.

    ``channels_last``: whether the caller's tensors are. If not, values in that format become
    contiguous, as torch's own layers would return them.
    """
    if is_deferred(value):
        plain = value.compute()
        if type(plain) is not Image:  # under a tracer
            return plain.contiguous() if is_channels_last(plain) and not channels_last else plain
        value = plain
    if type(value) is Image:
        return value._plain if channels_last else value.exact()
    if isinstance(value, Tensor):
        return value
    seen = set() if seen is None else seen
    if id(value) in seen:  # contains itself
        return value
    seen.add(id(value))
    if type(value) is list or isinstance(value, dict):
        for key, item in value.items() if isinstance(value, dict) else enumerate(value):
            new = leave(item, channels_last=channels_last, seen=seen)
            if new is not item:
                value[key] = new
        return value
    if dataclasses.is_dataclass(type(value)):
        for name in value.__dataclass_fields__:
            item = getattr(value, name, None)
            new = leave(item, channels_last=channels_last, seen=seen)
            if new is not item:
                object.__setattr__(value, name, new)
        return value
    return map_tree(lambda item: leave(item, channels_last=channels_last, seen=seen), value)


def tensor_of(value: Any) -> Any:
    """The tensor of a value, in any memory format, for code after the last layer: its operations
    need not pass through values. What is none is returned as it is."""
    if not is_value(value):
        return value
    value = value.compute() if is_deferred(value) else value
    if type(value) is Image:
        compute_readers(value)
        value._shared.escaped = True
    return plain_of(value)


def settle(value: Any) -> Any:
    """``value`` with all deferred values computed."""
    return value.compute() if is_deferred(value) else map_tree(settle, value)


def holds_values(value: Any) -> bool:
    if is_value(value):
        return True
    if isinstance(value, (list, tuple)):
        return any(map(holds_values, value))
    return isinstance(value, dict) and any(map(holds_values, value.values()))
