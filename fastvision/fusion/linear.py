"""The linear layers of a fused model."""

from __future__ import annotations

import torch
from torch import Tensor

from .. import _extension, ops
from ..ops.conv.linear import PackedLinear
from ..reference.activations import ACTIVATIONS
from .anchors import End
from .layers import FusedLayer, Made, own_kernels, weight_state


class FusedLinear(FusedLayer):
    """See :func:`fastvision.ops.linear_act`."""

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
