"""Fast path of repeated calls: a call that differs from an earlier one only in its input reuses
its layer.

Checking arguments and looking up weights takes longer than a small convolution.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ... import _extension
from .._backend import requested_by_environment
from .._checks import is_eager, is_transformed, needs_gradient
from .cpu import Layer
from .packing import can_remember, fingerprint, recall, remember
from .spec import ConvSpec, Weights

# what a layer raises for wrong arguments; the full checks give better messages
MISFITS = (TypeError, RuntimeError, AttributeError)
_ORDINARY = frozenset((Tensor, torch.nn.Parameter, type(None)))


def may_repeat(input: Any, weights: Weights, residual: Any) -> bool:
    """Whether the call may take the fast path: eager CPU inference without autocast."""
    return (
        type(input) is Tensor
        and input.is_cpu
        and not input.is_nested  # it has no shape
        and (residual is None or type(residual) is Tensor)
        and _extension.missing is None
        and requested_by_environment is None
        and not torch.is_autocast_enabled("cpu")
        and not needs_gradient((input, residual, *weights))
        and is_eager()
        and not is_transformed()
    )


def made_once(weights: Weights, dtype: torch.dtype, spec: ConvSpec) -> Layer:
    """The layer for these weights, cached by their values."""
    if not can_remember(weights):
        return Layer(weights, dtype, spec)
    purpose = (dtype, spec, _extension.cpu_level())
    made: Layer | None = recall(weights, purpose)
    if made is None:
        values = fingerprint(weights)
        made = Layer(weights, dtype, spec)
        made.packs.fingerprint = values
        if values >= 0:
            remember(weights, values, purpose, made)
    return made


def kept(
    shape: Sequence[int], dtype: torch.dtype, weights: Weights, call: tuple[Any, ...]
) -> Layer | None:
    """The layer that :func:`keep` stored for the same call, or None.

    Only input and residual may differ, which :data:`MISFITS` says if they do not fit.

    Args:
        shape: of the input.
        dtype: of the input.
        call: the op and its options.
    """
    if not _ORDINARY.issuperset(map(type, weights)):
        return None
    try:
        for t in weights:
            if t is not None and t.is_neg():  # the fingerprint reads bytes, not values
                return None
        # operators are faster with a plain tuple
        layer: Layer | None = recall(tuple(weights), _purpose(dtype, call))
    except MISFITS:
        return None
    if layer is None or len(shape) != 4 or shape[1] != layer.channels:
        return None
    return layer


def keep(dtype: torch.dtype, weights: Weights, call: tuple[Any, ...], layer: Layer) -> None:
    """Stores the layer for :func:`kept`."""
    values = layer.packs.fingerprint
    if values is not None and values >= 0:
        with contextlib.suppress(TypeError):  # an unhashable option, such as a list
            remember(weights, values, _purpose(dtype, call), layer)


def _purpose(dtype: torch.dtype, call: tuple[Any, ...]) -> tuple[Any, ...]:
    # includes the types: 1, 1.0 and True are equal, but not all are valid options
    return (_extension.cpu_level(), dtype, *call, *map(type, call))
