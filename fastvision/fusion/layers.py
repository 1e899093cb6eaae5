"""The layers of a fused model: subclasses of the original layers.

A layer keeps its weights under their names and caches packed forms, with or without a folded
normalization. It packs them in the first call, and again after a change that torch counts: a write
in place, load_state_dict(), to(), an assignment.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from .. import _extension
from ..ops import _backend
from ..ops.conv.spec import Weights
from . import modules, rules  # noqa: F401  (rules apply once imported)
from .anchors import NO_END, End, Norm, Ready
from .chains import Deferred, Traced, autocast_of, defer, run_chain
from .classes import Fused
from .images import Image

FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
_MAX_SHAPES = 64


class State:
    """A fused layer's own state, apart from the model's attributes. Copies start without packs."""

    def __init__(self, channels_last: bool = False) -> None:
        self.channels_last = channels_last
        self.made: dict[Any, Made] = {}
        self.norm: Norm | None = None  # cached by a normalization
        self.chains: dict[tuple[str, ...], None] = {}  # chains that ran, in order
        self.kept: set[str] = set()
        self.ready: dict[torch.Size, Ready] = {}  # by input shape

    def __reduce__(self) -> Any:
        return _state, (self.channels_last, tuple(self.chains))

    def forget(self) -> None:
        """Drops all caches after a change of attributes or of tensors' memory."""
        self.made.clear()
        self.ready.clear()
        self.norm = None

    def know(self, x: Tensor, ready: Ready) -> Ready:
        """Caches ``ready`` for inputs of the shape of ``x``."""
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
    """An object made from weight, bias, normalization and ``others``; valid until one of these is
    written to or replaced."""

    def __init__(
        self,
        weight: Any,
        bias: Any,
        norm: Norm | None,
        make: Callable[[], Any],
        others: Sequence[Any] = (),
    ) -> None:
        self.weight, self.bias, self.norm, self.others = weight, bias, norm, others
        self.weights = Weights(weight, bias, *(() if norm is None else norm.tensors))
        self.given = [t for t in (*self.weights, *others) if t is not None]
        # read before make(); torch does not count writes to tensors made in inference mode
        counted = not any(t.is_inference() for t in self.given)
        self.versions = [t._version for t in self.given] if counted else None
        self.value = make()

    def serves(self, weight: Any, bias: Any, norm: Norm | None, others: Sequence[Any] = ()) -> bool:
        return (
            self.weight is weight
            and self.bias is bias
            and (self.norm is norm or (norm is not None and norm.is_same(self.norm)))
            and len(self.others) == len(others)
            and all(map(operator.is_, self.others, others))
            and self.versions is not None
            and self.versions == [t._version for t in self.given]
        )


class Stateful(Fused):
    """Mixin that drops the cached state when attributes or tensors change."""

    def __setattr__(self, name: str, value: Any) -> None:
        super().__setattr__(name, value)
        if "_fused" in self.__dict__:  # unless in a constructor
            weight_state(self).forget()

    def __delattr__(self, name: str) -> None:
        super().__delattr__(name)
        weight_state(self).forget()

    def _apply(self, *args: Any, **kwargs: Any) -> Any:
        result = super()._apply(*args, **kwargs)  # replaces the memory of tensors
        weight_state(self).forget()
        return result

    @property
    def kept(self) -> set[str]:
        return weight_state(self).kept


class FusedLayer(Stateful):
    """Mixin of fused layers. Called with a fused model's value the layer is deferred, otherwise it
    runs on its own."""

    takes_norm = False
    takes_residual = False
    overwrites = False
    weight: Tensor
    bias: Tensor | None

    def forward(self, input: Any) -> Any:
        result = self._defer(input)
        return super().forward(input) if result is None else result

    def _defer(self, input: Any) -> Any:
        """The deferred result for ``input``; None if the original forward has to run."""
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
        """The cached facts about calls with inputs like ``source``; None if it cannot be fused."""
        x = source._memory if source._viewed is None else source._plain
        state: State = self.__dict__["_fused"]
        own = self._parameters
        autocast = autocast_of(x)
        ready = state.ready.get(x.shape)
        if (
            ready is None
            or not ready.serves(own)
            or ready.dtype is not x.dtype
            or ready.autocast is not autocast
        ):
            if not self._fits(x, autocast):
                return None
            weights = own.get("weight"), own.get("bias")
            ready = Ready(self.kept, x.dtype, autocast, self.shape_of(x), *weights)
            state.know(x, ready)
        if torch.is_grad_enabled() and self._needs_gradient(x):
            return None
        return ready

    def at_once(self, source: Image, norm: Norm | None, end: End) -> Any:
        """The value of a chain that is known up front; None as in :meth:`_defer`."""
        ready = self._ready_for(source)
        return None if ready is None else run_chain(self, source, norm, None, end, ready.autocast)

    def shape_of(self, x: Tensor) -> tuple[int, ...]:
        raise NotImplementedError

    def _fits(self, x: Tensor, autocast: torch.dtype | None) -> bool:
        raise NotImplementedError

    def _weights_fit(self, x: Tensor, autocast: torch.dtype | None) -> bool:
        weight: Any = self._parameters.get("weight")
        if weight is None:  # computed by pruning or a parametrization
            return False
        return weight.dtype == x.dtype or (autocast is not None and weight.dtype in FLOATS)

    def _needs_gradient(self, x: Tensor) -> bool:
        own = self._parameters
        tensors = (x, own.get("weight"), own.get("bias"))
        return torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors)

    def note(self, norm: Norm | None, residual: Any, end: End) -> None:
        """Records the chain for the report."""
        parts = [_kind(self)]
        if norm is not None:
            parts.append(norm.name)
        if residual is not None:
            parts.append("add")
        if end[0] != "none":
            parts.append(end[0])
        weight_state(self).chains[tuple(parts)] = None


def note_alone(module: nn.Module) -> None:
    """Records for the report that what a layer gives was computed by other code, with its weights
    and without followers."""
    if isinstance(module, FusedLayer):
        module.note(None, None, NO_END)


def _kind(module: nn.Module) -> str:
    return next(c for c in type(module).__mro__ if c.__module__.startswith("torch.nn.")).__name__


def own_kernels(x: Tensor) -> bool:
    """Whether the compiled CPU kernels can run on ``x``, in eager mode."""
    return (
        x.is_cpu
        and type(x) is Tensor
        and _extension.missing is None
        and _backend.requested_by_environment is None
    )
