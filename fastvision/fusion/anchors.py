"""The layers that begin chains, and what is known of a chain before it runs."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any, Protocol

import torch
from torch import Tensor

from .images import Value


class Norm:
    """A batch normalization with fixed statistics, from a module or a function call."""

    __slots__ = ("channels", "counted", "eps", "name", "tensors")

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
        self.counted: list[Tensor] | None = None  # those whose writes torch counts
        shapes = {t.shape for t in self.tensors if t is not None}
        shape: Any = shapes.pop() if len(shapes) == 1 else ()
        ordinary = len(shape) == 1 and not any(isinstance(t, Value) for t in self.tensors)
        self.channels: int | None = shape[0] if ordinary else None

    def is_of(self, channels: int) -> bool:
        """Whether it has this number of channels, and needs no gradient."""
        if self.channels != channels:
            return False
        return not torch.is_grad_enabled() or not any(
            t is not None and t.requires_grad for t in self.tensors
        )

    def writes(self) -> int:
        """The number of writes that torch has counted."""
        if self.counted is None:  # not before: a tracer need not know
            self.counted = [t for t in self.tensors if t is not None and not t.is_inference()]
        return sum([t._version for t in self.counted])

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

    __slots__ = ("autocast", "bias", "counted", "dtype", "kept", "placeholder", "weight")

    def __init__(
        self,
        kept: set[str],
        dtype: torch.dtype,
        autocast: torch.dtype | None,
        shape: Any,  # of the result; None under a tracer
        weight: Tensor | None = None,
        bias: Tensor | None = None,
    ) -> None:
        self.dtype, self.autocast, self.kept = dtype, autocast, kept
        self.weight, self.bias = weight, bias
        # torch counts writes
        self.counted = weight is not None and not (
            weight.is_inference() or (bias is not None and bias.is_inference())
        )
        # data of the deferred results, which are instances of a subclass of Tensor
        self.placeholder: Any = None if shape is None else _placeholder(shape, autocast or dtype)

    def writes(self, norm: Norm | None = None) -> int | None:
        """The number of writes to the weights so far, and to those of ``norm``; None if torch does
        not count them."""
        weight, bias = self.weight, self.bias
        if weight is None or not self.counted:
            return None
        own = weight._version if bias is None else weight._version + bias._version
        return own if norm is None else own + norm.writes()

    def serves(self, parameters: Mapping[str, Tensor | None]) -> bool:
        """Whether a layer's weights are these."""
        return parameters.get("weight") is self.weight and parameters.get("bias") is self.bias


@functools.lru_cache(maxsize=4096)
def _placeholder(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """A tensor without memory, on the meta device."""
    with torch.inference_mode(False):
        return torch.empty(shape, dtype=dtype, device="meta")


class Anchor(Protocol):
    """The layer that begins a chain: a convolution, linear layer or normalization."""

    takes_norm: bool
    takes_residual: bool
    overwrites: bool  # whether the result can take the residual's memory
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
        overwrite: bool = False,
    ) -> Tensor: ...

    def shape_of(self, x: Tensor) -> torch.Size | tuple[int, ...]: ...
