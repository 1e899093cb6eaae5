"""Weights in the form a kernel reads, made once per content.

Whoever writes to a weight need not tell anybody: optimizers with ``fused=True``, collectives,
shared memory, ``.data``, NumPy and DLPack raise no version counter. So every call looks at the
values themselves: a fingerprint of 64 bits over all bytes, types and layouts
(csrc/ops/fingerprint.cpp), read at memory speed. What was made is used only for the values that it
was made of.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Hashable
from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter

from ... import _extension

torch.library.define("fastvision::fingerprint", "(Tensor?[] tensors) -> int")

MAX_PURPOSES = 16  # per weight: one that meets ever more input shapes must not fill the memory

_fingerprint = torch.ops.fastvision.fingerprint.default


class _Entry:
    """What was made of the weight in one storage; goes when the storage does."""

    def __init__(self, address: int, weight: Tensor) -> None:
        # the storage, not the tensor: torch.utils.swap_tensors refuses tensors with weak references
        self.storage = weakref.ref(weight.untyped_storage(), lambda _: _forget(address, self))
        self.made: dict[Hashable, tuple[int, Any]] = {}  # by purpose


# by the address of the weight. No lock, which a fork could leave held: each access is one operation
# on a dictionary, and two threads that make the same thing at once both make it right
_entries: dict[int, _Entry] = {}


def _forget(address: int, entry: _Entry) -> None:
    if _entries.get(address) is entry:
        _entries.pop(address, None)


def _is_ordinary(tensor: Tensor | None) -> bool:
    """Not of a subclass, which may keep its values elsewhere, and its bytes are its values."""
    return tensor is None or (type(tensor) in (Tensor, Parameter) and not tensor.is_neg())


def can_remember(tensors: tuple[Tensor | None, ...]) -> bool:
    """Whether the values can be looked at in each call: on a GPU that would wait for the device."""
    return (
        _extension.missing is None
        and all(t is None or t.is_cpu for t in tensors)
        and all(map(_is_ordinary, tensors))
    )


def fingerprint(tensors: tuple[Tensor | None, ...]) -> int:
    """Of values, types and layouts; -1 if a tensor has gaps or repeats elements."""
    return _fingerprint(tensors)


def recall(tensors: tuple[Tensor | None, ...], purpose: Hashable) -> Any:
    """What was made of these values for that purpose, or None."""
    weight = tensors[0]
    entry = _entries.get(weight.data_ptr())  # type: ignore[union-attr]
    found = None if entry is None else entry.made.get(purpose)
    return found[1] if found is not None and found[0] == _fingerprint(tensors) else None


def remember(
    tensors: tuple[Tensor | None, ...], fingerprint: int, purpose: Hashable, made: Any
) -> None:
    """``made`` is what :func:`recall` returns for tensors of that fingerprint. The caller has to
    know that it was made of these values: from a fingerprint taken before and one taken after."""
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
    """``make(tensors, *options)``, or what it gave the last time for the same values.

    Args:
        tensors: all that ``make`` reads. The first one is a Tensor, with whose storage the result
            goes.
        purpose: tells apart different things made of the same weight; holds the options.
        make: its result must not alias ``tensors``.
    """
    if not can_remember(tensors):
        return make(tensors, *options)
    made = recall(tensors, purpose)
    if made is None:
        before = _fingerprint(tensors)
        made = make(tensors, *options)
        if before >= 0 and before == _fingerprint(tensors):  # nobody wrote meanwhile
            remember(tensors, before, purpose, made)
    return made


class Packs:
    """The forms of one layer's weights that kernels read, each made when it is first needed.

    Args:
        fingerprint: of the weights that the forms must be made of; None if they are the owner's,
            who makes new packs when it changes them.
    """

    def __init__(self, fingerprint: int | None = None) -> None:
        self.fingerprint = fingerprint
        self._forms: dict[Hashable, Any] = {}

    def find(self, form: Hashable) -> Any:
        """What :meth:`get` has kept, or None."""
        return self._forms.get(form)

    def get(self, form: Hashable, tensors: tuple[Any, ...], make: Callable[[], Any]) -> Any:
        """``make()``, which reads ``tensors``, or what it gave the last time."""
        found = self._forms.get(form)
        if found is None:
            found = make()
            if self.fingerprint is None or self.fingerprint == _fingerprint(tensors):
                for oldest in list(self._forms)[: 1 - MAX_PURPOSES]:
                    self._forms.pop(oldest, None)
                self._forms[form] = found
        return found
