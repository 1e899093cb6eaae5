"""What travels through a fused model instead of tensors: maps, and results not computed yet.

A fused convolution does not compute. It returns a :class:`Deferred`, which the normalization,
addition and activation after it extend, whatever code calls them; the first use of another kind
computes all of it as one op. So nothing has to be known of the model's code, and no graph of it is
made: what runs is the model's own forward, in each call.

A computed value is an :class:`Image`, a Tensor that behaves as the model's own would. It may lie in
channels_last although the model's is contiguous: what depends on strides or memory finds it
contiguous, because it is made so first. A Deferred reads its input later than the model would, so
before an operation that may write to an image, what reads it is computed.
"""

from __future__ import annotations

import dataclasses
import functools
import weakref
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from ..ops._checks import is_eager
from .formats import ESCAPES, FRESH, is_query, takes_any_format


class Norm(NamedTuple):
    """A batch normalization with fixed statistics, whatever computed it in the model."""

    weight: Tensor | None
    bias: Tensor | None
    mean: Tensor
    var: Tensor
    eps: float
    name: str = "batch_norm"  # for reports


class Steps(NamedTuple):
    """What follows an anchor, in this order."""

    norm: Norm | None = None
    residual: Any = None  # an Image
    activation: str = "none"
    negative_slope: float = 0.01


class Anchor(Protocol):
    """What a chain begins with: a convolution, a linear layer, a normalization."""

    takes_norm: bool
    takes_residual: bool
    # stages whose value others use besides the chain: computed there from the next call on
    kept: set[str]

    def run(self, x: Tensor, steps: Steps, autocast: torch.dtype | None) -> Tensor: ...

    def stamp(self) -> Any: ...  # other after a change of its weight

    def shape_of(self, x: Tensor) -> torch.Size | tuple[int, ...]: ...


def is_channels_last(x: Tensor) -> bool:
    """Whether ``x``, [N, C, H, W] or [C, H, W], is in channels_last and not contiguous as well."""
    if x.is_contiguous() or x.dim() not in (3, 4):
        return False
    x = x if x.dim() == 4 else x.unsqueeze(0)
    return x.is_contiguous(memory_format=torch.channels_last)


# --- computed values

_ORDINARY = (Tensor, torch.nn.Parameter, torch.nn.Buffer)  # no sub-class that does things its way


class Shared:
    """What is known of a piece of memory."""

    def __init__(self) -> None:
        self.readers: list[weakref.ref[Deferred]] = []
        self.escaped = False  # to where writes are not seen: a NumPy array, a view of its bits

    def add(self, reader: weakref.ref[Deferred]) -> None:
        if len(self.readers) >= 8:
            self.readers = [r for r in self.readers if (d := r()) is not None and d.value is None]
        self.readers.append(reader)


class Image(Tensor):
    """A value inside a fused model: a Tensor whose operations pass through this module."""

    _memory: Tensor
    _shared: Shared  # with all that share the memory
    _scope: list[weakref.ref[Deferred]]  # what was deferred since the model was called
    _in_other_format: bool  # the model's tensor would be contiguous, and this one is not
    # of a view of an image in another format: where its memory is, whatever becomes of that
    _viewed: Image | None
    _derive: Callable[[Tensor], Tensor]
    _derived_from: Tensor
    _groups: tuple[int, bool] | None  # what channels were split into, and whether these are swapped

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _call(func, args, kwargs or {})

    # what needs no memory, without the way through torch
    shape = property(lambda self: self._plain.shape)
    dtype = property(lambda self: self._plain.dtype)
    device = property(lambda self: self._plain.device)
    ndim = property(lambda self: self._plain.ndim)
    is_cuda = property(lambda self: self._plain.is_cuda)
    requires_grad = property(
        lambda self: self._plain.requires_grad,
        lambda self, value: _call(Tensor.requires_grad_, (self, value), {}),
    )

    def size(self, dim: Any = None) -> Any:
        return self._plain.size() if dim is None else self._plain.size(dim)

    def dim(self) -> int:
        return self._plain.dim()

    def __reduce_ex__(self, protocol: Any) -> Any:
        return self.exact().__reduce_ex__(protocol)

    @property
    def _plain(self) -> Tensor:
        """The memory, in whatever format."""
        base = self._viewed
        if base is not None and self._derived_from is not base._plain:
            self._derived_from = base._plain
            self._memory = self._derive(base._plain)
            self._set(self._memory)
        return self._memory

    @property
    def _hidden(self) -> bool:
        """Whether the memory is in another format than the model's, which makes no difference to
        operations that ask for none."""
        if self._viewed is None:
            return self._in_other_format
        return self._groups is None and self._viewed._hidden

    def exact(self) -> Tensor:
        """The tensor that the model would have, strides included."""
        if self._viewed is not None:
            self._viewed.exact()
        elif self._in_other_format:
            # none but its views shares the memory, and they follow
            self._memory, self._in_other_format = self._memory.contiguous(), False
            self._set(self._memory)
        return self._plain

    def view_of(
        self,
        derive: Callable[[Tensor], Tensor],
        memory: Tensor | None = None,
        groups: tuple[int, bool] | None = None,
    ) -> Image:
        """``derive(memory)``, which is a view."""
        memory = derive(self._plain) if memory is None else memory
        new = _new_image(memory, self._shared, self._scope)
        new._viewed, new._derive, new._derived_from, new._groups = (
            self,
            derive,
            self._memory,
            groups,
        )
        return new

    def _follow(self) -> None:
        """After a change of what may be the shape: compiled code reads this object's own."""
        with torch._C.DisableTorchFunctionSubclass():
            own = Tensor.size(self)
        if own != self._plain.shape:
            self._set(self._plain)

    def _set(self, plain: Tensor) -> None:
        with torch._C.DisableTorchFunctionSubclass():
            Tensor.data.__set__(self, plain.detach())  # type: ignore[attr-defined]


def image(
    plain: Tensor, like: Image | None, *, hidden: bool = False, shared: Shared | None = None
) -> Any:
    """``plain`` as a value of the same call as ``like``. ``shared``: of memory that others see."""
    if not is_eager():
        return Traced(plain)
    new = _new_image(plain, shared or Shared(), [] if like is None else like._scope)
    new._in_other_format = hidden
    return new


def _new_image(memory: Tensor, shared: Shared, scope: list[weakref.ref[Deferred]]) -> Image:
    new = memory.as_subclass(Image)
    new._memory, new._shared, new._scope = memory, shared, scope
    new._viewed, new._in_other_format = None, False
    return new


class Entrance:
    """Turns the tensors of one call from outside into values."""

    def __init__(self) -> None:
        self.scope: list[weakref.ref[Deferred]] = []
        self.known: dict[int, Shared] = {}  # by the address of the memory

    def enter(self, value: Any) -> Any:
        """Nested as it may be in lists, tuples and dicts."""
        if type(value) in _ORDINARY or (isinstance(value, Tensor) and not is_eager()):
            if not value.is_floating_point() or value.layout != torch.strided:
                return value
            if not is_eager():
                return Traced(value)
            address = value.untyped_storage().data_ptr()
            return _new_image(value, self.known.setdefault(address, Shared()), self.scope)
        return _map(self.enter, value)

    def close(self) -> None:
        """At the end of the call: what somebody keeps is computed, before its inputs change."""
        for reference in self.scope:
            deferred = reference()
            if deferred is not None and deferred.value is None:
                deferred.compute()
        self.scope.clear()


def leave(value: Any, *, channels_last: bool, seen: set[int] | None = None) -> Any:
    """Results of a model as plain tensors; lists and dicts keep their identity. What is hidden
    becomes contiguous, unless the caller's tensors are ``channels_last``: then torch's own layers
    would have kept that."""
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
    if id(value) in seen:  # it is in itself
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
    return _map(lambda item: leave(item, channels_last=channels_last, seen=seen), value)


def settle(value: Any) -> Any:
    """With nothing deferred."""
    return value.compute() if is_deferred(value) else _map(settle, value)


def holds_values(value: Any) -> bool:
    if is_value(value):
        return True
    if isinstance(value, (list, tuple)):
        return any(map(holds_values, value))
    return isinstance(value, dict) and any(map(holds_values, value.values()))


def tensors_in(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from tensors_in(item)
    elif isinstance(value, dict):
        for item in value.values():
            yield from tensors_in(item)


def _map(function: Callable[[Any], Any], value: Any) -> Any:
    """``function`` of what is in a list, tuple or dict; the container itself if nothing changes."""
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


# --- results not computed yet


class _Chain:
    """An anchor's result with the steps after it so far."""

    anchor: Any
    source: Any  # an Image; under a tracer a Traced
    steps: Steps
    autocast: torch.dtype | None
    value: Any  # once it is computed
    used: bool  # by a longer chain
    stamp: Any  # the anchor's when it was called

    def _begin(self, anchor: Any, source: Any, steps: Steps, autocast: torch.dtype | None) -> Any:
        self.anchor, self.source, self.steps, self.autocast = anchor, source, steps, autocast
        self.value, self.used, self.stamp = None, False, None
        return self

    @property
    def stage(self) -> str:
        return (
            "added" if self.steps.residual is not None else "normed" if self.steps.norm else "raw"
        )

    def compute(self) -> Any:
        """The value: an Image; under a tracer the tensor."""
        if self.value is None:
            if self.used:
                self.anchor.kept.add(self.stage)
            self.settle(self._run(self.steps))
        return self.value

    def settle(self, value: Any) -> None:
        """It is that value, and needs nothing else any more."""
        self.value, self.source, self.steps = value, None, Steps()

    def _run(self, steps: Steps) -> Any:
        source, residual = self.source, steps.residual
        if self.stamp is not None and self.stamp != self.anchor.stamp():
            raise RuntimeError(
                f"the weight of a fused {type(self.anchor).__name__} was written to between its "
                "call and the first use of what it gave: use it before, or clone() it"
            )
        x = plain_of(source)
        if residual is not None:
            steps = Steps(steps.norm, plain_of(residual), *steps[2:])
        plain = self.anchor.run(x, steps, self.autocast)
        if type(source) is not Image:  # under a tracer
            return plain
        # the model's own layer would have kept the format
        kept = not source._in_other_format and source._viewed is None and is_channels_last(x)
        return image(plain, source) if kept else hidden(plain, source)

    def may(self, step: str) -> bool:
        """Whether the chain can go on with that step, and nobody else wanted its value so far."""
        anchor = self.anchor
        if self.value is not None or anchor is None:
            return False
        if autocast_of(plain_of(self.source)) != self.autocast:
            return False
        if anchor.kept and self.stage in anchor.kept:
            return False
        if step == "norm":
            return self.stage == "raw" and self.anchor.takes_norm
        if step == "add":
            return self.steps.residual is None and self.anchor.takes_residual
        return True

    def normalized(self, norm: Norm) -> Any:
        self.used = True
        return defer(self.anchor, self.source, Steps(norm), self.autocast)

    def plus(self, residual: Any) -> Any:
        self.used = True
        steps = Steps(self.steps.norm, residual)
        return defer(self.anchor, self.source, steps, self.autocast)

    def activated(self, name: str, slope: float, in_place: bool) -> Any:
        norm, residual, *_ = self.steps
        result = self._run(Steps(norm, residual, name, slope))
        if in_place:
            self.settle(result)
        else:
            self.used = True
        return result if type(result) is Image else Traced(result)

    # what can be told before

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _call(func, args, kwargs or {})

    @property
    def shape(self) -> torch.Size:
        if self.value is not None:
            return self.value.shape
        return torch.Size(self.anchor.shape_of(plain_of(self.source)))

    @property
    def dtype(self) -> torch.dtype:
        if self.value is not None:
            return self.value.dtype
        return plain_of(self.source).dtype if self.autocast is None else self.autocast

    @property
    def device(self) -> torch.device:
        return (self.source if self.value is None else self.value).device

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
        return _call(Tensor.__deepcopy__, (self, memo), {})


class Deferred(_Chain, Tensor):  # type: ignore[override]
    """A chain in eager mode. To compiled code it is a Tensor as well, without memory: its
    operations come to ``__torch_dispatch__``."""

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:  # type: ignore[override]
        return func(*_map_plain(args, _exact_of), **_map_plain(kwargs or {}, _exact_of))


class Traced(_Chain):
    """A chain, or a tensor, under a tracer, which has tensors of its own: stands for a Tensor."""

    def __init__(self, plain: Tensor | None = None) -> None:
        self.anchor = self.source = self.autocast = None
        self.steps, self.used, self.value = Steps(), False, plain

    @property  # type: ignore[misc]
    def __class__(self) -> type:
        return Tensor

    def __getattr__(self, name: str) -> Any:
        found = getattr(Tensor, name)  # its AttributeError
        if callable(found):
            return lambda *args, **kwargs: _call(found, (self, *args), kwargs)
        return _call(found.__get__, (self,), {})

    def __iter__(self) -> Any:
        return iter(self.unbind(0))

    def __hash__(self) -> int:
        return id(self)


@functools.lru_cache(maxsize=4096)
def _placeholder(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """A tensor without memory."""
    with torch.inference_mode(False):
        return torch.empty(shape, dtype=dtype, device="meta")


def defer(anchor: Any, source: Any, steps: Steps, autocast: torch.dtype | None) -> Any:
    """What ``anchor`` gives for ``source``, and ``steps`` after it, not computed yet."""
    if type(source) is not Image:
        return Traced()._begin(anchor, source, steps, autocast)
    x = source._plain
    placeholder = _placeholder(anchor.shape_of(x), autocast or x.dtype)
    new = Tensor._make_subclass(Deferred, placeholder)._begin(anchor, source, steps, autocast)
    new.stamp = anchor.stamp()
    reader = weakref.ref(new)
    source._shared.add(reader)
    if steps.residual is not None:
        steps.residual._shared.add(reader)
    source._scope.append(reader)
    return new


def _delegate(name: str) -> Callable[..., Any]:
    function = getattr(Tensor, name)
    return lambda *args, **kwargs: _call(function, args, kwargs)


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
    """The memory behind a value, in whatever format."""
    if is_deferred(value):
        value = value.compute()
    return value._plain if type(value) is Image else value


def _compute_readers(value: Image) -> None:
    readers = value._shared.readers
    while readers:
        deferred = readers.pop()()
        if deferred is not None and deferred.value is None:
            deferred.settle(deferred._run(deferred.steps))


def autocast_of(x: Tensor) -> torch.dtype | None:
    """What autocast makes of ``x`` at this moment, if it is on; it leaves float64 alone."""
    kind = "cpu" if x.is_cpu else x.device.type
    on = torch.is_autocast_enabled(kind) and x.dtype != torch.float64
    return torch.get_autocast_dtype(kind) if on else None


# --- operations

_RULES: dict[Any, Callable[..., Any]] = {}


def extend(function: Any, rule: Callable[..., Any]) -> None:
    """``rule(func, args, kwargs)`` answers calls of ``function`` with values, or NotImplemented."""
    _RULES[function] = rule


def _call(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    """``func`` of values: by a longer chain, on the memory as it lies, or as the model would."""
    rule = _RULES.get(func)
    if rule is not None:
        result = rule(func, args, kwargs)
        if result is not NotImplemented:
            return result
    as_it_lies = takes_any_format(func)
    as_it_lies &= "memory_format" not in kwargs and "out" not in kwargs
    values: list[Any] = []
    _collect(args, values)
    if kwargs:
        _collect(kwargs, values)
    if not is_eager():
        take = plain_of if as_it_lies or is_query(func) else _exact_of
        return _traced(func(*_map_plain(args, take), **_map_plain(kwargs, take)), values)
    computed = [v.compute() if is_deferred(v) else v for v in values]
    images: list[Image] = [i for i in computed if type(i) is Image]
    if not images:  # what was deferred under a tracer, after it
        return func(*_map_plain(args, plain_of), **_map_plain(kwargs, plain_of))
    if is_query(func):
        return func(*_map_plain(args, plain_of), **kwargs)
    fresh = func in FRESH and not kwargs.get("inplace") and "out" not in kwargs
    if not fresh:  # it may write
        for i in images:
            _compute_readers(i)
    if as_it_lies and all(i._hidden or i._plain.is_contiguous() for i in images):
        result = func(*_map_plain(args, plain_of), **_map_plain(kwargs, plain_of))
        if fresh:
            return _map_tensors(lambda t: _fresh(t, images), result)
        return _map_tensors(lambda t: _known(t, images, args, as_it_lies=True), result)
    result = func(*_map_plain(args, _exact_of), **_map_plain(kwargs, _exact_of))
    for i in images:
        i._follow()
    if func in ESCAPES:
        for i in images:
            i._shared.escaped = True
    return _map_tensors(lambda t: _known(t, images, args, as_it_lies=False), result)


def _collect(value: Any, found: list[Any]) -> None:
    if is_value(value):
        found.append(value)
    elif isinstance(value, (list, tuple)):
        for item in value:
            _collect(item, found)
    elif isinstance(value, dict):
        for item in value.values():
            _collect(item, found)


def _map_plain(value: Any, function: Callable[[Any], Any]) -> Any:
    kind = type(value)
    if kind is Image or kind is Deferred or kind is Traced:
        return function(value)
    if kind is tuple or kind is list:
        return kind([_map_plain(item, function) for item in value])
    if isinstance(value, (list, tuple, dict)):
        return _map(lambda item: _map_plain(item, function), value)
    return value


def _exact_of(value: Any) -> Tensor:
    computed = value.compute() if is_deferred(value) else value
    if type(computed) is Image:
        return computed.exact()
    plain = computed
    if is_channels_last(plain):  # under a tracer
        value.value = plain = plain.contiguous()
    return plain


def _traced(result: Any, values: list[Any]) -> Any:
    if isinstance(result, Tensor):
        for value in values:
            if result is value.value:
                return value
        wrap = type(result) is not Traced and result.is_floating_point()  # type: ignore[comparison-overlap]
        return Traced(result) if wrap else result
    return _map(lambda item: _traced(item, values), result)


def _map_tensors(function: Callable[[Tensor], Any], result: Any) -> Any:
    if isinstance(result, Tensor):
        return result if is_value(result) else function(result)
    return _map(lambda item: _map_tensors(function, item), result)


def _fresh(result: Tensor, images: list[Image]) -> Any:
    """A result of memory of its own, but for functions that give back what they got."""
    for i in images:
        if result is i._plain:
            return i
    if not result.is_floating_point():
        return result.contiguous()
    return hidden(result, images[0])


def _known(result: Tensor, images: list[Image], args: Any, *, as_it_lies: bool) -> Any:
    """A result that may share memory with an image, or with a plain tensor among the arguments,
    of whose writes nobody would know: then it stays a plain one."""
    for i in images:
        if result is i._plain:
            return i
    if result.layout != torch.strided:
        return result
    address = result.untyped_storage().data_ptr()
    for i in images:
        if i._plain.untyped_storage().data_ptr() == address:
            if result.is_floating_point():
                return image(result, i, shared=i._shared)
            i._shared.escaped = True
            return result
    if not result.is_floating_point() or any(
        t.layout == torch.strided and t.untyped_storage().data_ptr() == address
        for t in tensors_in(args)
        if type(t) in _ORDINARY
    ):
        return result
    return hidden(result, images[0]) if as_it_lies else image(result, images[0])


def hidden(plain: Tensor, like: Image) -> Any:
    """Fresh memory as a value that is contiguous to the model."""
    if not plain.is_contiguous() and is_channels_last(plain):
        return image(plain, like, hidden=True)
    if _is_canonical(plain):
        return image(plain, like)
    if plain.is_contiguous():  # but for strides of sizes of 1, by which torch guesses formats
        return image(plain.as_strided(plain.shape, _strides(plain.shape)), like)
    return image(plain.contiguous(), like)


def _is_canonical(plain: Tensor) -> bool:
    return plain.is_contiguous() and (
        1 not in plain.shape or plain.stride() == _strides(plain.shape)
    )


def _strides(shape: Any) -> tuple[int, ...]:
    strides, step = [], 1
    for size in reversed(shape):
        strides.append(step)
        step *= max(size, 1)
    return tuple(reversed(strides))
