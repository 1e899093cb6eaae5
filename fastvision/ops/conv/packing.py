"""Caches packed weights by the values of the originals.

Many writes to a weight do not increment its version counter: optimizers with ``fused=True``,
collectives, shared memory, ``.data``, NumPy and DLPack. So every call computes a 64-bit fingerprint
of all bytes, types and layouts (csrc/ops/fingerprint.cpp), at the speed of memory. A cached object
is only used for the values it was made from.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Hashable
from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter

from ... import _extension
from .._library import direct

torch.library.define("fastvision::fingerprint", "(Tensor?[] tensors) -> int")

MAX_PURPOSES = 16  # per weight; bounds memory when input shapes keep changing

_fingerprint = direct(torch.ops.fastvision.fingerprint.default)


class _Entry:
    """Objects made from the weight in one storage; dropped with the storage."""

    def __init__(self, address: int, weight: Tensor) -> None:
        # the storage, not the tensor: torch.utils.swap_tensors refuses tensors with weak references
        self.storage = weakref.ref(weight.untyped_storage(), lambda _: _forget(address, self))
        self.made: dict[Hashable, tuple[int, Any]] = {}  # by purpose


# by the weight's address. No lock, since a fork could leave it held: each access is a single dict
# operation, and if two threads make the same object at once, both are right
_entries: dict[int, _Entry] = {}


def _forget(address: int, entry: _Entry) -> None:
    if _entries.get(address) is entry:
        _entries.pop(address, None)


def _is_ordinary(tensor: Tensor | None) -> bool:
    """Whether the bytes are the values: not in a subclass with its own storage, or a lazy neg."""
    return tensor is None or (type(tensor) in (Tensor, Parameter) and not tensor.is_neg())


def can_remember(tensors: tuple[Tensor | None, ...]) -> bool:
    """Whether every call can read the values; on a GPU that would synchronize."""
    return (
        _extension.missing is None
        and all(t is None or t.is_cpu for t in tensors)
        and all(map(_is_ordinary, tensors))
    )


def fingerprint(tensors: tuple[Tensor | None, ...]) -> int:
    """Hash of values, types and layouts; -1 if a tensor has gaps or overlapping elements."""
    return _fingerprint(tensors)


def recall(tensors: tuple[Tensor | None, ...], purpose: Hashable) -> Any:
    """The object made from these values for this purpose, or None."""
    weight = tensors[0]
    entry = _entries.get(weight.data_ptr())  # type: ignore[union-attr]
    found = None if entry is None else entry.made.get(purpose)
    return found[1] if found is not None and found[0] == _fingerprint(tensors) else None


def stored(weight: Tensor, purpose: Hashable) -> Any:
    """What :func:`recall` finds, for any values of the tensors; the caller compares them."""
    entry = _entries.get(weight.data_ptr())
    found = None if entry is None else entry.made.get(purpose)
    return None if found is None else found[1]


def remember(
    tensors: tuple[Tensor | None, ...], fingerprint: int, purpose: Hashable, made: Any
) -> None:
    """Stores ``made`` for :func:`recall` with tensors of this fingerprint.

    The caller has to ensure that it was made from these values, by taking the fingerprint before
    and after.
    """
    weight = tensors[0]
    assert weight is not None
    address = weight.data_ptr()
    entry = _entries.get(address)
    if entry is None or entry.storage() is None:
        entry = _entries[address] = _Entry(address, weight)
    entry.made.pop(purpose, None)
    for oldest in list(entry.made)[: 1 - MAX_PURPOSES]:
        entry.made.pop(oldest, None)
    entry.made[purpose] = (fingerprint, made)


def remembered(
    tensors: tuple[Tensor | None, ...],
    purpose: Hashable,
    make: Callable[..., Any],
    *options: Any,
) -> Any:
    """``make(tensors, *options)``, cached by the values of ``tensors``.

    Args:
        tensors: everything ``make`` reads. The first one is a Tensor; the result is dropped with
            its storage.
        purpose: distinguishes objects made from the same weight; includes the options.
        make: its result must not alias ``tensors``.
    """
    if not can_remember(tensors):
        return make(tensors, *options)
    made = recall(tensors, purpose)
    if made is None:
        before = _fingerprint(tensors)
        made = make(tensors, *options)
        if before >= 0 and before == _fingerprint(tensors):  # no write in between
            remember(tensors, before, purpose, made)
    return made


class Packs:
    """The packed forms of one layer's weights, each made on first use.

    Args:
        fingerprint: fingerprint of the weights to pack; None if the owner makes new packs whenever
            the weights change.
    """

    def __init__(self, fingerprint: int | None = None) -> None:
        self.fingerprint = fingerprint
        self._forms: dict[Hashable, Any] = {}

    def find(self, form: Hashable) -> Any:
        """The form cached by :meth:`get`, or None."""
        return self._forms.get(form)

    def get(self, form: Hashable, tensors: tuple[Any, ...], make: Callable[[], Any]) -> Any:
        """``make()``, cached; it reads ``tensors``."""
        found = self._forms.get(form)
        if found is None:
            found = make()
            if self.fingerprint is None or self.fingerprint == _fingerprint(tensors):
                for oldest in list(self._forms)[: 1 - MAX_PURPOSES]:
                    self._forms.pop(oldest, None)
                self._forms[form] = found
        return found
