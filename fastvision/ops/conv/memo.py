"""Fast path of repeated calls: a call that differs from an earlier one only in its input reuses
its layer.

Checking arguments and looking up weights takes longer than a small convolution.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from ... import _extension
from .._plain import MISFITS, is_plain
from .cpu import Layer, PackedLayer
from .packing import can_remember, fingerprint, recall, remember, stored
from .spec import ConvSpec, Weights
from .transposed_layer import TransposedLayer, guarded_alone

_ORDINARY = frozenset((Tensor, torch.nn.Parameter, type(None)))


def may_repeat(input: Any, tensors: Iterable[Any]) -> bool:
    """Whether the call may take the fast path, by its input and its other tensors."""
    return is_plain(input, tensors) and not torch._C._is_any_autocast_enabled()


def layer_of(
    weights: Weights, dtype: torch.dtype, spec: ConvSpec, *, once: bool = False
) -> PackedLayer:
    """A layer for these weights. ``once``: it runs once."""
    kind = TransposedLayer if spec.transposed else Layer
    return kind(weights.weight.shape, dtype, spec, once=once)


def made_once(weights: Weights, dtype: torch.dtype, spec: ConvSpec) -> PackedLayer:
    """The layer for these weights, cached by their values."""
    if not can_remember(weights):
        return layer_of(weights, dtype, spec)
    purpose = (dtype, spec, _extension.cpu_level())
    made: PackedLayer | None = recall(weights, purpose)
    if made is None:
        values = fingerprint(weights)
        made = layer_of(weights, dtype, spec)
        made.packs.fingerprint = values
        if values >= 0:
            remember(weights, values, purpose, made)
    return made


def repeated(
    input: Tensor,
    weights: tuple[Any, ...],
    residual: Any,
    call: tuple[Any, ...],
) -> Tensor | None:
    """The result by the layer that :func:`keep` stored for the same call; None without one, or if
    an argument does not fit it.

    Args:
        weights: the fields of :class:`Weights`; the values may have changed.
        call: the op and its options.
    """
    if not _ORDINARY.issuperset(map(type, weights)):
        return None
    try:
        layer: PackedLayer | None = stored(weights[0], _purpose(input.dtype, call))
        return None if layer is None else layer.again(input, residual, weights)
    except MISFITS:  # the full checks give better messages
        return None


def keep(dtype: torch.dtype, weights: Weights, call: tuple[Any, ...], layer: PackedLayer) -> None:
    """Stores the layer for :func:`repeated`."""
    values = layer.packs.fingerprint
    if values is not None and values >= 0:
        with contextlib.suppress(TypeError):  # an unhashable option, such as a list
            remember(weights, values, _purpose(dtype, call), layer)


def repeated_alone(input: Tensor, weight: Any, bias: Any, window: tuple[Any, ...]) -> Tensor | None:
    """As :func:`repeated`, by what :func:`keep_alone` stored: less to look up and to pass on.

    Args:
        window: integers.
    """
    if type(weight) not in _ORDINARY or type(bias) not in _ORDINARY:
        return None
    try:
        found = stored(weight, (_extension.cpu_level(), input.dtype, window))
        if found is None or input.dim() != 4:
            return None
        pixel_differs, packed, options = found
        if pixel_differs and input.size(3) == 1:
            return None
        result: Tensor = guarded_alone(input, packed, options, weight, bias)
        return result
    except MISFITS:
        return None


def keep_alone(
    dtype: torch.dtype, weights: Weights, window: tuple[Any, ...], layer: PackedLayer
) -> None:
    """Stores the packed weights of a transposed convolution without normalization and activation
    for :func:`repeated_alone`."""
    assert isinstance(layer, TransposedLayer)
    values, packed = layer.packs.fingerprint, layer.packed_for_all
    if values is not None and values >= 0 and packed is not None and {*map(type, window)} == {int}:
        found = layer.pixel_differs, packed, layer.guarded_options
        remember(weights, values, (_extension.cpu_level(), dtype, window), found)


def _purpose(dtype: torch.dtype, call: tuple[Any, ...]) -> tuple[Any, ...]:
    # includes the types: 1, 1.0 and True are equal, but not all are valid options
    return (_extension.cpu_level(), dtype, *call, *map(type, call))
