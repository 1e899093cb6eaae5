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
from ._packing import recall, remember, remembered


class Layer(Protocol):
    """An op with its weights and options, for inputs of one dtype."""

    channels: int  # of the input

    def __call__(self, input: Tensor, residual: Tensor | None) -> Tensor: ...


L = TypeVar("L", bound=Layer)


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
    """``kind(tensors, dtype, *options)``; its packed weights last as long as the tensors."""
    purpose = (kind, dtype, options, _extension.cpu_level())
    made: L = remembered(tensors, purpose, kind, dtype, *options)
    return made


def repeat(tensors: tuple[Any, ...], call: tuple[Any, ...]) -> Tensor | None:
    """The result by the layer that :func:`keep` got for a call that was the same but for input and
    residual, if there was one and they fit; ``call`` holds the op and its options."""
    input, *_, residual = tensors
    try:
        layer = recall(tensors[1:-1], _purpose(input, call))
    except TypeError:  # a list among the options
        return None
    if layer is None or input.dim() != 4 or input.shape[1] != layer.channels:
        return None
    try:
        return layer(input, residual)
    except RuntimeError:  # the checks say it better
        return None


def keep(tensors: tuple[Any, ...], call: tuple[Any, ...], layer: Layer) -> None:
    with contextlib.suppress(TypeError):  # a list among the options
        remember(tensors[1:-1], _purpose(tensors[0], call), layer)


def _purpose(input: Tensor, call: tuple[Any, ...]) -> tuple[Any, ...]:
    return (_extension.cpu_level(), input.dtype, *call)
