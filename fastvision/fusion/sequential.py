"""Activations, and Sequentials, whose chains are known before they run."""

from __future__ import annotations

from typing import Any

from ..ops._layers import activation_name, is_plain
from ..reference.activations import DEFAULT_SLOPE
from . import modules
from .anchors import NO_END, End, Norm
from .chains import Deferred, is_deferred
from .classes import Fused
from .images import Image
from .layers import FusedLayer
from .norms import FusedNorm


class FusedActivation(Fused):
    """Mixin of fused activations: ends the chain before it without going through torch."""

    _activation: str

    @classmethod
    def body_for(cls, base: type) -> dict[str, Any]:
        return {"_activation": activation_name(base)}

    def forward(self, input: Any) -> Any:
        if is_deferred(input) and input.may_go_on() and not self._forward_hooks:
            result = input.activated(self.end(), in_place=self.__dict__.get("inplace", False))
            if result is not NotImplemented:
                return result
        return super().forward(input)

    def end(self) -> End:
        return self._activation, float(self.__dict__.get("negative_slope", DEFAULT_SLOPE))


class FusedSequential(modules.FusedModule):
    """Mixin of fused Sequentials. Only the next child sees a child's result, so a convolution runs
    at once with the normalization and activation that follow it."""

    @classmethod
    def body_for(cls, base: type) -> dict[str, Any]:
        return {"forward": modules.forward_of(base, run_in_order)}


def run_in_order(self: Any, input: Any) -> Any:
    children = list(self._modules.values())
    i = 0
    while i < len(children):
        kind = type(input)
        if (kind is Image or kind is Deferred) and isinstance(children[i], FusedLayer):
            chain = _chain_of(children, i)
            if chain is not None:
                norm, end, after = chain
                value = input if kind is Image else input.compute()
                result = children[i].at_once(value, norm, end)
                if result is not None:
                    input, i = result, after
                    continue
        input = children[i](input)
        i += 1
    return input


def _chain_of(children: list[Any], i: int) -> tuple[Norm | None, End, int] | None:
    """Normalization and activation that follow layer ``i``, and the index after them; None if the
    chain may continue beyond."""
    layer = children[i]
    if not is_plain(layer):
        return None
    norm: Norm | None = None
    i += 1
    follower = children[i] if i < len(children) else None
    if isinstance(follower, FusedNorm) and layer.takes_norm:
        norm = None if follower.training else follower.norm_of(keep=True)
        if norm is None or not norm.is_of(layer.out_channels) or not is_plain(follower):
            return None
        i += 1
        follower = children[i] if i < len(children) else None
    if isinstance(follower, FusedActivation) and is_plain(follower):
        return norm, follower.end(), i + 1
    return (norm, NO_END, i) if isinstance(follower, FusedLayer) else None
