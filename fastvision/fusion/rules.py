"""Functions that extend a chain, or whose views keep the memory format of their base."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from ..ops._huge_pages import enlarged, max_pool2d
from .calls import extend, extend_images
from .chains import is_deferred, is_value
from .images import Image, hidden, new_image


def _dropout(func: Any, args: Any, kwargs: Any) -> Any:
    """Returns its input in eval mode."""
    options = dict(zip(("input", "p", "training", "inplace"), args, strict=False)) | kwargs
    return options["input"] if options.get("training") is False else NotImplemented


def _contiguous(func: Any, args: Any, kwargs: Any) -> Any:
    """contiguous() of a value that the model sees as contiguous."""
    value = _value(args)
    if value is None or len(args) > 1 or kwargs:
        return NotImplemented
    if value._viewed is None and value._hidden:
        return value
    if value._viewed is not None and value._groups is not None and value._viewed._hidden:
        groups, swapped = value._groups
        if swapped:  # a copy, with the channels split
            shuffled = hidden(F.channel_shuffle(value._viewed._plain, groups), value._scope)
            depth = value.shape[1]
            split = _splitting(shuffled, depth, groups)
            return (
                shuffled.view_of(split, None, (depth, False))
                if shuffled._hidden
                else NotImplemented
            )
    return NotImplemented


def _value(args: Any) -> Any:
    """The first argument as an Image, computed if deferred; None if it is not a value."""
    value: Any = args[0] if args else None
    value = value.compute() if is_deferred(value) else value
    return value if type(value) is Image else None


def _chunk(func: Any, args: Any, kwargs: Any) -> Any:
    """chunk() and split() of channels."""
    value = _value(args)
    dim = kwargs.get("dim", args[2] if len(args) > 2 else 0)
    if value is None or not value._hidden or len(args) < 2 or dim not in (1, 1 - value.ndim):
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
    """The sizes passed to view() or reshape(); None if they are not all ints."""
    sizes = args[1] if len(args) == 2 and isinstance(args[1], (tuple, list)) else args[1:]
    if kwargs or any(type(size) is not int for size in sizes):
        return None
    return tuple(sizes)


def _view(func: Any, args: Any, kwargs: Any) -> Any:
    """The two view() calls of a channel shuffle (ShuffleNet, Zhang et al. 2018): to
    [N, g, C / g, H, W] and back."""
    value, sizes = _value(args), _sizes(args, kwargs)
    if value is None or sizes is None:
        return NotImplemented
    if value._hidden and value.ndim == 4 and len(sizes) == 5:
        N, C, H, W = value.shape
        groups, depth = sizes[1:3]
        depth = C // groups if depth == -1 and groups > 0 else depth
        if sizes[0] in (N, -1) and sizes[3:] == (H, W) and groups * depth == C:
            return value.view_of(_splitting(value, groups, depth), None, (groups, False))
    if value._viewed is not None and value._groups is not None and value._viewed._hidden:
        base = value._viewed
        N, C, H, W = base.shape
        if len(sizes) == 4 and sizes[0] in (N, -1) and sizes[1] in (C, -1) and sizes[2:] == (H, W):
            groups, swapped = value._groups
            if not swapped:
                return base
            if func is not Tensor.view:
                return hidden(F.channel_shuffle(base._plain, groups), base._scope)
    return NotImplemented


def _splitting(value: Image, *channels: int) -> Callable[[Tensor], Tensor]:
    N, _, H, W = value.shape
    return lambda x: x.view(N, *channels, H, W)


def _transpose(func: Any, args: Any, kwargs: Any) -> Any:
    value = _value(args)
    if value is None or value._viewed is None or kwargs or set(args[1:]) != {1, 2}:
        return NotImplemented
    if value._groups is None or value._groups[1] or not value._viewed._hidden:
        return NotImplemented
    groups, depth = value.shape[1:3]
    if groups == 1 or depth == 1:
        return NotImplemented
    split = _splitting(value._viewed, groups, depth)
    return value._viewed.view_of(lambda x: split(x).transpose(1, 2), None, (groups, True))


def _interpolate(func: Any, args: Any, kwargs: Any) -> Any:
    """Enlargement by nearest neighbours, as in feature pyramids."""
    value = _value(args)
    options = {name: option for name, option in kwargs.items() if option is not None}
    size = options.pop("size", None)
    nearest = options.pop("mode", "nearest") == "nearest" and not options.pop("antialias", False)
    if value is None or len(args) > 1 or not nearest or options:
        return NotImplemented
    if not isinstance(size, (tuple, list)) or any(type(length) is not int for length in size):
        return NotImplemented
    return _fresh_map(value, lambda x: enlarged(x, size))


def _max_pool2d(func: Any, args: Any, kwargs: Any) -> Any:
    value = _value(args)
    window: dict[str, Any] = {"stride": (), "padding": 0, "dilation": 1, "ceil_mode": False}
    names = ("kernel_size", *window, "return_indices")
    window |= dict(zip(names, args[1:], strict=False)) | kwargs
    indices = window.pop("return_indices", False)
    if value is None or indices or len(args) > 1 + len(names) or set(window) != set(names[:-1]):
        return NotImplemented
    window["stride"] = window["stride"] or ()
    return _fresh_map(value, lambda x: max_pool2d(x, *(window[name] for name in names[:-1])))


def _fresh_map(value: Image, function: Callable[[Tensor], Tensor]) -> Image:
    """``function``, which keeps the format and returns new memory, of an image's memory."""
    result = function(value._plain)
    if value._hidden or value._plain.is_contiguous():
        new = hidden(result, value._scope)
    else:
        new = new_image(result, value._scope)
    new._is_new = True
    return new


def _may_join(residual: Any, deferred: Any) -> bool:
    image = residual.value if is_deferred(residual) else residual
    if type(image) is Image and (
        image._shared.escaped or (torch.is_grad_enabled() and image.requires_grad)
    ):
        return False
    return (
        is_value(residual)
        and residual is not deferred
        and deferred.ndim == 4
        and residual.shape == deferred.shape
        and residual.dtype == deferred.dtype
    )


def _add(func: Any, args: Any, kwargs: Any) -> Any:
    if kwargs or len(args) != 2:
        return NotImplemented
    for value, other in (args, args[::-1]):
        if is_deferred(value) and value.may_add() and _may_join(other, value):
            return value.longer(
                value.normalization, other.compute() if is_deferred(other) else other
            )
    return NotImplemented


def _add_in_place(func: Any, args: Any, kwargs: Any) -> Any:
    if kwargs or len(args) != 2:
        return NotImplemented
    value, other = args
    if is_deferred(value) and value.may_add() and _may_join(other, value):
        residual = other.compute() if is_deferred(other) else other
        return value.join(residual)  # unless computing the other has computed this one
    return NotImplemented


def _activation(name: str, in_place: bool = False) -> Callable[..., Any]:
    def rule(func: Any, args: Any, kwargs: Any) -> Any:
        value: Any = args[0] if args else None
        if not is_deferred(value) or not value.may_go_on():
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
        return value.activated((name, float(slope)), in_place=writes)

    return rule


for _function, _rule in {
    Tensor.contiguous: _contiguous,
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
    F.interpolate: _interpolate,
    torch.max_pool2d: _max_pool2d,
    F.max_pool2d: _max_pool2d,
}.items():
    extend_images(_function, _rule)

for _function, _rule in {
    Tensor.add: _add,
    torch.add: _add,
    Tensor.__radd__: _add,
    Tensor.__add__: _add,
    Tensor.add_: _add_in_place,
    Tensor.__iadd__: _add_in_place,
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
}.items():
    extend(_function, _rule)
