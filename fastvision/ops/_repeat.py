"""Calls that only differ from an earlier one in their input: what that one found is used again.

Checking a call and looking up its weights takes longer than a small convolution.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor

from .. import _extension
from ._backend import requested_by_environment
from ._checks import is_eager, is_transformed, needs_gradient
from ._packing import Packs, can_remember, fingerprint, recall, remember


class Layer(Protocol):
    """An op with its packed weights and options, for inputs of one dtype."""

    channels: int  # of the input
    packs: Packs

    def __call__(
        self, input: Tensor, residual: Tensor | None, tensors: tuple[Any, ...]
    ) -> Tensor: ...


L = TypeVar("L", bound=Layer)

_ORDINARY = frozenset((Tensor, torch.nn.Parameter, type(None)))


def is_plain(tensors: Sequence[Any]) -> bool:
    """Whether nothing but the result on the CPU is wanted of a call; input first, residual last."""
    input, *_, residual = tensors
    return (
        type(input) is Tensor
        and input.is_cpu
        and (residual is None or type(residual) is Tensor)
        and _extension.missing is None
        and requested_by_environment is None
        and not torch.is_autocast_enabled("cpu")
        and not needs_gradient(tensors)
        and is_eager()
        and not is_transformed()
    )


def made_once(kind: type[L], tensors: tuple[Any, ...], dtype: torch.dtype, *options: Any) -> L:
    """``kind(tensors, dtype, *options)``, or the one of an earlier call with the same values."""
    if not can_remember(tensors):
        return kind(tensors, dtype, *options)  # type: ignore[call-arg]
    purpose = (kind, dtype, options, _extension.cpu_level())
    made: L | None = recall(tensors, purpose)
    if made is None:
        values = fingerprint(tensors)
        made = kind(tensors, dtype, *options)  # type: ignore[call-arg]
        made.packs.fingerprint = values
        if values >= 0:
            remember(tensors, values, purpose, made)
    return made


def repeat(tensors: tuple[Any, ...], call: tuple[Any, ...]) -> Tensor | None:
    """The result by the layer that :func:`keep` got for a call that was the same but for input and
    residual, if there was one and they fit; ``call`` holds the op and its options."""
    input, *weights, residual = tensors
    if not _ORDINARY.issuperset(map(type, weights)):
        return None
    parameters = tuple(weights)
    try:
        if any(t is not None and t.is_neg() for t in weights):  # their bytes are not their values
            return None
        layer = recall(parameters, _purpose(input, call))
        if layer is None or input.dim() != 4 or input.shape[1] != layer.channels:
            return None
        return layer(input, residual, parameters)
    except (TypeError, RuntimeError, AttributeError):  # the checks say it better
        return None


def keep(tensors: tuple[Any, ...], call: tuple[Any, ...], layer: Layer) -> None:
    """Lets :func:`repeat` find the layer."""
    values = layer.packs.fingerprint
    if values is not None and values >= 0:
        with contextlib.suppress(TypeError):  # a list among the options
            remember(tensors[1:-1], values, _purpose(tensors[0], call), layer)


def _purpose(input: Tensor, call: tuple[Any, ...]) -> tuple[Any, ...]:
    # with the types: 1, 1.0 and True are equal, and not all of them are options
    return (_extension.cpu_level(), input.dtype, *call, *map(type, call))
