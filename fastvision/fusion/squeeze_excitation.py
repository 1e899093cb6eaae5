"""Squeeze and excitation in fused models: one op instead of its layers."""

from __future__ import annotations

from typing import Any

from torch import nn

from ..ops._checks import is_eager
from ..ops._layers import is_overridden, is_squeeze_excitation
from ..ops.squeeze_excitation import apply, names_of
from . import modules
from .chains import Traced
from .layers import FusedLayer, weight_state


class FusedSqueezeExcitation(modules.FusedModule):
    """Mixin of fused :class:`~fastvision.ops.SqueezeExcitation` and torchvision's, which has the
    same layers but calls them one by one."""

    @classmethod
    def body_for(cls, base: type) -> dict[str, Any]:
        return {"forward": modules.forward_of(base, _run)}


def is_fusible(module: nn.Module) -> bool:
    return is_squeeze_excitation(module) and not is_overridden(module, "forward")


def _run(self: Any, input: Any) -> Any:
    x = input.compute() if type(input) is Traced else input
    names = names_of(self, x)
    if names is None:
        return self._scale(input) * input
    result = apply(self, x, names)
    if type(input) is Traced:
        return Traced(result)
    if is_eager():
        for layer in (self.fc1, self.fc2):
            if isinstance(layer, FusedLayer):
                weight_state(layer).chains[("squeeze_excitation",)] = None  # for the report
    return result
