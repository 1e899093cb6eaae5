"""The values that flow through a fused model instead of tensors.

A fused convolution is lazy. It returns a :class:`Deferred`, which a normalization, addition or
activation after it extends, whichever code calls them; any other use computes the whole chain as
one op. So nothing about the model's code has to be known, and there is no graph: each call runs the
model's own forward.

A computed value is an :class:`Image`, a Tensor that behaves like the model's own. Its memory may be
channels_last although the model's would be contiguous; it is made contiguous before any operation
that depends on strides or memory. A Deferred reads its input later than the model would, so its
readers are computed before any operation that may write to an image.

Images and Deferreds exist in eager mode only. A tracer has its own tensors, for which a
:class:`Traced` stands.

Over 450 lines because values and the dispatch of their operations create each other.
"""

from __future__ import annotations

import functools
import weakref
from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import Tensor

from .._memory_format import is_channels_last
from ..ops._checks import is_eager
from .formats import ESCAPES, known_treatment_of, treatment_of
from .trees import map_tree, tensors_in


class Norm:
    """A batch normalization with fixed statistics, from a module or a function call."""

    __slots__ = ("channels", "eps", "name", "tensors")

    def __init__(
        self,
        weight: Tensor | None,
        bias: Tensor | None,
        mean: Tensor,
        var: Tensor,
        eps: float,
        name: str = "batch_norm",  # for reports
    ) -> None:
        self.tensors = (weight, bias, mean, var)
        self.eps, self.name = eps, name
        shapes = {t.shape for t in self.tensors if t is not None}
        shape: Any = shapes.pop() if len(shapes) == 1 else ()
        ordinary = len(shape) == 1 and not any(map(is_value, self.tensors))
        self.channels: int | None = shape[0] if ordinary else None

    def is_of(self, channels: int) -> bool:
        """Whether it has this number of channels, and needs no gradient."""
        if self.channels != channels:
            return False
        return not torch.is_grad_enabled() or not any(
            t is not None and t.requires_grad for t in self.tensors
        )

    def is_same(self, other: Norm | None) -> bool:
        """Whether it has the same tensors; each call of F.batch_norm makes a new Norm."""
        return self is other or (
            other is not None
            and self.eps == other.eps
            and all(a is b for a, b in zip(self.tensors, other.tensors, strict=True))
        )


End = tuple[str, float]  # activation at the end of a chain, negative slope
NO_END: End = ("none", 0.01)


class Ready:
    """Facts about an anchor's calls with inputs of one kind, cached."""

    __slots__ = ("autocast", "counted", "dtype", "kept", "placeholder", "weight")

    def __init__(
        self,
        kept: set[str],
        dtype: torch.dtype,
        autocast: torch.dtype | None,
        shape: Any,  # of the result; None under a tracer
        weight: Tensor | None = None,
    ) -> None:
        self.dtype, self.autocast, self.weight, self.kept = dtype, autocast, weight, kept
        self.counted = weight is not None and not weight.is_inference()  # torch counts writes
        # data of the deferred results, which are instances of a subclass of Tensor
        self.placeholder: Any = None if shape is None else _placeholder(shape, autocast or dtype)


@functools.lru_cache(maxsize=4096)
def _placeholder(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """A tensor without memory, on the meta device."""
    with torch.inference_mode(False):
        return torch.empty(shape, dtype=dtype, device="meta")


class Anchor(Protocol):
    """The layer that begins a chain: a convolution, linear layer or normalization."""

    takes_norm: bool
    takes_residual: bool
    # stages whose values were used outside the chain; later calls end the chain there
    kept: set[str]

    def run(
        self,
        x: Tensor,
        norm: Norm | None,
        residual: Tensor | None,
        end: End,
        autocast: torch.dtype | None,
        *,
        eager: bool,
    ) -> Tensor: ...

    def shape_of(self, x: Tensor) -> torch.Size | tuple[int, ...]: ...


ORDINARY = (Tensor, torch.nn.Parameter, torch.nn.Buffer)  # classes without special behaviour


class Shared(list["weakref.ref[Deferred]"]):
    """State of a piece of memory: the deferred values that will read it."""

    escaped = False  # visible where writes go unnoticed: a NumPy array, a view of its bits

    def add(self, reader: weakref.ref[Deferred]) -> None:
        if len(self) >= 8:
            self[:] = [r for r in self if (d := r()) is not None and d.value is None]
        self.append(reader)


class Image(Tensor):
    """A value inside a fused model: a Tensor whose operations pass through this module."""

    _memory: Tensor
    _shared: Shared  # shared with all values in this memory
    _scope: list[weakref.ref[Deferred]]  # values deferred during this call of the model
    _in_other_format = False  # the model's tensor would be contiguous, this one is not
    # views of an image: the base, and how to derive the view after the base's format changed
    _viewed: Image | None = None
    _derive: Callable[[Tensor], Tensor]
    _derived_from: Tensor
    _groups: tuple[int, bool] | None = (
        None  # number of groups the channels were split into, and whether they are transposed
    )

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return call(func, args, kwargs or {})

    # metadata, without going through torch
    shape = property(lambda self: self._plain.shape)
    dtype = property(lambda self: self._plain.dtype)
    device = property(lambda self: self._plain.device)
    ndim = property(lambda self: self._plain.ndim)
    is_cuda = property(lambda self: self._plain.is_cuda)
    requires_grad = property(
        lambda self: self._plain.requires_grad,
        lambda self, value: call(Tensor.requires_grad_, (self, value), {}),
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

    def _set(self, plain: Tensor) -> None:
        with torch._C.DisableTorchFunctionSubclass():
            Tensor.data.__set__(self, plain.detach())  # type: ignore[attr-defined]


def new_image(
    memory: Tensor, scope: list[weakref.ref[Deferred]], shared: Shared | None = None
) -> Image:
    """``shared``: state of the memory, if other values share it."""
    new = memory.as_subclass(Image)
    new._memory, new._scope = memory, scope
    new._shared = Shared() if shared is None else shared
    return new


def hidden(plain: Tensor, scope: list[weakref.ref[Deferred]]) -> Image:
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


class _Chain:
    """A deferred chain so far: an anchor, an optional normalization, an optional addition."""

    anchor: Any = None
    source: Any = None  # an Image; under a tracer a Traced
    ready: Any = None
    stamp: int | None = None  # version of the anchor's weight at its call
    normalization: Norm | None = None
    residual: Any = None  # an Image; under a tracer a tensor
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
        if self.value is None:
            if self.used:
                self.ready.kept.add(self.stage)
            self.settle(self._run(NO_END))
        return self.value

    def settle(self, value: Any) -> None:
        """Sets the value and drops the inputs."""
        self.value, self.source, self.normalization, self.residual = value, None, None, None

    def may_go_on(self) -> bool:
        """Whether the chain may be extended: this stage's value has not been used by itself, now or
        in an earlier call."""
        if self.value is not None or self.ready is None:
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

    def longer(self, norm: Norm | None, residual: Any) -> Any:
        """A new value: this chain, extended."""
        self.used = True
        new = _begin(self.anchor, self.source, self.ready, self.stamp)
        new.normalization = norm
        if residual is not None:
            new.join(residual)
        return new

    def join(self, residual: Any) -> None:
        self.residual = residual
        if type(residual) is Image:
            residual._shared.add(weakref.ref(self))  # type: ignore[arg-type]

    def activated(self, end: End, *, in_place: bool) -> Any:
        result = self._run(end)
        if in_place:
            self.settle(result)
        else:
            self.used = True
        return result if type(result) is Image else Traced(result)

    def _run(self, end: End) -> Any:
        ready = self.ready
        if self.stamp is not None and (
            ready.weight._version != self.stamp
            or self.anchor._parameters.get("weight") is not ready.weight
        ):
            raise RuntimeError(
                f"the weight of a fused {type(self.anchor).__name__} was written to between its "
                "call and the first use of what it gave: use it before, or clone() it"
            )
        return run_chain(
            self.anchor, self.source, self.normalization, self.residual, end, ready.autocast
        )

    # metadata is known before the value is computed

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return call(func, args, kwargs or {})

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
        return call(Tensor.__deepcopy__, (self, memo), {})


def run_chain(
    anchor: Any,
    source: Any,
    norm: Norm | None,
    residual: Any,
    end: End,
    autocast: torch.dtype | None,
) -> Any:
    """Computes a chain: an Image; under a tracer the tensor."""
    is_image = type(source) is Image
    x = source._memory if is_image and source._viewed is None else plain_of(source)
    if residual is not None:
        residual = plain_of(residual)
    eager = is_eager()
    plain = anchor.run(x, norm, residual, end, autocast, eager=eager)
    if not (is_image and eager):
        return plain
    # the model's own layer would have kept the format
    if not source._in_other_format and source._viewed is None and is_channels_last(x):
        return new_image(plain, source._scope)
    return hidden(plain, source._scope)


class Deferred(_Chain, Tensor):  # type: ignore[override]
    """A chain in eager mode. C++ code also sees a Tensor, without memory; its operations reach
    ``__torch_dispatch__``."""

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:  # type: ignore[override]
        return func(*_map_values(args, _exact_of), **_map_values(kwargs or {}, _exact_of))


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
            return lambda *args, **kwargs: call(found, (self, *args), kwargs)
        return call(found.__get__, (self,), {})

    def __iter__(self) -> Any:
        return iter(self.unbind(0))

    def __hash__(self) -> int:
        return id(self)


def defer(anchor: Any, source: Any, ready: Ready) -> Any:
    """The deferred result of ``anchor`` for ``source``."""
    return _begin(anchor, source, ready, ready.weight._version if ready.counted else None)  # type: ignore[union-attr]


def _begin(anchor: Any, source: Any, ready: Ready, stamp: int | None) -> Any:
    if type(source) is Image:
        new: Any = _make_subclass(Deferred, ready.placeholder)
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
    return lambda *args, **kwargs: call(function, args, kwargs)


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
    readers = value._shared
    while readers:
        deferred = readers.pop()()
        if deferred is not None and deferred.value is None:
            deferred.settle(deferred._run(NO_END))


def autocast_of(x: Tensor) -> torch.dtype | None:
    """The dtype autocast would cast ``x`` to; None if it is off or ``x`` is float64."""
    kind = "cpu" if x.is_cpu else x.device.type
    if not torch.is_autocast_enabled(kind) or x.dtype == torch.float64:
        return None
    return torch.get_autocast_dtype(kind)


Rule = Callable[[Any, Any, Any], Any]
_RULES: dict[Any, Rule] = {}
_IMAGE_RULES: dict[Any, Rule] = {}


def extend(function: Any, rule: Rule) -> None:
    """Registers ``rule(func, args, kwargs)`` for calls of ``function`` with values.

    A rule may return NotImplemented.
    """
    _RULES[function] = rule


def extend_images(function: Any, rule: Rule) -> None:
    """As :func:`extend`, for images in eager mode only."""
    _IMAGE_RULES[function] = rule


def call(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    """Calls ``func`` with values: extends a chain, runs on the memory in its format, or on the
    tensors the model would have."""
    rule = _RULES.get(func)
    if rule is not None:
        result = rule(func, args, kwargs)
        if result is not NotImplemented:
            return result
    if not is_eager():
        return _call_traced(func, args, kwargs)
    rule = _IMAGE_RULES.get(func)
    if rule is not None:
        result = rule(func, args, kwargs)
        if result is not NotImplemented:
            return result
    any_format, fresh, query = known_treatment_of(func)
    images: list[Image] = []
    plain = _unpack(args, images)
    plain_kwargs = kwargs
    if kwargs:
        plain_kwargs = _unpack(kwargs, images)
        any_format = any_format and _keeps_format(kwargs)
        fresh = fresh and any_format and not kwargs.get("inplace")
    if not images or query:  # no images: values left over from a tracer
        return func(*plain, **plain_kwargs)
    if not fresh:  # may write
        for i in images:
            compute_readers(i)
    if any_format:
        for i in images:
            if not (i._in_other_format or i._memory.is_contiguous() or i._hidden):
                break
        else:
            result = func(*plain, **plain_kwargs)
            if not fresh:
                return _map_tensors(lambda t: _known(t, images, args, as_it_lies=True), result)
            if type(result) is Tensor:
                return _fresh(result, images)
            return _map_tensors(lambda t: _fresh(t, images), result)
    result = func(*_map_values(args, _exact_of), **_map_values(kwargs, _exact_of))
    for i in images:
        i._follow()
    if func in ESCAPES:
        for i in images:
            i._shared.escaped = True
    return _map_tensors(lambda t: _known(t, images, args, as_it_lies=False), result)


def _keeps_format(kwargs: dict[str, Any]) -> bool:
    return "memory_format" not in kwargs and "out" not in kwargs


def _call_traced(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    any_format, _, query = treatment_of(func)
    as_it_lies = query or (any_format and _keeps_format(kwargs))
    values: list[Any] = []

    def take(value: Any) -> Tensor:
        values.append(value)
        return plain_of(value) if as_it_lies else _exact_of(value)

    return _traced(func(*_map_values(args, take), **_map_values(kwargs, take)), values)


def _unpack(value: Any, images: list[Image]) -> Any:
    """Replaces values by their memory, and appends them to ``images``."""
    kind = type(value)
    if kind is Image:
        images.append(value)
        return value._memory if value._viewed is None else value._plain
    if kind is tuple or kind is list:
        return kind([_unpack(item, images) for item in value])
    if kind is Deferred or kind is Traced:
        return _unpack(value.compute(), images)
    if isinstance(value, (list, tuple, dict)):
        return map_tree(lambda item: _unpack(item, images), value)
    return value


def _map_values(value: Any, function: Callable[[Any], Any]) -> Any:
    if is_value(value):
        return function(value)
    return map_tree(lambda item: _map_values(item, function), value)


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
    return map_tree(lambda item: _traced(item, values), result)


def _map_tensors(function: Callable[[Tensor], Any], result: Any) -> Any:
    if isinstance(result, Tensor):
        return result if is_value(result) else function(result)
    return map_tree(lambda item: _map_tensors(function, item), result)


def _fresh(result: Tensor, images: list[Image]) -> Any:
    """Wraps a result in new memory; some functions return their input instead."""
    for i in images:
        if result is i._memory:
            return i
    if not result.is_floating_point():
        return result.contiguous()
    return hidden(result, images[0]._scope)


def _known(result: Tensor, images: list[Image], args: Any, *, as_it_lies: bool) -> Any:
    """Wraps a result that may share memory with an image.

    If it shares memory with a plain tensor among the arguments, writes to which go unnoticed, it
    stays plain.
    """
    for i in images:
        if result is i._plain:
            return i
    if result.layout != torch.strided:
        return result
    address = result.untyped_storage().data_ptr()
    for i in images:
        if i._plain.untyped_storage().data_ptr() == address:
            if result.is_floating_point():
                return new_image(result, i._scope, i._shared)
            i._shared.escaped = True
            return result
    if not result.is_floating_point() or any(
        t.layout == torch.strided and t.untyped_storage().data_ptr() == address
        for t in tensors_in(args)
        if type(t) in ORDINARY
    ):
        return result
    scope = images[0]._scope
    return hidden(result, scope) if as_it_lies else new_image(result, scope)
