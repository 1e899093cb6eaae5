"""Tensors in nested lists, tuples and dicts."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from torch import Tensor


def tensors_in(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from tensors_in(item)
    elif isinstance(value, dict):
        for item in value.values():
            yield from tensors_in(item)


def map_tree(function: Callable[[Any], Any], value: Any) -> Any:
    """Maps ``function`` over the items of a list, tuple or dict; returns the container itself if
    nothing changes."""
    if isinstance(value, (list, tuple)):
        items = [function(item) for item in value]
        if all(new is old for new, old in zip(items, value, strict=True)):
            return value
        if isinstance(value, list):
            return items
        return type(value)(*items) if hasattr(value, "_fields") else type(value)(items)
    if isinstance(value, dict):
        new = {key: function(item) for key, item in value.items()}
        if all(new[key] is item for key, item in value.items()):
            return value
        other = value.copy()
        other.update(new)
        return other
    return value
