"""Computed values of a fused model: tensors that behave like the model's own.

The memory of an :class:`Image` may be channels_last although the model's would be contiguous; it is
made contiguous before any operation that depends on strides or memory. Deferred values read their
input later than the model would, so the readers of an image are computed before any operation that
may write to it.
"""

from __future__ import annotations

import functools
import sys
import sysconfig
import weakref
from collections.abc import Callable
from typing import Any, ClassVar

import torch
from torch import Tensor

from .._memory_format import is_channels_last

Operate = Callable[[Any, Any, dict[str, Any]], Any]
Reader = weakref.ref[Any]  # to a Deferred of .chains
ORDINARY = (Tensor, torch.nn.Parameter, torch.nn.Buffer)  # classes without special behaviour


class Value:
    """Base of what stands for a tensor in a fused model."""

    # calls func(*args, **kwargs): set by .calls, which makes values in turn
    _operate: ClassVar[Operate]

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return Value._operate(func, args, kwargs or {})


class Shared(list[Reader]):
    """State of a piece of memory: the deferred values that will read it."""

    escaped = False  # visible where writes go unnoticed: a NumPy array, a view of its bits

    def add(self, reader: Reader) -> None:
        if len(self) >= 8:
            self[:] = [r for r in self if (d := r()) is not None and d.value is None]
        self.append(reader)


class Image(Value, Tensor):
    """A value inside a fused model: a Tensor whose operations pass through :mod:`.calls`."""

    _memory: Tensor
    _shared: Shared  # shared with all values in this memory
    _scope: list[Reader]  # values deferred during this call of the model
    _is_new = False  # the memory is a fused layer's result, unknown outside of the model
    _in_other_format = False  # the model's tensor would be contiguous, this one is not
    # views of an image: the base, and how to derive the view after the base's format changed
    _viewed: Image | None = None
    _derive: Callable[[Tensor], Tensor]
    _derived_from: Tensor
    # number of groups the channels were split into, and whether they are transposed
    _groups: tuple[int, bool] | None = None

    # metadata, without going through torch
    shape = property(lambda self: self._plain.shape)
    dtype = property(lambda self: self._plain.dtype)
    device = property(lambda self: self._plain.device)
    ndim = property(lambda self: self._plain.ndim)
    is_cuda = property(lambda self: self._plain.is_cuda)
    requires_grad = property(
        lambda self: self._plain.requires_grad,
        lambda self, value: Value._operate(Tensor.requires_grad_, (self, value), {}),
    )

    def size(self, dim: Any = None) -> Any:
        return self._plain.size() if dim is None else self._plain.size(dim)

    def dim(self) -> int:
        return self._plain.dim()

    def __reduce_ex__(self, protocol: Any) -> Any:
        return self.exact().__reduce_ex__(protocol)

    @property
    def _plain(self) -> Tensor:
        """The memory, in any format."""
        base = self._viewed
        if base is not None and self._derived_from is not base._plain:
            self._derived_from = base._plain
            self._memory = self._derive(base._plain)
            self._set(self._memory)
        return self._memory

    @property
    def _hidden(self) -> bool:
        """Whether the memory format differs from the model's, which only operations that depend on
        the format can notice."""
        if self._viewed is None:
            return self._in_other_format
        return self._groups is None and self._viewed._hidden

    def exact(self) -> Tensor:
        """The tensor the model would have, strides included."""
        if self._viewed is not None:
            self._viewed.exact()
        elif self._in_other_format:
            # only views of this image share the memory, and they follow
            self._memory, self._in_other_format = self._memory.contiguous(), False
            self._set(self._memory)
        return self._plain

    def view_of(
        self,
        derive: Callable[[Tensor], Tensor],
        memory: Tensor | None = None,
        groups: tuple[int, bool] | None = None,
    ) -> Image:
        """``derive(memory)`` as a view of this image."""
        memory = derive(self._plain) if memory is None else memory
        new = new_image(memory, self._scope, self._shared)
        new._viewed, new._derive, new._derived_from, new._groups = (
            self,
            derive,
            self._memory,
            groups,
        )
        return new

    def _follow(self) -> None:
        """Updates this object's own metadata, which compiled code reads, if the shape changed."""
        with torch._C.DisableTorchFunctionSubclass():
            own = Tensor.size(self)
        if own != self._plain.shape:
            self._set(self._plain)
            self._is_new = False  # it may be the memory of an array

    def _set(self, plain: Tensor) -> None:
        with torch._C.DisableTorchFunctionSubclass():
            Tensor.data.__set__(self, plain.detach())  # type: ignore[attr-defined]


def new_image(memory: Tensor, scope: list[Reader], shared: Shared | None = None) -> Image:
    """``shared``: state of the memory, if other values share it."""
    new = memory.as_subclass(Image)
    new._memory, new._scope = memory, scope
    new._shared = Shared() if shared is None else shared
    return new


def hidden(plain: Tensor, scope: list[Reader]) -> Image:
    """New memory as a value that the model sees as contiguous."""
    if not plain.is_contiguous():
        if is_channels_last(plain):
            new = new_image(plain, scope)
            new._in_other_format = True
            return new
        plain = plain.contiguous()
    elif 1 in plain.shape and plain.stride() != _strides(plain.shape):
        # torch infers formats from the strides of dimensions of size 1
        plain = plain.as_strided(plain.shape, _strides(plain.shape))
    return new_image(plain, scope)


@functools.lru_cache(maxsize=4096)
def _strides(shape: Any) -> tuple[int, ...]:
    strides, step = [], 1
    for size in reversed(shape):
        strides.append(step)
        step *= max(size, 1)
    return tuple(reversed(strides))


_LEAST_REPLACED = 1 << 20  # bytes; a smaller result's memory costs little


def is_replaceable(value: Any) -> bool:
    """Whether a result may take the memory of ``value`` once nothing else refers to it."""
    if not _ALONE or type(value) is not Image or not value._is_new:
        return False
    return value._memory.nbytes >= _LEAST_REPLACED


def is_held_alone(held: list[Image]) -> bool:
    """Whether the memory of the image in the list would be freed with the list."""
    return _references(held) in _ALONE


def _references(held: list[Image]) -> tuple[int, ...]:
    """Counts all that can hold the memory of the image in the list: references of Python and of C++
    to the image and to its tensor, and the tensors, storages and arrays that share the storage.
    Weak references of Python count, too: another thread may follow one."""
    uses: Any = Tensor._use_count  # type: ignore[attr-defined]
    with torch._C.DisableTorchFunctionSubclass():
        storage = held[0]._memory.untyped_storage()
        objects = (held[0], held[0]._memory, storage)
        weak = sum(map(weakref.getweakrefcount, objects))
        del objects
        return (
            weak,
            held[0]._base is None,  # otherwise the image itself refers to its tensor
            sys.getrefcount(held[0]),
            sys.getrefcount(held[0]._memory),
            uses(held[0]),
            uses(held[0]._memory),
            sys.getrefcount(storage),
            torch._C._storage_Use_Count(storage._cdata),
            storage.is_shared(),  # with other processes
        )


def _alone() -> set[tuple[int, ...]]:
    """What :func:`_references` counts where nothing else holds the memory; empty if this Python or
    this torch cannot count."""
    if sysconfig.get_config_var("Py_GIL_DISABLED"):  # the lock may come and go with imports
        return set()
    counts = set()
    for mode in (torch.no_grad, torch.inference_mode):
        with mode():
            try:
                counts.add(_references([new_image(torch.empty(1), [])]))
                held = new_image(torch.empty(1), [])
                if _references([held]) in counts:
                    return set()
            except AttributeError:
                return set()
    return counts


_ALONE = _alone()
