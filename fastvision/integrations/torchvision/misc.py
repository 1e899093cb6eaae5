"""The forward of FrozenBatchNorm2d and SqueezeExcitation, several operations in torchvision."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from ... import ops
from ...ops._checks import needs_gradient
from . import devices
from .recording import keeping_torchscript


def frozen_batch_norm_instead_of(stock: Callable[..., Tensor]) -> Callable[..., Tensor]:
    @keeping_torchscript(stock)
    def forward(self: Any, x: Tensor) -> Tensor:
        if devices.takes(x) and x.dim() == 4:
            return ops.FrozenBatchNorm2d.forward(self, x)
        return stock(self, x)

    return forward


def squeeze_excitation_instead_of(stock: Callable[..., Tensor]) -> Callable[..., Tensor]:
    @keeping_torchscript(stock)
    def forward(self: Any, input: Tensor) -> Tensor:
        # with gradients it is made of torch's operations too
        if (
            devices.takes(input)
            and input.dim() == 4
            and not needs_gradient((input, *self.parameters()))
        ):
            return ops.SqueezeExcitation.forward(self, input)
        return stock(self, input)

    return forward
