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
import weakref
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from ..ops._checks import is_eager


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

    def shape_of(self, x: Tensor) -> torch.Size | tuple[int, ...]: ...


def is_channels_last(x: Tensor) -> bool:
    """Whether ``x``, [N, C, H, W] or [C, H, W], is in channels_last and not contiguous as well."""
    if x.is_contiguous() or x.dim() not in (3, 4):
        return False
    x = x if x.dim() == 4 else x.unsqueeze(0)
    return x.is_contiguous(memory_format=torch.channels_last)


# --- computed values

_ORDINARY = (Tensor, torch.nn.Parameter, torch.nn.Buffer)  # no sub-class that does things its way


class Image(Tensor):
    """A value inside a fused model: a Tensor whose operations pass through this module."""

    _memory: Tensor
    _readers: list[weakref.ref[Deferred]]  # of all that share the memory
    _in_other_format: bool  # the model's tensor would be contiguous, and this one is not
    # of a view of an image in another format: where its memory is, whatever becomes of that
    _viewed: Image | None
    _derive: Callable[[Tensor], Tensor]
    _derived_from: Tensor
    _groups: tuple[int, bool] | None  # what channels were split into, and whether these are swapped

    @classmethod
    def __torch_function__(
        cls, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        return _call(func, args, kwargs or {})

    # what needs no memory, without the way through torch
    shape = property(lambda self: self._plain.shape)  # type: ignore[assignment]
    dtype = property(lambda self: self._plain.dtype)  # type: ignore[assignment]
    device = property(lambda self: self._plain.device)  # type: ignore[assignment]
    ndim = property(lambda self: self._plain.ndim)  # type: ignore[assignment]
    is_cuda = property(lambda self: self._plain.is_cuda)  # type: ignore[assignment]
    requires_grad = property(  # type: ignore[assignment]
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
        new = _new_image(memory, self._readers)
        new._viewed, new._derive, new._derived_from, new._groups = self, derive, self._memory, groups
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


def image(plain: Tensor, *, hidden: bool = False, shared: Image | None = None) -> Any:
    """``plain`` as a value. ``shared``: one whose memory it may lie in."""
    if not is_eager():
        return Deferred.settled(plain)
    new = _new_image(plain, [] if shared is None else shared._readers)
    new._in_other_format = hidden
    return new


def _new_image(memory: Tensor, readers: list[weakref.ref[Deferred]]) -> Image:
    new = memory.as_subclass(Image)
    new._memory, new._readers, new._viewed, new._in_other_format = memory, readers, None, False
    return new


def enter(value: Any) -> Any:
    """Inputs of a model as values; nested as they may be in lists, tuples and dicts."""
    if type(value) in _ORDINARY or (isinstance(value, Tensor) and not is_eager()):
        return image(value) if value.is_floating_point() else value
    return _map(enter, value)


def leave(value: Any, *, channels_last: bool) -> Any:
    """Results of a model as plain tensors. What is hidden becomes contiguous, unless the caller's
    tensors are ``channels_last``: then torch's own layers would have kept that. Lists and dicts keep
    their identity."""
    if type(value) is Deferred:
        plain = value.compute()
        if type(plain) is not Image:  # under a tracer
            return plain.contiguous() if is_channels_last(plain) and not channels_last else plain
        value = plain
    if type(value) is Image:
        return value._plain if channels_last else value.exact()
    if isinstance(value, Tensor):
        return value
    if type(value) is list or isinstance(value, dict):
        for key, item in value.items() if isinstance(value, dict) else enumerate(value):
            new = leave(item, channels_last=channels_last)
            if new is not item:
                value[key] = new
        return value
    if dataclasses.is_dataclass(type(value)):
        for name in value.__dataclass_fields__:
            item = getattr(value, name, None)
            new = leave(item, channels_last=channels_last)
            if new is not item:
                object.__setattr__(value, name, new)
        return value
    return _map(lambda item: leave(item, channels_last=channels_last), value)


def settle(value: Any) -> Any:
    """With nothing deferred."""
    return value.compute() if type(value) is Deferred else _map(settle, value)


def holds_values(value: Any) -> bool:
    if type(value) in (Image, Deferred):
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


class Deferred:
    """What an anchor gives for an input, with the steps after it so far. Stands for a Tensor."""

    __slots__ = (
        *("__dict__", "__weakref__", "anchor", "autocast", "source", "steps", "used", "value"),
    )

    def __init__(
        self,
        anchor: Any,
        source: Any,
        steps: Steps = Steps(),  # noqa: B008
        autocast: torch.dtype | None = None,
    ) -> None:
        self.anchor, self.source, self.steps, self.autocast = anchor, source, steps, autocast
        self.value: Any = None
        self.used = False  # by a longer chain
        _read_by(source, self)
        if steps.residual is not None:
            _read_by(steps.residual, self)

    @classmethod
    def settled(cls, plain: Tensor) -> Deferred:
        """A value under a tracer, which has tensors of its own."""
        new = cls.__new__(cls)
        new.anchor = new.source = new.autocast = None
        new.steps, new.used, new.value = Steps(), False, plain
        return new

    @property
    def stage(self) -> str:
        return "added" if self.steps.residual is not None else "normed" if self.steps.norm else "raw"

    def compute(self) -> Any:
        """The value: an Image; under a tracer the tensor."""
        if self.value is None:
            if self.used:
                self.anchor.kept.add(self.stage)
            self.value = self._run(self.steps)
        return self.value

    def _run(self, steps: Steps) -> Any:
        source, residual = self.source, steps.residual
        x = plain_of(source)
        if residual is not None:
            steps = Steps(steps.norm, plain_of(residual), *steps[2:])
        plain = self.anchor.run(x, steps, self.autocast)
        if type(source) is not Image:  # under a tracer
            return plain
        # the model's own layer would have kept the format
        kept = not source._in_other_format and source._viewed is None and is_channels_last(x)
        return image(plain) if kept else hidden(plain)

    def may(self, step: str) -> bool:
        """Whether the chain can go on with that step, and nobody else wanted its value so far."""
        anchor = self.anchor
        if self.value is not None or anchor is None or _autocast() != self.autocast:
            return False
        if anchor.kept and self.stage in anchor.kept:
            return False
        if step == "norm":
            return self.stage == "raw" and self.anchor.takes_norm
        if step == "add":
            return self.steps.residual is None and self.anchor.takes_residual
        return True

    def normalized(self, norm: Norm) -> Deferred:
        self.used = True
        return Deferred(self.anchor, self.source, Steps(norm), self.autocast)

    def plus(self, residual: Any) -> Deferred:
        self.used = True
        steps = Steps(self.steps.norm, residual)
        return Deferred(self.anchor, self.source, steps, self.autocast)

    def activated(self, name: str, slope: float, in_place: bool) -> Any:
        norm, residual, *_ = self.steps
        result = self._run(Steps(norm, residual, name, slope))
        if in_place:
            self.value = result
        else:
            self.used = True
        return result if type(result) is Image else Deferred.settled(result)

    # what stands for a Tensor

    @classmethod
    def __torch_function__(
        cls, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        return _call(func, args, kwargs or {})

    @property  # type: ignore[misc]
    def __class__(self) -> type:
        return Tensor

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

    def __getattr__(self, name: str) -> Any:
        found = getattr(Tensor, name)  # its AttributeError
        if callable(found):
            return lambda *args, **kwargs: _call(found, (self, *args), kwargs)
        return _call(found.__get__, (self,), {})

    def __reduce_ex__(self, protocol: Any) -> Any:
        return self.compute().__reduce_ex__(protocol)

    def __deepcopy__(self, memo: Any) -> Any:
        return _call(Tensor.__deepcopy__, (self, memo), {})

    def __iter__(self) -> Any:
        return iter(self.unbind(0))

    def __hash__(self) -> int:
        return id(self)


def _delegate(name: str) -> Callable[..., Any]:
    function = getattr(Tensor, name)
    return lambda *args, **kwargs: _call(function, args, kwargs)


# Python looks special methods up in the class
for _name in (
    *("add radd sub rsub mul rmul truediv rtruediv floordiv rfloordiv mod rmod pow rpow").split(),
    *("matmul rmatmul and or xor lshift rshift neg pos abs invert eq ne lt le gt ge").split(),
    *("iadd isub imul itruediv ifloordiv imod ipow iand ior ixor ilshift irshift").split(),
    *("getitem setitem len bool int float complex index contains format repr array").split(),
):
    if hasattr(Tensor, f"__{_name}__"):
        setattr(Deferred, f"__{_name}__", _delegate(f"__{_name}__"))


def plain_of(value: Any) -> Tensor:
    """The memory behind a value, in whatever format."""
    if type(value) is Deferred:
        value = value.compute()
    return value._plain if type(value) is Image else value


def _read_by(value: Any, reader: Deferred) -> None:
    if type(value) is Image:
        readers = value._readers
        if len(readers) >= 8:
            readers[:] = [r for r in readers if (d := r()) is not None and d.value is None]
        readers.append(weakref.ref(reader))


def _compute_readers(value: Image) -> None:
    readers = value._readers
    while readers:
        deferred = readers.pop()()
        if deferred is not None and deferred.value is None:
            deferred.value = deferred._run(deferred.steps)


def _autocast() -> torch.dtype | None:
    return torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else None


# --- operations


def _call(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    """``func`` of values: by a longer chain, on the memory as it lies, or as the model would."""
    rule = _RULES.get(func)
    if rule is not None:
        result = rule(func, args, kwargs)
        if result is not NotImplemented:
            return result
    as_it_lies = func in _FRESH or func in _IN_PLACE or _is_own(func)
    as_it_lies &= "memory_format" not in kwargs and "out" not in kwargs
    values: list[Any] = []
    _collect(args, values)
    if kwargs:
        _collect(kwargs, values)
    if not is_eager():
        take = plain_of if as_it_lies or _is_query(func) else _exact_of
        return _traced(func(*_map_plain(args, take), **_map_plain(kwargs, take)), values)
    computed = [v.compute() if type(v) is Deferred else v for v in values]
    images: list[Image] = [i for i in computed if type(i) is Image]
    if not images:  # what was deferred under a tracer, after it
        return func(*_map_plain(args, plain_of), **_map_plain(kwargs, plain_of))
    if _is_query(func):
        return func(*_map_plain(args, plain_of), **kwargs)
    fresh = func in _FRESH and not kwargs.get("inplace") and "out" not in kwargs
    if not fresh:  # it may write
        for i in images:
            _compute_readers(i)
    if as_it_lies and all(i._hidden or i._plain.is_contiguous() for i in images):
        result = func(*_map_plain(args, plain_of), **_map_plain(kwargs, plain_of))
        return _wrap(result, images, as_it_lies=True, fresh=fresh)
    result = func(*_map_plain(args, _exact_of), **_map_plain(kwargs, _exact_of))
    for i in images:
        i._follow()
    return _wrap(result, images, as_it_lies=False, fresh=False)


def _collect(value: Any, found: list[Any]) -> None:
    if type(value) in (Image, Deferred):
        found.append(value)
    elif isinstance(value, (list, tuple)):
        for item in value:
            _collect(item, found)
    elif isinstance(value, dict):
        for item in value.values():
            _collect(item, found)


def _map_plain(value: Any, function: Callable[[Any], Any]) -> Any:
    kind = type(value)
    if kind is Image or kind is Deferred:
        return function(value)
    if kind is tuple or kind is list:
        return kind([_map_plain(item, function) for item in value])
    if isinstance(value, (list, tuple, dict)):
        return _map(lambda item: _map_plain(item, function), value)
    return value


def _exact_of(value: Any) -> Tensor:
    computed = value.compute() if type(value) is Deferred else value
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
        wrap = type(result) is not Deferred and result.is_floating_point()
        return Deferred.settled(result) if wrap else result
    return _map(lambda item: _traced(item, values), result)


def _wrap(result: Any, images: list[Image], *, as_it_lies: bool, fresh: bool) -> Any:
    """Results as values; those that share memory with an image know it."""
    if not isinstance(result, Tensor):
        options = {"as_it_lies": as_it_lies, "fresh": fresh}
        return _map(lambda item: _wrap(item, images, **options), result)
    if type(result) in (Image, Deferred) or not result.is_floating_point():
        return result
    for i in images:
        if result is i._plain:
            return i
    if fresh:
        return hidden(result)
    if result.layout != torch.strided:
        return result
    address = result.untyped_storage().data_ptr()
    shared = None
    for i in images:
        if i._plain.untyped_storage().data_ptr() == address:
            shared = i
    return hidden(result) if as_it_lies and shared is None else image(result, shared=shared)


def hidden(plain: Tensor) -> Any:
    """Fresh memory as a value that is contiguous to the model."""
    if not plain.is_contiguous() and is_channels_last(plain):
        return image(plain, hidden=True)
    if _is_canonical(plain):
        return image(plain)
    if plain.is_contiguous():  # but for strides of sizes of 1, by which torch guesses formats
        return image(plain.as_strided(plain.shape, _strides(plain.shape)))
    return image(plain.contiguous())


def _is_canonical(plain: Tensor) -> bool:
    return plain.is_contiguous() and (1 not in plain.shape or plain.stride() == _strides(plain.shape))


def _strides(shape: Any) -> tuple[int, ...]:
    strides, step = [], 1
    for size in reversed(shape):
        strides.append(step)
        step *= max(size, 1)
    return tuple(reversed(strides))


# --- operations that go on with a chain


def _dropout(func: Any, args: Any, kwargs: Any) -> Any:
    """Gives its input back in eval mode."""
    options = dict(zip(("input", "p", "training", "inplace"), args, strict=False)) | kwargs
    return options["input"] if options.get("training") is False else NotImplemented


def _same(func: Any, args: Any, kwargs: Any) -> Any:
    """contiguous() of what is contiguous to the model."""
    value = _value(args)
    if value is None or len(args) > 1 or kwargs:
        return NotImplemented
    if value._viewed is None and value._hidden:
        return value
    if value._viewed is not None and value._groups is not None and value._viewed._hidden:
        groups, swapped = value._groups
        if swapped:  # a copy, as memory of its own with the channels split
            shuffled = hidden(F.channel_shuffle(value._viewed._plain, groups))
            depth = value.shape[1]
            split = lambda x: x.unflatten(1, (depth, groups))  # noqa: E731
            return shuffled.view_of(split, None, (depth, False)) if shuffled._hidden else NotImplemented
    return NotImplemented


def _value(args: Any) -> Any:
    """The image that a function is called for, computed, if it is one."""
    value = args[0] if args else None
    value = value.compute() if type(value) is Deferred else value
    return value if type(value) is Image else None


def _chunk(func: Any, args: Any, kwargs: Any) -> Any:
    """chunk() and split() of channels."""
    value = _value(args)
    dim = kwargs.get("dim", args[2] if len(args) > 2 else 0)
    if value is None or not value._hidden or len(args) < 2 or dim not in (1, -value.ndim):
        return NotImplemented
    start, views = 0, []
    for piece in func(value._plain, args[1], dim):
        size = piece.shape[1]
        views.append(_channels(value, start, size, piece))
        start += size
    return tuple(views)


def _channels(value: Image, start: int, size: int, memory: Tensor | None = None) -> Image:
    return value.view_of(lambda x: x.narrow(1, start, size), memory)


def _getitem(func: Any, args: Any, kwargs: Any) -> Any:
    """x[:, a:b]"""
    value = _value(args)
    index = args[1]
    every = slice(None)
    if value is None or not value._hidden or type(index) is not tuple or not 2 <= len(index) <= 4:
        return NotImplemented
    if any(type(i) is not slice for i in index) or any(i != every for i in (index[0], *index[2:])):
        return NotImplemented
    if index[1].step not in (None, 1):
        return NotImplemented
    start, stop, _ = index[1].indices(value.shape[1])
    return _channels(value, start, max(stop - start, 0))


def _sizes(args: Any, kwargs: Any) -> tuple[int, ...] | None:
    """What a view() or reshape() asks for."""
    sizes = args[1] if len(args) == 2 and isinstance(args[1], (tuple, list)) else args[1:]
    if kwargs or any(type(size) is not int for size in sizes):
        return None
    return tuple(sizes)


def _view(func: Any, args: Any, kwargs: Any) -> Any:
    """The view()s around a channel shuffle (ShuffleNet, Zhang et al. 2018): [N, g, C / g, H, W] and
    back."""
    value, sizes = _value(args), _sizes(args, kwargs)
    if value is None or sizes is None:
        return NotImplemented
    if value._hidden and value.ndim == 4 and len(sizes) == 5:
        N, C, H, W = value.shape
        groups, depth = sizes[1:3]
        depth = C // groups if depth == -1 and groups > 0 else depth
        if sizes[0] in (N, -1) and sizes[3:] == (H, W) and groups * depth == C:
            return value.view_of(lambda x: x.unflatten(1, (groups, depth)), None, (groups, False))
    if value._viewed is not None and value._groups is not None and value._viewed._hidden:
        base = value._viewed
        N, C, H, W = base.shape
        if len(sizes) == 4 and sizes[0] in (N, -1) and sizes[1] in (C, -1) and sizes[2:] == (H, W):
            groups, swapped = value._groups
            if not swapped:
                return base
            if func is not Tensor.view:
                return hidden(F.channel_shuffle(base._plain, groups))
    return NotImplemented


def _transpose(func: Any, args: Any, kwargs: Any) -> Any:
    value = _value(args)
    if value is None or value._viewed is None or kwargs or set(args[1:]) != {1, 2}:
        return NotImplemented
    if value._groups is None or value._groups[1] or not value._viewed._hidden:
        return NotImplemented
    groups, depth = value.shape[1:3]
    if groups == 1 or depth == 1:
        return NotImplemented
    split = lambda x: x.unflatten(1, (groups, depth)).transpose(1, 2)  # noqa: E731
    return value._viewed.view_of(split, None, (groups, True))


def _may_join(residual: Any, deferred: Deferred) -> bool:
    return (
        type(residual) in (Image, Deferred)
        and residual is not deferred
        and deferred.ndim == 4
        and residual.shape == deferred.shape
        and residual.dtype == deferred.dtype
    )


def _add(func: Any, args: Any, kwargs: Any) -> Any:
    if kwargs or len(args) != 2:
        return NotImplemented
    for value, other in (args, args[::-1]):
        if type(value) is Deferred and value.may("add") and _may_join(other, value):
            return value.plus(other.compute() if type(other) is Deferred else other)
    return NotImplemented


def _add_in_place(func: Any, args: Any, kwargs: Any) -> Any:
    value, other = args if len(args) == 2 and not kwargs else (None, None)
    if type(value) is Deferred and value.may("add") and _may_join(other, value):
        residual = other.compute() if type(other) is Deferred else other
        if value.value is None:  # computing the other may have computed this one
            value.steps = value.steps._replace(residual=residual)
            _read_by(residual, value)
            return value
    return NotImplemented


def _activation(name: str, in_place: bool = False) -> Callable[..., Any]:
    def rule(func: Any, args: Any, kwargs: Any) -> Any:
        value = args[0] if args else None
        if type(value) is not Deferred or not value.may("activation"):
            return NotImplemented
        options = dict(kwargs)
        rest = list(args[1:])
        slope = 0.01
        if name == "leaky_relu":
            slope = rest.pop(0) if rest else options.pop("negative_slope", 0.01)
        elif func in (F.hardtanh, F.hardtanh_):
            limits = options.pop("min_val", None), options.pop("max_val", None)
            limits = tuple(rest.pop(0) if rest else limit for limit in limits)
            if limits != (0, 6):
                return NotImplemented
        writes = in_place or options.pop("inplace", False) or (bool(rest) and rest.pop(0) is True)
        if options or rest or not isinstance(slope, (int, float)):
            return NotImplemented
        return value.activated(name, float(slope), writes)

    return rule


_RULES: dict[Any, Callable[..., Any]] = {
    Tensor.add: _add,
    torch.add: _add,
    Tensor.__radd__: _add,
    Tensor.__add__: _add,
    Tensor.add_: _add_in_place,
    Tensor.__iadd__: _add_in_place,
    Tensor.contiguous: _same,
    Tensor.chunk: _chunk,
    torch.chunk: _chunk,
    Tensor.split: _chunk,
    torch.split: _chunk,
    Tensor.__getitem__: _getitem,
    Tensor.view: _view,
    Tensor.reshape: _view,
    torch.reshape: _view,
    Tensor.transpose: _transpose,
    torch.transpose: _transpose,
    F.dropout: _dropout,
    F.dropout2d: _dropout,
    F.dropout3d: _dropout,
    F.alpha_dropout: _dropout,
    F.feature_alpha_dropout: _dropout,
    F.relu: _activation("relu"),
    torch.relu: _activation("relu"),
    torch.relu_: _activation("relu", in_place=True),
    Tensor.relu: _activation("relu"),
    Tensor.relu_: _activation("relu", in_place=True),
    F.relu6: _activation("relu6"),
    F.hardtanh: _activation("relu6"),
    F.hardtanh_: _activation("relu6", in_place=True),
    F.leaky_relu: _activation("leaky_relu"),
    F.leaky_relu_: _activation("leaky_relu", in_place=True),
    F.silu: _activation("silu"),
    F.hardswish: _activation("hardswish"),
    F.sigmoid: _activation("sigmoid"),
    torch.sigmoid: _activation("sigmoid"),
    torch.sigmoid_: _activation("sigmoid", in_place=True),
    Tensor.sigmoid: _activation("sigmoid"),
    Tensor.sigmoid_: _activation("sigmoid", in_place=True),
}


def extend(function: Any, rule: Callable[..., Any]) -> None:
    """``rule(func, args, kwargs)`` answers calls of ``function`` with values, or NotImplemented."""
    _RULES[function] = rule


# --- operations whose results do not depend on how the memory lies


def _named(*names: str) -> set[Any]:
    """torch's functions and methods of these names."""
    places = (Tensor, torch, F, torch._C._nn, torch.special)
    return {f for n in names for p in places if callable(f := getattr(p, n, None))}


_POINTWISE = (
    "add sub rsub subtract mul multiply div divide true_divide floor_divide neg negative abs exp "
    "expm1 log log1p log2 sqrt rsqrt square pow reciprocal sign floor ceil round trunc sin cos tan "
    "atan erf sigmoid tanh relu relu6 elu selu celu gelu silu mish hardswish hardsigmoid hardtanh "
    "leaky_relu softplus softsign threshold logsigmoid tanhshrink hardshrink softshrink prelu clamp "
    "clip clamp_min clamp_max lerp addcmul addcdiv nan_to_num"
).split()
# the memory of what these give is theirs alone, and in the model it would be contiguous if that of
# their inputs is
_FRESH = _named(
    *_POINTWISE,
    *"maximum minimum where isnan isinf isfinite eq ne lt le gt ge masked_fill clone".split(),
    *"cat concat concatenate stack mean sum amax amin prod std var norm logsumexp".split(),
    *"max_pool2d avg_pool2d adaptive_avg_pool2d adaptive_max_pool2d lp_pool2d".split(),
    *"max_pool1d avg_pool1d adaptive_avg_pool1d max_pool3d avg_pool3d adaptive_avg_pool3d".split(),
    *"interpolate upsample grid_sample softmax log_softmax batch_norm group_norm".split(),
    *"instance_norm local_response_norm conv2d conv_transpose2d".split(),
    *"float half bfloat16 double layer_norm linear".split(),
    "all",
    "any",
) | {
    getattr(Tensor, f"__{name}__")
    for name in "add radd sub rsub mul rmul truediv rtruediv floordiv rfloordiv pow rpow neg abs".split()
}
_IN_PLACE = _named(*(f"{name}_" for name in (*_POINTWISE, "copy", "zero", "fill", "masked_fill"))) | {
    getattr(Tensor, f"__{name}__") for name in "iadd isub imul itruediv ifloordiv ipow".split()
}
# operators of these take any format, and their results go on in that of their inputs
_OWN = ("fastvision", "torchvision")

_QUERIES = frozenset(
    "shape dtype device layout ndim itemsize nbytes names grad grad_fn is_leaf requires_grad "
    "retains_grad is_cuda is_cpu is_meta is_mps is_xpu is_xla is_ipu is_vulkan is_maia is_mtia "
    "is_sparse is_sparse_csr is_mkldnn is_quantized is_nested output_nr".split()
)
_QUERY_FUNCTIONS = _named(
    *"dim ndimension size numel nelement element_size get_device is_floating_point is_complex".split(),
    *"is_signed is_inference is_same_size is_conj is_neg is_nonzero".split(),
) | {Tensor.__len__, Tensor.__hash__}


def _is_query(func: Any) -> bool:
    """Whether it asks what does not depend on the memory."""
    if func in _QUERY_FUNCTIONS:
        return True
    descriptor = getattr(func, "__self__", None) if getattr(func, "__name__", "") == "__get__" else None
    return getattr(descriptor, "__name__", "") in _QUERIES


def _is_own(func: Any) -> bool:
    if isinstance(func, torch._ops.OpOverload):
        return func.namespace in _OWN
    return isinstance(func, torch._ops.OpOverloadPacket) and func._qualified_op_name.startswith(
        tuple(f"{name}::" for name in _OWN)
    )
