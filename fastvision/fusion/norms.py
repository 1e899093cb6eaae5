"""Batch normalizations of a fused model: folded into the convolution before them, otherwise one op
with the activation after them."""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from .. import ops
from ..ops._batch_norm_statistics import fixed_statistics
from ..reference.activations import ACTIVATIONS, activate
from .anchors import End, Norm, Ready
from .calls import extend
from .chains import Deferred, Traced, autocast_of, defer, is_value
from .images import Image
from .layers import FLOATS, Made, State, Stateful, own_kernels

_KERNEL = torch.ops.fastvision.batch_norm_relu.default


class FusedNorm(Stateful):
    """Mixin of fused batch normalizations."""

    takes_norm = False
    takes_residual = False
    overwrites = False
    eps: float

    def forward(self, input: Any) -> Any:
        if is_value(input) and not self.training and not self._forward_hooks:
            norm = self.norm_of(keep=type(input) is not Traced)
            result = None if norm is None else normalized(input, norm, self)
            if result is not None:
                return result
        return super().forward(input)

    def norm_of(self, *, keep: bool) -> Norm | None:
        """The layer's parameters and statistics; None without running statistics. ``keep``: cache
        them, except under a tracer."""
        state: State = self.__dict__["_fused"]
        own, buffers = self._parameters, self._buffers
        affine = own if "weight" in own else buffers
        weight, bias = affine.get("weight"), affine.get("bias")
        mean, var = buffers.get("running_mean"), buffers.get("running_var")
        known = state.norm
        if known is not None:
            a, b, c, d = known.tensors
            if a is weight and b is bias and c is mean and d is var:
                return known
        if mean is None or var is None:
            return None
        found = Norm(weight, bias, mean, var, self.eps, type(self).__name__)
        if keep:
            state.norm = found
        return found

    def shape_of(self, x: Tensor) -> torch.Size:
        return x.shape

    def run(
        self,
        x: Tensor,
        norm: None,
        residual: None,
        end: End,
        autocast: None,
        *,
        eager: bool,
    ) -> Tensor:
        own: Any = self.norm_of(keep=eager)
        activation, slope = end
        if activation == "none" or not (eager and own_kernels(x) and _is_map(x)):
            return run_norm(x, own, end)
        state: State = self.__dict__["_fused"]
        made = state.made.get(x.dtype)
        if made is None or not made.serves(None, None, own):
            state.chains[(type(self).__name__, activation)] = None
            weight, bias, mean, var = own.tensors
            make = functools.partial(fixed_statistics, x.dtype, mean, var, weight, bias)
            made = state.made[x.dtype] = Made(None, None, own, make)
        return _KERNEL(x, *made.value, None, own.eps, ACTIVATIONS.index(activation), slope)


def _is_map(x: Tensor) -> bool:
    return x.dim() == 4 and x.dtype in FLOATS


def run_norm(x: Tensor, norm: Norm, end: End) -> Tensor:
    weight, bias, mean, var = norm.tensors
    activation, slope = end
    if activation != "none" and _is_map(x):
        return ops.batch_norm_relu(
            x, mean, var, weight, bias, eps=norm.eps, activation=activation, negative_slope=slope
        )
    y = F.batch_norm(x, mean, var, weight, bias, False, 0.0, norm.eps)
    return activate(y, activation, slope)


class _FunctionalNorm:
    """The anchor for a call of F.batch_norm."""

    takes_norm = takes_residual = overwrites = False

    def __init__(self, norm: Norm) -> None:
        self.norm = norm
        self.kept: set[str] = set()

    def shape_of(self, x: Tensor) -> torch.Size:
        return x.shape

    def run(
        self,
        x: Tensor,
        norm: None,
        residual: None,
        end: End,
        autocast: None,
        *,
        eager: bool,
    ) -> Tensor:
        return run_norm(x, self.norm, end)


def normalized(input: Any, norm: Norm, layer: FusedNorm | None = None) -> Any:
    """The deferred normalization of ``input`` with fixed statistics; None if it is unsupported."""
    kind = type(input)
    value = input
    if kind is Deferred or kind is Traced:
        if input.may_normalize(norm):
            longer = input.longer(norm, None)
            if longer is not NotImplemented:
                return longer
        value = input.compute()
    x = value._plain if type(value) is Image else value
    if x.dim() < 2 or not norm.is_of(x.shape[1]):
        return None
    if (torch.is_grad_enabled() and x.requires_grad) or autocast_of(x) is not None:
        return None
    anchor: Any = layer or _FunctionalNorm(norm)
    if type(value) is Image:
        return defer(anchor, value, Ready(anchor.kept, x.dtype, None, x.shape))
    return defer(anchor, Traced(x), Ready(anchor.kept, x.dtype, None, None))


def _batch_norm(func: Any, args: Any, kwargs: Any) -> Any:
    names = (
        "input",
        "running_mean",
        "running_var",
        "weight",
        "bias",
        "training",
        "momentum",
        "eps",
    )
    given = dict(zip(names, args, strict=False)) | kwargs
    if given.get("training"):
        return NotImplemented
    tensors: Any = [*map(given.get, ("weight", "bias", "running_mean", "running_var"))]
    if tensors[2] is None or tensors[3] is None:
        return NotImplemented
    norm = Norm(*tensors, given.get("eps", 1e-5))  # type: ignore[call-arg]
    result = normalized(given["input"], norm)
    return NotImplemented if result is None else result


extend(F.batch_norm, _batch_norm)
