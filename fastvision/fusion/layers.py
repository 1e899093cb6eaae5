"""The layers of a fused model: sub-classes of those they stand for, with all that these have.

A layer keeps its weights, under their names, and owns what is packed of them, with and without a
normalization folded in. It is packed at the first call, and again after a change that torch counts:
a write in place, load_state_dict(), to(), an assignment.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from .. import _extension, ops
from ..ops import _backend
from ..ops._checks import pair
from ..ops.conv import cpu
from ..ops.conv.linear import PackedLinear
from ..ops.conv.spec import ConvSpec, Weights, paddings
from ..reference.activations import ACTIVATIONS, activate
from ..reference.conv_bn_relu import fold_batch_norm
from . import modules, rules  # noqa: F401  (rules apply once imported)
from .classes import Fused
from .values import (
    NO_END,
    Deferred,
    End,
    Image,
    Norm,
    Ready,
    Traced,
    autocast_of,
    defer,
    run_chain,
)

FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
_MAX_SHAPES = 64


class State:
    """What a fused layer keeps besides the model's own attributes; a copy begins without packs."""

    def __init__(self, channels_last: bool = False) -> None:
        self.channels_last = channels_last
        self.made: dict[Any, Made] = {}
        self.norm: Norm | None = None  # of a normalization, as it is
        self.chains: dict[tuple[str, ...], None] = {}  # that ran, in order
        self.kept: set[str] = set()
        self.ready: dict[torch.Size, Ready] = {}  # by the shapes of inputs

    def __reduce__(self) -> Any:
        return _state, (self.channels_last, tuple(self.chains))

    def forget(self) -> None:
        """After a change of attributes, or of the memory of tensors."""
        self.made.clear()
        self.ready.clear()
        self.norm = None

    def know(self, x: Tensor, ready: Ready) -> Ready:
        """Keeps what is known of inputs like ``x``."""
        if len(self.ready) >= _MAX_SHAPES:
            self.ready.clear()
        self.ready[x.shape] = ready
        return ready


def _state(channels_last: bool, chains: tuple[tuple[str, ...], ...]) -> State:
    new = State(channels_last)
    new.chains = dict.fromkeys(chains)
    return new


def weight_state(module: nn.Module) -> State:
    return module.__dict__["_fused"]


class Made:
    """What was made of a layer's weight and bias and a normalization, good until one of these is
    written to or is another tensor."""

    def __init__(self, weight: Any, bias: Any, norm: Norm | None, make: Callable[[], Any]) -> None:
        self.weight, self.bias, self.norm = weight, bias, norm
        self.weights = Weights(weight, bias, *(() if norm is None else norm.tensors))
        self.given = [t for t in self.weights if t is not None]
        # before it is made; of tensors made in inference mode, writes are not counted
        counted = not any(t.is_inference() for t in self.given)
        self.versions = [t._version for t in self.given] if counted else None
        self.value = make()

    def serves(self, weight: Any, bias: Any, norm: Norm | None) -> bool:
        return (
            self.weight is weight
            and self.bias is bias
            and (self.norm is norm or (norm is not None and norm.is_same(self.norm)))
            and self.versions is not None
            and self.versions == [t._version for t in self.given]
        )


_NOTHING = contextlib.nullcontext()


# --- what the layers share


class Stateful(Fused):
    """Whose state belongs to its tensors."""

    def __setattr__(self, name: str, value: Any) -> None:
        super().__setattr__(name, value)
        if "_fused" in self.__dict__:  # not in a constructor
            weight_state(self).forget()

    def __delattr__(self, name: str) -> None:
        super().__delattr__(name)
        weight_state(self).forget()

    def _apply(self, *args: Any, **kwargs: Any) -> Any:
        result = super()._apply(*args, **kwargs)  # puts other memory into tensors
        weight_state(self).forget()
        return result

    @property
    def kept(self) -> set[str]:
        return weight_state(self).kept


class FusedLayer(Stateful):
    """Mixed into a layer's class. In a fused model, and called with a value of it, the layer is
    deferred; otherwise it runs alone."""

    takes_norm = False
    takes_residual = False
    weight: Tensor
    bias: Tensor | None

    def _defer(self, input: Any) -> Any:
        """The layer's result for ``input``, or None: then it is to run as its own class."""
        kind = type(input)
        if kind is Image or kind is Deferred:
            source = input if kind is Image else input.compute()
            ready = self._ready_for(source)
            if ready is None:
                return None
            result = defer(self, source, ready)
            seen = self._forward_hooks or source._shared.escaped
            return result.compute() if seen else result
        if kind is Traced:
            x = input.compute()
            autocast = autocast_of(x)
            fits = self._fits(x, autocast) and not self._needs_gradient(x)
            return defer(self, input, Ready(self.kept, x.dtype, autocast, None)) if fits else None
        if (
            kind is Tensor
            and self._fits(input, autocast_of(input))
            and not self._needs_gradient(input)
            and modules.may_defer((input,), {})
        ):  # from outside
            return modules.run(self._defer, (input,), {})
        return None

    def _ready_for(self, source: Image) -> Ready | None:
        """What is known of calls with inputs like ``source``; None if the layer cannot take it."""
        x = source._memory if source._viewed is None else source._plain
        state: State = self.__dict__["_fused"]
        weight = self._parameters.get("weight")
        autocast = autocast_of(x)
        ready = state.ready.get(x.shape)
        if (
            ready is None
            or ready.weight is not weight
            or ready.dtype is not x.dtype
            or ready.autocast is not autocast
        ):
            if not self._fits(x, autocast):
                return None
            ready = state.know(x, Ready(self.kept, x.dtype, autocast, self.shape_of(x), weight))
        if torch.is_grad_enabled() and self._needs_gradient(x):
            return None
        return ready

    def at_once(self, source: Image, norm: Norm | None, end: End) -> Any:
        """The value of a chain whose end is known when it begins; None as :meth:`_defer`."""
        ready = self._ready_for(source)
        return None if ready is None else run_chain(self, source, norm, None, end, ready.autocast)

    def shape_of(self, x: Tensor) -> tuple[int, ...]:
        raise NotImplementedError

    def _fits(self, x: Tensor, autocast: torch.dtype | None) -> bool:
        raise NotImplementedError

    def _weights_fit(self, x: Tensor, autocast: torch.dtype | None) -> bool:
        weight: Any = self._parameters.get("weight")
        if weight is None:  # computed: pruned, parametrized
            return False
        return weight.dtype == x.dtype or (autocast is not None and weight.dtype in FLOATS)

    def _needs_gradient(self, x: Tensor) -> bool:
        own = self._parameters
        tensors = (x, own.get("weight"), own.get("bias"))
        return torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors)

    def note(self, norm: Norm | None, residual: Any, end: End) -> None:
        """Keeps in mind what runs, for the report."""
        parts = [_kind(self)]
        if norm is not None:
            parts.append(norm.name)
        if residual is not None:
            parts.append("add")
        if end[0] != "none":
            parts.append(end[0])
        weight_state(self).chains[tuple(parts)] = None


def _kind(module: nn.Module) -> str:
    return next(c for c in type(module).__mro__ if c.__module__.startswith("torch.nn.")).__name__


def own_kernels(x: Tensor) -> bool:
    """In eager mode."""
    return (
        x.is_cpu
        and type(x) is Tensor
        and _extension.missing is None
        and _backend.requested_by_environment is None
    )


# --- convolutions


class _FusedConvolution(FusedLayer):
    takes_norm = True
    takes_residual = True

    stride: Any
    padding: Any
    dilation: Any
    groups: int

    def _spec(self, eps: float = 0.0, end: End = NO_END) -> ConvSpec:
        raise NotImplementedError

    def _fits(self, x: Tensor, autocast: torch.dtype | None) -> bool:
        weight = self._parameters.get("weight")
        return (
            weight is not None
            and x.dim() == weight.dim()
            and x.shape[1] == self._inputs(weight)
            and self._weights_fit(x, autocast)
        )

    def _inputs(self, weight: Tensor) -> int:
        return weight.shape[1] * self.groups

    def run(
        self,
        x: Tensor,
        norm: Norm | None,
        residual: Tensor | None,
        end: End,
        autocast: torch.dtype | None,
        *,
        eager: bool,
    ) -> Tensor:
        state: State = self.__dict__["_fused"]
        if autocast is not None:
            x = x.to(autocast)
        if state.channels_last and x.dim() == 4:
            x = x.contiguous(memory_format=torch.channels_last)
        if not eager:
            eps = 0.0 if norm is None else norm.eps
            return self._by_op(x, self._weights(norm), eps, residual, end)
        own = self._parameters
        weight, bias = own["weight"], own["bias"]
        key = (x.dtype, norm is None, residual is None, end, _extension.cpu_level())
        made = state.made.get(key)
        if made is None or not made.serves(weight, bias, norm):
            self.note(norm, residual, end)
            make = self._runner(x, norm, end)
            made = state.made[key] = Made(weight, bias, norm, make)
        return made.value(x, residual, made.weights)

    def _weights(self, norm: Norm | None) -> Weights:
        own: Any = self._parameters
        return Weights(own["weight"], own["bias"], *(() if norm is None else norm.tensors))

    def _runner(self, x: Tensor, norm: Norm | None, end: End) -> Any:
        """What makes the function (input, residual, tensors) that runs a chain."""
        tensors, eps = self._weights(norm), 0.0 if norm is None else norm.eps
        if x.dim() == 4 and own_kernels(x):
            return lambda: cpu.Layer(tensors, x.dtype, self._spec(eps, end))

        def make() -> Any:
            folded = self._folded(tensors, eps)
            return lambda input, residual, _: self._by_op(input, folded, 0.0, residual, end)

        return make

    def _folded(self, tensors: Weights, eps: float) -> Weights:
        weight, bias, *norm = (None if t is None else t.detach() for t in tensors)
        if norm[2] is not None:
            dtype = weight.dtype  # type: ignore[union-attr]
            weight, bias = self._fold(weight, bias, norm, eps)  # type: ignore[arg-type]
            weight, bias = weight.to(dtype), bias.to(dtype)
        if weight.dim() == 4 and weight_state(self).channels_last:  # type: ignore[union-attr]
            weight = weight.contiguous(memory_format=torch.channels_last)  # type: ignore[union-attr]
        return Weights(weight, bias)  # type: ignore[arg-type]

    def _fold(
        self, weight: Tensor, bias: Tensor | None, norm: list[Any], eps: float
    ) -> tuple[Any, Any]:
        return fold_batch_norm(weight, bias, *norm, eps)  # type: ignore[call-arg]

    def _by_op(
        self, x: Tensor, weights: Weights, eps: float, residual: Tensor | None, end: End
    ) -> Tensor:
        # autocast may have been off when the layer was called
        kind = x.device.type
        with torch.autocast(kind, enabled=False) if torch.is_autocast_enabled(kind) else _NOTHING:
            return self._op(x, weights, eps, residual, *end)

    def _op(
        self,
        x: Tensor,
        weights: Weights,
        eps: float,
        residual: Tensor | None,
        activation: str,
        slope: float,
    ) -> Tensor:
        raise NotImplementedError


class FusedConv2d(_FusedConvolution):
    """See :func:`fastvision.ops.conv_bn_relu`."""

    def forward(self, input: Any) -> Any:
        result = self._defer(input)
        return super().forward(input) if result is None else result

    def _spec(self, eps: float = 0.0, end: End = NO_END) -> ConvSpec:
        stride, dilation = pair(self.stride, "stride"), pair(self.dilation, "dilation")
        sides = paddings(self.padding, self.weight.shape[2:], stride, dilation)
        activation = ACTIVATIONS.index(end[0])
        return ConvSpec(stride, sides, dilation, self.groups, eps, activation, end[1])

    def shape_of(self, x: Tensor) -> tuple[int, ...]:
        size = self._spec().output_size(x.shape[2:], self.weight.shape[2:])
        return (x.shape[0], self.weight.shape[0], *size)

    def _op(
        self,
        x: Tensor,
        weights: Weights,
        eps: float,
        residual: Tensor | None,
        activation: str,
        slope: float,
    ) -> Tensor:
        weight, bias, bn_weight, bn_bias, mean, var = weights
        spec = self._spec()
        return ops.conv_bn_relu(
            x, weight, bias,
            bn_weight=bn_weight, bn_bias=bn_bias, running_mean=mean, running_var=var, eps=eps,
            stride=spec.stride, padding=spec.padding, dilation=spec.dilation, groups=spec.groups,
            residual=residual, activation=activation, negative_slope=slope,
        )  # fmt: skip


class FusedConvTranspose2d(_FusedConvolution):
    """See :func:`fastvision.ops.conv_transpose2d_bn_relu`."""

    output_padding: Any

    def forward(self, input: Any, output_size: Any = None) -> Any:
        result = None if output_size is not None else self._defer(input)
        return super().forward(input, output_size) if result is None else result

    def _inputs(self, weight: Tensor) -> int:
        return weight.shape[0]

    def _spec(self, eps: float = 0.0, end: End = NO_END) -> ConvSpec:
        pairs = (self.stride, self.padding, self.output_padding, self.dilation)
        stride, (top, left), extra, dilation = (pair(value, "option") for value in pairs)
        activation = ACTIVATIONS.index(end[0])
        window = (stride, (left, left, top, top), dilation, self.groups)
        return ConvSpec(*window, eps, activation, end[1], transposed=True, output_padding=extra)

    def shape_of(self, x: Tensor) -> tuple[int, ...]:
        spec = self._spec()
        size = spec.output_size(x.shape[2:], self.weight.shape[2:])
        return (x.shape[0], self.weight.shape[1] * self.groups, *size)

    def _fold(
        self, weight: Tensor, bias: Tensor | None, norm: list[Any], eps: float
    ) -> tuple[Any, Any]:
        # [I, O / groups, ...] to [O, I / groups, ...] and back, for one rule of folding
        groups = self.groups
        inputs, outputs, *kernel = weight.shape
        rows = weight.view(groups, inputs // groups, outputs, *kernel).transpose(1, 2)
        rows = rows.reshape(groups * outputs, inputs // groups, *kernel)
        folded, shift = fold_batch_norm(rows, bias, *norm, eps)  # type: ignore[call-arg]
        folded = folded.view(groups, outputs, inputs // groups, *kernel).transpose(1, 2)
        return folded.reshape(weight.shape), shift

    def _op(
        self,
        x: Tensor,
        weights: Weights,
        eps: float,
        residual: Tensor | None,
        activation: str,
        slope: float,
    ) -> Tensor:
        weight, bias, bn_weight, bn_bias, mean, var = weights
        stride, padding, extra, groups, dilation = self._spec().arguments()[:5]
        return ops.conv_transpose2d_bn_relu(
            x, weight, bias,
            bn_weight=bn_weight, bn_bias=bn_bias, running_mean=mean, running_var=var, eps=eps,
            stride=stride, padding=padding, output_padding=extra, groups=groups, dilation=dilation,
            residual=residual, activation=activation, negative_slope=slope,
        )  # fmt: skip


class FusedConvNd(_FusedConvolution):
    """One- and three-dimensional: torch's convolution with the normalization in its weights."""

    _conv_forward: Callable[..., Tensor]

    def forward(self, input: Any) -> Any:
        result = self._defer(input)
        return super().forward(input) if result is None else result

    def shape_of(self, x: Tensor) -> Any:
        with torch.no_grad():
            weight = self.weight.to("meta")
            return self._conv_forward(torch.empty_like(x, device="meta"), weight, None).shape

    def _op(
        self,
        x: Tensor,
        weights: Weights,
        eps: float,
        residual: Tensor | None,
        activation: str,
        slope: float,
    ) -> Tensor:
        if weights.running_mean is not None:  # under a tracer
            weights = self._folded(weights, eps)
        weight, bias = (None if t is None else t.to(x.dtype) for t in weights[:2])
        y = self._conv_forward(x, weight, bias)
        if residual is not None:
            y += residual
        return y.relu_() if activation == "relu" else activate(y, activation, slope)


# --- linear layers


class FusedLinear(FusedLayer):
    """See :func:`fastvision.ops.linear_act.linear_act`."""

    def forward(self, input: Any) -> Any:
        result = self._defer(input)
        return super().forward(input) if result is None else result

    def _fits(self, x: Tensor, autocast: torch.dtype | None) -> bool:
        return (
            autocast is None
            and x.dim() > 0
            and self._weights_fit(x, autocast)
            and x.shape[-1] == self.weight.shape[1]
        )

    def shape_of(self, x: Tensor) -> tuple[int, ...]:
        return (*x.shape[:-1], self.weight.shape[0])

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
        activation, slope = end
        if not (eager and own_kernels(x)):
            if eager:
                self.note(norm, residual, end)
            return ops.linear_act(
                x, self.weight, self.bias, activation=activation, negative_slope=slope
            )
        state = weight_state(self)
        own = self._parameters
        weight, bias = own["weight"], own["bias"]
        key = (activation, _extension.cpu_level())
        made = state.made.get(key)
        if made is None or not made.serves(weight, bias, None):
            self.note(norm, residual, end)
            made = state.made[key] = Made(weight, bias, None, PackedLinear)
        return made.value(x, weight, bias, ACTIVATIONS.index(activation), slope)
