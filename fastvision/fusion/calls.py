"""Operations on the values of a fused model."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ..ops._checks import is_eager
from .chains import Deferred, Traced, compute_readers, exact_of, is_value, map_values, plain_of
from .formats import ESCAPES, known_treatment_of, treatment_of
from .images import ORDINARY, Image, Value, hidden, new_image
from .trees import map_tree, tensors_in

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
    result = func(*map_values(args, exact_of), **map_values(kwargs, exact_of))
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
        return plain_of(value) if as_it_lies else exact_of(value)

    return _traced(func(*map_values(args, take), **map_values(kwargs, take)), values)


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


Value._operate = call
