"""Weights in the form a kernel reads, made once, and anew when a tensor behind them changes."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Hashable
from typing import Any

from torch import Tensor
from torch.nn import Parameter

MOST_PURPOSES = 16  # per weight: one that meets ever new input shapes must not fill the memory

# what was made of a weight, by its id and what it was made for
_entries: dict[int, _Entry] = {}
_lock = threading.Lock()  # of what is made: threads may share a model


class _Entry:
    def __init__(self, weight: Tensor) -> None:
        identity = id(weight)
        self.weight = weakref.ref(weight, lambda _: _entries.pop(identity, None))
        self.made: dict[Hashable, tuple[list[Any], list[Tensor], Any]] = {}


def _state(tensors: tuple[Tensor | None, ...]) -> list[Any] | None:
    """Differs after a tensor is written to or given other memory; None if that cannot be told."""
    try:
        return [
            None
            if t is None
            else (t.data_ptr(), t._version, t.size(), t.stride(), t.dtype, t.is_neg())
            for t in tensors
        ]
    except (RuntimeError, AttributeError):  # made in inference mode: no version; or no tensor
        return None


def _is_ordinary(tensor: Tensor | None) -> bool:
    """Not of a subclass, which may keep its values elsewhere."""
    return tensor is None or type(tensor) in (Tensor, Parameter)


def recall(tensors: tuple[Tensor | None, ...], purpose: Hashable) -> Any:
    """What was made of the tensors, as they are, for that purpose, or None."""
    entry = _entries.get(id(tensors[0]))
    if entry is None or entry.weight() is not tensors[0]:
        return None
    found = entry.made.get(purpose)
    return found[2] if found is not None and found[0] == _state(tensors) else None


def remember(tensors: tuple[Tensor | None, ...], purpose: Hashable, made: Any) -> None:
    """``made`` is what :func:`recall` returns until one of the tensors changes."""
    weight, state = tensors[0], _state(tensors)
    if state is None or weight is None or not all(map(_is_ordinary, tensors)):
        return
    entry = _entries.get(id(weight))
    if entry is None or entry.weight() is not weight:
        entry = _entries[id(weight)] = _Entry(weight)
    # the memory is kept with it, so that no other tensor can come to lie at the same address
    alive = [t.detach() for t in tensors if t is not None]
    with _lock:
        entry.made.pop(purpose, None)
        # what was made of the weight as it no longer is would only hold memory
        for stale in [p for p, (past, _, _) in entry.made.items() if past[0] != state[0]]:
            entry.made.pop(stale)
        while len(entry.made) >= MOST_PURPOSES:
            entry.made.pop(next(iter(entry.made)))
        entry.made[purpose] = (state, alive, made)


def remembered(
    tensors: tuple[Tensor | None, ...],
    purpose: Hashable,
    make: Callable[..., Any],
    *options: Any,
) -> Any:
    """``make(tensors, *options)``, or what it gave the last time if no tensor has changed since.

    Args:
        tensors: all that ``make`` reads. The first one is a Tensor, with which the result goes.
        purpose: tells apart different things made of the same weight; holds the options.
        make: its result must not alias ``tensors``, or not keep them alive.

    Not noticed is what torch does not count: writing through ``.data``, NumPy or DLPack.
    """
    made = recall(tensors, purpose)
    if made is None:
        made = make(tensors, *options)
        remember(tensors, purpose, made)
    return made
