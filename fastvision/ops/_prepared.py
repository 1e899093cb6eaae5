"""Remembers what was derived from weights (folded, packed) until one of them changes."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Hashable, Sequence
from typing import Generic, TypeVar

from torch import Tensor

T = TypeVar("T")
_MOST_OPTIONS = 8  # of one weight


def _state(tensor: Tensor) -> tuple[int, int]:
    return tensor._version, tensor.data_ptr()


class PreparedWeights(Generic[T]):
    """One value per weight and options, made again when a tensor it was made of was written to.

    In-place operations, optimizer steps and ``load_state_dict`` are noticed; like autograd's own
    checks, this goes by the tensors' version counters, which a write through ``.data`` or another
    alias of the memory does not raise.
    """

    def __init__(self) -> None:
        self._entries: dict[int, dict[Hashable, tuple[list[object], T]]] = {}

    def get(
        self, tensors: Sequence[Tensor | None], options: Hashable, make: Callable[[], T]
    ) -> T:
        """What ``make()`` gives for ``tensors``, whose first one is the weight, and ``options``."""
        weight = tensors[0]
        assert weight is not None
        if any(t is not None and t.is_inference() for t in tensors):
            return make()  # such tensors have no version counter
        entries = self._entries.get(id(weight))
        if entries is not None and (found := entries.get(options)) is not None:
            owners, value = found
            for owner, tensor in zip(owners, tensors, strict=True):
                if tensor is None:
                    if owner is not None:
                        break
                elif owner is None or owner[0]() is not tensor or owner[1] != _state(tensor):  # type: ignore[index]
                    break
            else:
                return value
        value = make()
        if entries is None or len(entries) >= _MOST_OPTIONS:
            entries = self._entries[id(weight)] = {}
        entries[options] = (
            [None if t is None else (self._reference(t, t is weight), _state(t)) for t in tensors],
            value,
        )
        return value

    def _reference(self, tensor: Tensor, is_weight: bool) -> weakref.ref[Tensor]:
        if not is_weight:
            return weakref.ref(tensor)
        key = id(tensor)

        def forget(_: object) -> None:
            self._entries.pop(key, None)

        return weakref.ref(tensor, forget)
