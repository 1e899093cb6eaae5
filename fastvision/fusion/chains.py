"""Deferred values of a fused model: chains of layers that are computed as one op.

A fused convolution is lazy. It returns a :class:`Deferred`, which a normalization, addition or
activation after it extends, whichever code calls them; any other use computes the whole chain. So
nothing about the model's code has to be known, and there is no graph: each call runs the model's
own forward.

Images and Deferreds exist in eager mode only. A tracer has its own tensors, for which a
:class:`Traced` stands.
"""

from __future__ import annotations

import functools
import threading
import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from .._memory_format import is_channels_last
from ..ops._checks import is_eager
from .anchors import NO_END, End, Norm, Ready
from .images import (
    Image,
    Value,
    hidden,
    is_held_alone,
    is_replaceable,
    new_image,
)
from .trees import map_tree


class _Chain(Value):
    """A deferred chain so far: an anchor, an optional normalization, an optional addition."""

    anchor: Any = None
    source: Any = None  # an Image; under a tracer a Traced
    ready: Any = None
    stamp: int | None = None  # writes to the weights and the normalization's until their calls
    normalization: Norm | None = None
    residual: Any = None  # an Image; under a tracer a tensor
    end: End | None = None  # an activation that was called
    value: Any = None  # set once computed
    used = False  # whether a longer chain extends it

    @property
    def stage(self) -> str:
        return (
            "added"
            if self.residual is not None
            else "raw"
            if self.normalization is None
            else "normed"
        )

    def compute(self) -> Any:
        """The value as an Image; under a tracer the tensor."""
        if self.value is None and self.used:
            self.ready.kept.add(self.stage)
        _Chain.finish(self)  # without its lock
        return self.value

    def finish(self) -> None:
        """Computes the value for others than the model's code."""
        if self.value is None:
            self.settle(self._run(self.end or NO_END, last=True))

    def is_lost(self) -> bool:
        """Whether the computation was interrupted by an exception and cannot be repeated."""
        return self.value is None and self.source is None

    def settle(self, value: Any) -> None:
        """Sets the value and drops the inputs."""
        self.value, self.source, self.normalization, self.residual = value, None, None, None

    def may_go_on(self) -> bool:
        """Whether the chain may be extended: this stage's value has not been used by itself, now or
        in an earlier call."""
        if self.value is not None or self.ready is None or self.end is not None:
            return False
        kept = self.ready.kept
        return not kept or self.stage not in kept

    def may_normalize(self, norm: Norm) -> bool:
        if self.normalization is not None or self.residual is not None or not self.may_go_on():
            return False
        anchor = self.anchor
        return anchor.takes_norm and norm.is_of(anchor.out_channels)

    def may_add(self) -> bool:
        return self.residual is None and self.may_go_on() and self.anchor.takes_residual

    # another thread may compute the value before these; then they return NotImplemented

    def longer(self, norm: Norm | None, residual: Any) -> Any:
        """A new value: this chain, extended."""
        if not self.may_go_on():
            return NotImplemented
        self.used = True
        stamp = self.stamp
        if stamp is not None and norm is not self.normalization and norm is not None:
            stamp += norm.writes()
        new = _begin(self.anchor, self.source, self.ready, stamp)
        new.normalization = norm
        if residual is not None:
            _Chain.join(new, residual)  # without its lock
        return new

    def join(self, residual: Any) -> Any:
        """This chain, extended by an addition."""
        if not self.may_go_on():
            return NotImplemented
        self.residual = residual
        if type(residual) is Image:
            residual._shared.add(weakref.ref(self))
        return self

    def activated(self, end: End, *, in_place: bool) -> Any:
        if not self.may_go_on():
            return NotImplemented
        if self._may_overwrite(self.residual):
            # computed when its residual may be of no more use
            new = self if in_place else self.longer(self.normalization, self.residual)
            new.end = end
            return new
        result = self._run(end, last=in_place)
        if in_place:
            self.settle(result)
        else:
            self.used = True
        return result if type(result) is Image else Traced(result)

    def _may_overwrite(self, residual: Any) -> bool:
        return self.anchor.overwrites and is_replaceable(residual)

    def _run(self, end: End, *, last: bool) -> Any:
        """``last``: whether the chain's inputs are dropped afterwards."""
        ready = self.ready
        if self.source is None:
            raise RuntimeError("the computation of this value was interrupted")
        if self.stamp is not None and (
            ready.writes(self.normalization) != self.stamp
            or not ready.serves(self.anchor._parameters)
        ):
            raise RuntimeError(
                f"the weights of a fused {type(self.anchor).__name__}, or of the normalization "
                "after it, were written to between its call and the first use of what it gave: "
                "use it before, or clone() it"
            )
        source, norm, held = self.source, self.normalization, [self.residual]
        self.source = None  # an exception leaves nothing to compute from
        self.residual = None  # held by the list alone
        overwrite = last and self._may_overwrite(held[0]) and is_held_alone(held)
        if not overwrite:
            self.residual = held[0]
            self.source = source
        return run_chain(
            self.anchor, source, norm, held[0], end, ready.autocast, overwrite=overwrite
        )

    # metadata is known before the value is computed

    @property
    def shape(self) -> torch.Size:
        if self.value is not None:
            return self.value.shape
        if self.ready.placeholder is not None:
            return self.ready.placeholder.shape
        return torch.Size(self.anchor.shape_of(plain_of(self.source)))

    @property
    def dtype(self) -> torch.dtype:
        if self.value is not None:
            return self.value.dtype
        return self.ready.autocast or self.ready.dtype

    @property
    def device(self) -> torch.device:
        source = self.source
        return (self.compute() if source is None else source).device

    @property
    def ndim(self) -> int:
        return len(self.shape)

    def dim(self) -> int:
        return len(self.shape)

    def size(self, dim: Any = None) -> Any:
        return self.shape if dim is None else self.shape[dim]

    def __reduce_ex__(self, protocol: Any) -> Any:
        return self.compute().__reduce_ex__(protocol)

    def __deepcopy__(self, memo: Any) -> Any:
        return Value._operate(Tensor.__deepcopy__, (self, memo), {})


def run_chain(
    anchor: Any,
    source: Any,
    norm: Norm | None,
    residual: Any,
    end: End,
    autocast: torch.dtype | None,
    *,
    overwrite: bool = False,
) -> Any:
    """Computes a chain: an Image; under a tracer the tensor.

    ``overwrite``: the result may take the residual's memory.
    """
    is_image = type(source) is Image
    x = source._memory if is_image and source._viewed is None else plain_of(source)
    if residual is not None:
        residual = plain_of(residual)
    eager = is_eager()
    if overwrite:
        plain = anchor.run(x, norm, residual, end, autocast, eager=eager, overwrite=True)
    else:
        plain = anchor.run(x, norm, residual, end, autocast, eager=eager)
    if not is_image or type(plain) is not Tensor:  # under a tracer, or made by a dispatch mode
        return plain
    # the model's own layer would have kept the format
    if not source._in_other_format and source._viewed is None and is_channels_last(x):
        new = new_image(plain, source._scope)
    else:
        new = hidden(plain, source._scope)
    new._is_new = anchor.overwrites
    return new


def _locked(method: Callable[..., Any]) -> Any:
    @functools.wraps(method)
    def run(self: Any, *args: Any, **kwargs: Any) -> Any:
        with self.lock:
            return method(self, *args, **kwargs)

    return run


class Deferred(_Chain, Tensor):  # type: ignore[override]
    """A chain in eager mode. C++ code also sees a Tensor, without memory; its operations reach
    ``__torch_dispatch__``."""

    lock: threading.RLock  # held while the value is computed, which takes the inputs away

    finish, is_lost = _locked(_Chain.finish), _locked(_Chain.is_lost)
    longer, join = _locked(_Chain.longer), _locked(_Chain.join)
    activated = _locked(_Chain.activated)

    def compute(self) -> Any:
        if self.value is None:
            with self.lock:
                return _Chain.compute(self)
        return self.value

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:  # type: ignore[override]
        return func(*map_values(args, exact_of), **map_values(kwargs or {}, exact_of))


class Traced(_Chain):
    """A chain or a tensor under a tracer; poses as a Tensor."""

    def __init__(self, plain: Tensor | None = None) -> None:
        self.value = plain

    @property  # type: ignore[misc]
    def __class__(self) -> type:
        return Tensor

    def __getattr__(self, name: str) -> Any:
        found = getattr(Tensor, name)  # raises Tensor's AttributeError
        if callable(found):
            return lambda *args, **kwargs: Value._operate(found, (self, *args), kwargs)
        return Value._operate(found.__get__, (self,), {})

    def __iter__(self) -> Any:
        return iter(self.unbind(0))

    def __hash__(self) -> int:
        return id(self)


def defer(anchor: Any, source: Any, ready: Ready) -> Any:
    """The deferred result of ``anchor`` for ``source``."""
    return _begin(anchor, source, ready, ready.writes())


def _begin(anchor: Any, source: Any, ready: Ready, stamp: int | None) -> Any:
    if type(source) is Image:
        new: Any = _make_subclass(Deferred, ready.placeholder)
        new.lock = threading.RLock()
        reader = weakref.ref(new)
        source._shared.add(reader)
        source._scope.append(reader)
    else:
        new = Traced()
    new.anchor, new.source, new.ready, new.stamp = anchor, source, ready, stamp
    return new


_make_subclass = Tensor._make_subclass


def _delegate(name: str) -> Callable[..., Any]:
    function = getattr(Tensor, name)
    return lambda *args, **kwargs: Value._operate(function, args, kwargs)


# Python looks special methods up in the class
_SPECIAL = """
    add radd sub rsub mul rmul truediv rtruediv floordiv rfloordiv mod rmod pow rpow matmul
    rmatmul and or xor lshift rshift neg pos abs invert eq ne lt le gt ge iadd isub imul
    itruediv ifloordiv imod ipow iand ior ixor ilshift irshift getitem setitem len bool int
    float complex index contains format repr array
"""
for _name in _SPECIAL.split():
    if hasattr(Tensor, f"__{_name}__"):
        setattr(Traced, f"__{_name}__", _delegate(f"__{_name}__"))


def is_deferred(value: Any) -> bool:
    kind = type(value)
    return kind is Deferred or kind is Traced


def is_value(value: Any) -> bool:
    kind = type(value)
    return kind is Image or kind is Deferred or kind is Traced


def plain_of(value: Any) -> Tensor:
    """The memory of a value, in any format."""
    kind = type(value)
    if kind is Deferred or kind is Traced:
        value = value.compute()
    if type(value) is Image:
        return value._memory if value._viewed is None else value._plain
    return value


def compute_readers(value: Image) -> None:
    """Computes what is deferred and will read the memory, before it is written to."""
    readers = value._shared
    while readers:
        deferred = readers.pop()()
        if deferred is not None:
            deferred.finish()


def autocast_of(x: Tensor) -> torch.dtype | None:
    """The dtype autocast would cast ``x`` to; None if it is off or ``x`` is float64."""
    kind = "cpu" if x.is_cpu else x.device.type
    if not torch.is_autocast_enabled(kind) or x.dtype == torch.float64:
        return None
    return torch.get_autocast_dtype(kind)


def map_values(value: Any, function: Callable[[Any], Any]) -> Any:
    """Maps ``function`` over the values in nested lists, tuples and dicts."""
    if is_value(value):
        return function(value)
    return map_tree(lambda item: map_values(item, function), value)


def exact_of(value: Any) -> Tensor:
    """The tensor that the model would have, strides included."""
    computed = value.compute() if is_deferred(value) else value
    if type(computed) is Image:
        return computed.exact()
    plain = computed
    if is_channels_last(plain):  # under a tracer
        value.value = plain = plain.contiguous()
    return plain
