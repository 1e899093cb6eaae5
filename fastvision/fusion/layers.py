"""The layers of a fused model: sub-classes of those they stand for, with all that these have.

A layer keeps its weights, under their names, and owns what is packed of them, with and without a
normalization folded in. It is packed at the first call, and again after a change that torch counts:
a write in place, load_state_dict(), to(), an assignment.
"""

from __future__ import annotations

import contextlib
import importlib
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .. import _extension, ops
from ..ops import _backend, _conv_cpu, _conv_transpose
from ..ops._checks import is_eager
from ..ops._conv_transpose import output_size as transposed_size
from ..ops._convolution import output_size, paddings, pair
from ..ops._layers import activation_of, is_frozen_batch_norm
from ..reference.activations import ACTIVATIONS, activate
from ..reference.conv_bn_relu import fold_batch_norm
from . import modules, rules  # noqa: F401  (rules apply once imported)
from .classes import Fused
from .values import (
    Deferred,
    Image,
    Norm,
    Steps,
    Traced,
    autocast_of,
    defer,
    extend,
    is_deferred,
    is_value,
    plain_of,
)

linear: Any = importlib.import_module("..ops.linear_act", __package__)  # the module, not the op

_NO_STEPS = Steps()
_FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


class State:
    """What a fused layer keeps besides the model's own attributes; a copy begins without packs."""

    def __init__(self, channels_last: bool = False) -> None:
        self.channels_last = channels_last
        self.made: dict[Any, Made] = {}
        self.norm: Norm | None = None  # of a normalization, as it is
        self.chains: dict[tuple[str, ...], None] = {}  # that ran, in order
        self.kept: set[str] = set()
        self.shapes: dict[torch.Size, tuple[int, ...]] = {}  # of results, by those of inputs

    def __reduce__(self) -> Any:
        return _state, (self.channels_last, tuple(self.chains))

    def forget(self) -> None:
        """After a change of attributes, or of the memory of tensors."""
        self.made.clear()
        self.shapes.clear()
        self.norm = None


class Made:
    """What was made of some tensors, good until one of them is written to."""

    def __init__(
        self, tensors: tuple[Any, ...], make: Callable[[], Any], norm: Norm | None
    ) -> None:
        self.tensors, self.norm = tensors, norm
        self.counted = [t for t in tensors if t is not None]
        self.versions = self._versions()  # before it is made
        self.value = make()

    def _versions(self) -> Any:
        try:
            return [t._version for t in self.counted]
        except RuntimeError:  # made in inference mode: writes are not counted
            return object()

    def serves(self, layer: nn.Module, norm: Norm | None) -> bool:
        """Whether these are still the layer's tensors and that normalization's, with the values."""
        own = layer._parameters
        return (
            (self.norm is norm or _is_same(self.norm, norm))
            and self.tensors[0] is own["weight"]
            and self.tensors[1] is own["bias"]
            and self.versions == self._versions()
        )


def _state(channels_last: bool, chains: tuple[tuple[str, ...], ...]) -> State:
    new = State(channels_last)
    new.chains = dict.fromkeys(chains)
    return new


def weight_state(module: nn.Module) -> State:
    return module.__dict__["_fused"]


# --- what the layers share


class _Stateful(Fused):
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


class FusedLayer(_Stateful):
    """Mixed into a layer's class. In a fused model, and called with a value of it, the layer is
    deferred; otherwise it runs alone."""

    takes_norm = False
    takes_residual = False
    weight: Tensor
    bias: Tensor | None

    def _defer(self, input: Any) -> Any:
        """The layer's result for ``input``, or None: then it is to run as its own class."""
        kind = type(input)
        if kind is Image or kind is Deferred or kind is Traced:
            source = input if kind is Image else input.compute()
            plain = plain_of(source)
            autocast = autocast_of(plain)
            if self._fits(plain, autocast):
                source = source if type(source) is Image else input  # under a tracer
                result = defer(self, source, _NO_STEPS, autocast)
                seen = self._forward_hooks or (type(source) is Image and source._shared.escaped)
                return result.compute() if seen else result
        elif (
            kind is Tensor
            and self._fits(input, autocast_of(input))
            and modules.may_defer((input,), {})
        ):  # from outside
            return modules.run(self._defer, (input,), {})
        return None

    def _fits(self, x: Tensor, autocast: torch.dtype | None) -> bool:
        raise NotImplementedError

    def _weights_fit(self, x: Tensor, autocast: torch.dtype | None) -> bool:
        weight: Any = self._parameters.get("weight")
        bias = self._parameters.get("bias")
        if weight is None:  # computed: pruned, parametrized
            return False
        if torch.is_grad_enabled() and (
            x.requires_grad or weight.requires_grad or (bias is not None and bias.requires_grad)
        ):
            return False
        return weight.dtype == x.dtype or (autocast is not None and weight.dtype in _FLOATS)

    def stamp(self) -> Any:
        weight: Any = self._parameters["weight"]
        return None if weight.is_inference() else (id(weight), weight._version)

    def note(self, steps: Steps, state: State) -> None:
        """Keeps in mind what runs, for the report."""
        parts = [_kind(self)]
        if steps.norm is not None:
            parts.append(steps.norm.name)
        if steps.residual is not None:
            parts.append("add")
        if steps.activation != "none":
            parts.append(steps.activation)
        state.chains[tuple(parts)] = None


def _kind(module: nn.Module) -> str:
    return next(c for c in type(module).__mro__ if c.__module__.startswith("torch.nn.")).__name__


def _without_autocast(x: Tensor) -> Any:
    if autocast_of(x) is None:
        return contextlib.nullcontext()
    return torch.autocast(x.device.type, enabled=False)


def _own_kernels(x: Tensor) -> bool:
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

    _cpu: Any = _conv_cpu  # whose Layer runs it there
    stride: Any
    padding: Any
    dilation: Any
    groups: int

    def _options(self) -> tuple[Any, ...]:
        """The first options of that Layer."""
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

    def shape_of(self, x: Tensor) -> tuple[int, ...]:
        if not is_eager():
            return self._shape_of(x)
        shapes = weight_state(self).shapes
        shape = shapes.get(x.shape)
        if shape is None:
            if len(shapes) >= 64:
                shapes.clear()
            shape = shapes[x.shape] = self._shape_of(x)
        return shape

    def _shape_of(self, x: Tensor) -> tuple[int, ...]:
        raise NotImplementedError

    def run(self, x: Tensor, steps: Steps, autocast: torch.dtype | None) -> Tensor:
        state: State = self.__dict__["_fused"]
        norm, residual, activation, slope = steps
        if autocast is not None:
            x = x.to(autocast)
        if state.channels_last and x.dim() == 4:
            x = x.contiguous(memory_format=torch.channels_last)
        if not is_eager():
            return self._by_op(x, self._tensors(norm), 0.0 if norm is None else norm.eps, steps)
        key = (x.dtype, norm is None, residual is None, activation, slope, _extension.cpu_level())
        made = state.made.get(key)
        if made is None or not made.serves(self, norm):
            self.note(steps, state)
            make = self._runner(x, norm, activation, slope)
            made = state.made[key] = Made(self._tensors(norm), make, norm)
        return made.value(x, residual, made.tensors)

    def _tensors(self, norm: Norm | None) -> tuple[Any, ...]:
        own = self._parameters
        return (own["weight"], own["bias"], *((None,) * 4 if norm is None else norm[:4]))

    def _runner(self, x: Tensor, norm: Norm | None, activation: str, slope: float) -> Any:
        """What makes the function (input, residual, tensors) that runs a chain."""
        tensors, eps = self._tensors(norm), 0.0 if norm is None else norm.eps
        if x.dim() == 4 and _own_kernels(x):
            options = (*self._options(), eps, ACTIVATIONS.index(activation), slope)
            return lambda: self._cpu.Layer(tensors, x.dtype, *options)

        def run(input: Tensor, residual: Tensor | None, folded: Any) -> Tensor:
            return self._by_op(input, folded, 0.0, Steps(None, residual, activation, slope))

        def make() -> Any:
            folded = self._folded(tensors, eps)
            return lambda input, residual, _: run(input, residual, folded)

        return make

    def _folded(self, tensors: tuple[Any, ...], eps: float) -> tuple[Any, ...]:
        weight, bias, *norm = (None if t is None else t.detach() for t in tensors)
        if norm[2] is not None:
            dtype = weight.dtype  # type: ignore[union-attr]
            weight, bias = self._fold(weight, bias, norm, eps)  # type: ignore[arg-type]
            weight, bias = weight.to(dtype), bias.to(dtype)
        if weight.dim() == 4 and weight_state(self).channels_last:  # type: ignore[union-attr]
            weight = weight.contiguous(memory_format=torch.channels_last)  # type: ignore[union-attr]
        return weight, bias, None, None, None, None

    @property
    def channels(self) -> int:
        """Of the result."""
        return self.out_channels

    out_channels: int

    def _fold(
        self, weight: Tensor, bias: Tensor | None, norm: list[Any], eps: float
    ) -> tuple[Any, Any]:
        return fold_batch_norm(weight, bias, *norm, eps)  # type: ignore[call-arg]

    def _by_op(self, x: Tensor, tensors: tuple[Any, ...], eps: float, steps: Steps) -> Tensor:
        raise NotImplementedError


class FusedConv2d(_FusedConvolution):
    """See :func:`fastvision.ops.conv_bn_relu`."""

    def forward(self, input: Any) -> Any:
        result = self._defer(input)
        return super().forward(input) if result is None else result

    def _window(self) -> tuple[Any, Any, Any]:
        stride, dilation = pair(self.stride, "stride"), pair(self.dilation, "dilation")
        return stride, paddings(self.padding, self.weight.shape[2:], stride, dilation), dilation

    def _shape_of(self, x: Tensor) -> tuple[int, ...]:
        size = output_size(x.shape[2:], self.weight.shape[2:], *self._window())
        return (x.shape[0], self.weight.shape[0], *size)

    def _options(self) -> tuple[Any, ...]:
        return (*self._window(), self.groups)

    def _by_op(self, x: Tensor, tensors: tuple[Any, ...], eps: float, steps: Steps) -> Tensor:
        weight, bias, bn_weight, bn_bias, mean, var = tensors
        stride, padding, dilation = self._window()
        return ops.conv_bn_relu(
            x, weight, bias,
            bn_weight=bn_weight, bn_bias=bn_bias, running_mean=mean, running_var=var, eps=eps,
            stride=stride, padding=padding, dilation=dilation, groups=self.groups,
            residual=steps.residual, activation=steps.activation,
            negative_slope=steps.negative_slope,
        )  # fmt: skip


class FusedConvTranspose2d(_FusedConvolution):
    """See :func:`fastvision.ops.conv_transpose2d_bn_relu`."""

    _cpu = _conv_transpose
    output_padding: Any

    def forward(self, input: Any, output_size: Any = None) -> Any:
        result = None if output_size is not None else self._defer(input)
        return super().forward(input, output_size) if result is None else result

    def _inputs(self, weight: Tensor) -> int:
        return weight.shape[0]

    def _options(self) -> tuple[Any, ...]:
        pairs = (self.stride, self.padding, self.output_padding, self.dilation)
        stride, padding, extra, dilation = (pair(value, "option") for value in pairs)
        return stride, padding, extra, self.groups, dilation

    def _shape_of(self, x: Tensor) -> tuple[int, ...]:
        stride, padding, extra, _, dilation = self._options()
        sizes = (x.shape[2:], self.weight.shape[2:], stride, padding, extra, dilation)
        return (x.shape[0], self.weight.shape[1] * self.groups, *transposed_size(*sizes))

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

    def _by_op(self, x: Tensor, tensors: tuple[Any, ...], eps: float, steps: Steps) -> Tensor:
        weight, bias, bn_weight, bn_bias, mean, var = tensors
        stride, padding, extra, groups, dilation = self._options()
        return ops.conv_transpose2d_bn_relu(
            x, weight, bias,
            bn_weight=bn_weight, bn_bias=bn_bias, running_mean=mean, running_var=var, eps=eps,
            stride=stride, padding=padding, output_padding=extra, groups=groups, dilation=dilation,
            residual=steps.residual, activation=steps.activation,
            negative_slope=steps.negative_slope,
        )  # fmt: skip


class FusedConvNd(_FusedConvolution):
    """One- and three-dimensional: torch's convolution with the normalization in its weights."""

    _conv_forward: Callable[..., Tensor]

    def forward(self, input: Any) -> Any:
        result = self._defer(input)
        return super().forward(input) if result is None else result

    def _shape_of(self, x: Tensor) -> Any:
        with torch.no_grad():
            weight = self.weight.to("meta")
            return self._conv_forward(torch.empty_like(x, device="meta"), weight, None).shape

    def _by_op(self, x: Tensor, tensors: tuple[Any, ...], eps: float, steps: Steps) -> Tensor:
        if tensors[4] is not None:  # under a tracer
            tensors = self._folded(tensors, eps)
        weight, bias = (None if t is None else t.to(x.dtype) for t in tensors[:2])
        with _without_autocast(x):  # which was on or off when the layer was called
            y = self._conv_forward(x, weight, bias)
        if steps.residual is not None:
            y += steps.residual
        if steps.activation == "relu":
            return y.relu_()
        return activate(y, steps.activation, steps.negative_slope)


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

    def run(self, x: Tensor, steps: Steps, autocast: torch.dtype | None) -> Tensor:
        activation, slope = steps.activation, steps.negative_slope
        if not (is_eager() and _own_kernels(x)):
            if is_eager():
                self.note(steps, weight_state(self))
            return ops.linear_act(
                x, self.weight, self.bias, activation=activation, negative_slope=slope
            )
        state = weight_state(self)
        key = (activation, _extension.cpu_level())
        made = state.made.get(key)
        if made is None or not made.serves(self, None):
            self.note(steps, state)
            made = state.made[key] = Made((self.weight, self.bias), linear.Layer, None)
        return made.value(x, *made.tensors, ACTIVATIONS.index(activation), slope)


# --- normalizations


class FusedNorm(_Stateful):
    """Mixed into a batch normalization's class: joins the convolution before it, else the
    activation after it."""

    takes_norm = False
    takes_residual = False
    eps: float

    def forward(self, input: Any) -> Any:
        if is_value(input) and not self.training and not self._forward_hooks:
            result = normalized(input, self._norm(), self)
            if result is not None:
                return result
        return super().forward(input)

    def _norm(self) -> Norm:
        state: State = self.__dict__["_fused"]
        known = state.norm
        own, buffers = self._parameters, self._buffers
        affine = own if "weight" in own else buffers
        if (
            known is not None
            and known.weight is affine.get("weight")
            and known.mean is buffers.get("running_mean")
            and known.var is buffers.get("running_var")
            and is_eager()
        ):
            return known
        tensors: dict[str, Any] = {**own, **buffers}
        weight, bias = tensors.get("weight"), tensors.get("bias")
        mean: Any = tensors.get("running_mean")
        var: Any = tensors.get("running_var")
        found = Norm(weight, bias, mean, var, self.eps, type(self).__name__)
        if is_eager():
            state.norm = found
        return found

    def shape_of(self, x: Tensor) -> torch.Size:
        return x.shape

    def stamp(self) -> Any:
        return None

    def run(self, x: Tensor, steps: Steps, autocast: torch.dtype | None) -> Tensor:
        if steps.activation != "none" and is_eager():
            weight_state(self).chains[(type(self).__name__, steps.activation)] = None
        return run_norm(x, self._norm(), steps)


def run_norm(x: Tensor, norm: Norm, steps: Steps) -> Tensor:
    weight, bias, mean, var, eps, _ = norm
    if steps.activation != "none" and x.dim() == 4 and x.dtype in _FLOATS:
        return ops.batch_norm_relu(
            x, mean, var, weight, bias, eps=eps,
            activation=steps.activation, negative_slope=steps.negative_slope,
        )  # fmt: skip
    y = F.batch_norm(x, mean, var, weight, bias, False, 0.0, eps)
    return activate(y, steps.activation, steps.negative_slope)


class _FunctionalNorm:
    """The anchor of a call of F.batch_norm."""

    takes_norm = takes_residual = False

    def __init__(self, norm: Norm) -> None:
        self.norm = norm
        self.kept: set[str] = set()

    def shape_of(self, x: Tensor) -> torch.Size:
        return x.shape

    def stamp(self) -> Any:
        return None

    def run(self, x: Tensor, steps: Steps, autocast: torch.dtype | None) -> Tensor:
        return run_norm(x, self.norm, steps)


def normalized(input: Any, norm: Norm, anchor: Any = None) -> Any:
    """A value normalized with fixed statistics, not computed yet; None where that cannot be."""
    weight, bias, mean, var, *_ = norm
    if mean is None or var is None:
        return None
    if is_deferred(input) and input.may("norm") and _is_of(norm, input.anchor.channels):
        return input.normalized(norm)
    value = input.compute() if is_deferred(input) else input
    plain = plain_of(value)
    if plain.dim() < 2 or not _is_of(norm, plain.shape[1]):
        return None
    if (torch.is_grad_enabled() and plain.requires_grad) or autocast_of(plain) is not None:
        return None
    source = value if type(value) is Image else Traced(plain)
    return defer(anchor or _FunctionalNorm(norm), source, _NO_STEPS, None)


def _is_same(one: Norm | None, other: Norm | None) -> bool:
    """Whether they have the same tensors: a call of F.batch_norm makes a new one each time."""
    if one is None or other is None:
        return one is other
    return one.eps == other.eps and all(a is b for a, b in zip(one[:4], other[:4], strict=True))


def _is_of(norm: Norm, channels: int) -> bool:
    """Whether the normalization has that many channels, and tensors that stay as they are."""
    differentiates = torch.is_grad_enabled()
    shape = (channels,)
    for tensor in norm[:4]:
        if tensor is None:
            continue
        if tensor.shape != shape or (differentiates and tensor.requires_grad):
            return False
        if is_value(tensor):
            return False
    return True


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
    tensors = map(given.get, ("weight", "bias", "running_mean", "running_var"))
    norm = Norm(*tensors, given.get("eps", 1e-5))  # type: ignore[call-arg]
    result = normalized(given["input"], norm)
    return NotImplemented if result is None else result


extend(F.batch_norm, _batch_norm)


# --- activations


class FusedActivation(Fused):
    """Mixed into an activation's class: ends the chain before it without the way through torch."""

    def forward(self, input: Any) -> Any:
        if is_deferred(input) and input.may("activation") and not self._forward_hooks:
            known = activation_of(self)
            if known is not None:
                return input.activated(*known, getattr(self, "inplace", False))
        return super().forward(input)


# --- a Sequential


class FusedSequential(modules.FusedModule):
    """Mixed into the class of a Sequential: nobody but the next child sees what a child gives, so
    a convolution runs at once with the normalization and the activation that stand behind it."""

    @classmethod
    def body_for(cls, base: type) -> dict[str, Any]:
        return {"forward": modules.forward_of(base, run_in_order)}


def run_in_order(self: Any, input: Any) -> Any:
    children = list(self._modules.values())
    i = 0
    while i < len(children):
        child = children[i]
        i += 1
        if (
            isinstance(child, FusedLayer)
            and child.takes_norm
            and is_value(input)
            and i < len(children)
            and _is_silent(child)
        ):
            value = child.forward(input)
            follower = children[i]
            if isinstance(follower, FusedNorm) and is_deferred(value) and _is_silent(follower):
                norm = follower._norm()
                if (
                    not follower.training
                    and norm.mean is not None
                    and value.may("norm")
                    and _is_of(norm, child.channels)  # type: ignore[arg-type]
                ):
                    value.steps = Steps(norm)
                    i += 1
                    follower = children[i] if i < len(children) else None
            if (
                isinstance(follower, FusedActivation)
                and is_deferred(value)
                and _is_silent(follower)
                and value.may("activation")
            ):
                value = value.activated(*activation_of(follower), True)  # type: ignore[misc]
                i += 1
            input = value
        else:
            input = child(input)
    return input


def _is_silent(module: Any) -> bool:
    """Whether a call of it is a call of its forward."""
    return not (
        module._forward_hooks
        or module._forward_pre_hooks
        or module._backward_hooks
        or module._backward_pre_hooks
        or "forward" in module.__dict__
        or type(module).__call__ is not nn.Module.__call__
    )


# --- which modules become which


def why_not(module: nn.Module) -> str | None:
    """Why a convolution or linear layer stays as it is; None if it need not."""
    cls = type(module)
    base = next(c for c in cls.__mro__ if c.__module__.startswith("torch.nn.modules."))
    if isinstance(module, torch.jit.ScriptModule):
        return "is a ScriptModule"
    if "forward" in vars(module):
        return "its forward was replaced"
    if base not in FUSED or cls.forward is not base.forward or _changes_call(cls, base):  # type: ignore[attr-defined]
        return f"{cls.__module__}.{cls.__qualname__} computes something else than {base.__name__}"
    weight = module._parameters.get("weight")
    if weight is None or type(weight.data) is not Tensor:
        return "its weight is no plain parameter"
    if weight.dtype not in _FLOATS:
        return f"its weight is {weight.dtype}"
    if getattr(module, "padding_mode", "zeros") != "zeros":
        return f"padding_mode is {module.padding_mode}"
    return None


def _changes_call(cls: type, base: type) -> bool:
    names = ("__call__", "_conv_forward", "__getattr__", "__getattribute__")
    return any(getattr(cls, n, None) is not getattr(base, n, None) for n in names)


def is_norm(module: nn.Module) -> bool:
    """Whether it is a batch normalization that computes what torch's does in eval mode."""
    if "forward" in vars(module) or isinstance(module, torch.jit.ScriptModule):
        return False
    if is_frozen_batch_norm(module):
        return True
    kinds = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)
    if type(module).__call__ is not nn.Module.__call__:
        return False
    return isinstance(module, kinds) and any(
        type(module).forward is kind.forward for kind in kinds if isinstance(module, kind)
    )


LAYERS = (
    nn.Conv1d, nn.Conv2d, nn.Conv3d,
    nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d,
    nn.Linear,
)  # fmt: skip
FUSED: dict[type, type] = {
    nn.Conv1d: FusedConvNd,
    nn.Conv2d: FusedConv2d,
    nn.Conv3d: FusedConvNd,
    nn.ConvTranspose2d: FusedConvTranspose2d,
    nn.Linear: FusedLinear,
}
