"""sigmoid_focal_loss, a Python function in torchvision."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from ... import ops
from ...ops._checks import FLOATING
from . import devices
from .recording import is_exporting, keeping_torchscript


def sigmoid_focal_loss_instead_of(stock: Callable[..., Tensor]) -> Callable[..., Tensor]:
    @keeping_torchscript(stock)
    def sigmoid_focal_loss(
        inputs: Tensor,
        targets: Tensor,
        alpha: float = 0.25,
        gamma: float = 2,
        reduction: str = "none",
    ) -> Tensor:
        if (
            is_exporting()
            or not isinstance(inputs, Tensor)
            or not isinstance(targets, Tensor)
            or inputs.dtype not in FLOATING
            or targets.dtype not in FLOATING
            or inputs.shape != targets.shape
            or inputs.device.type not in devices.active
            or targets.device != inputs.device
            or not gamma >= 0
        ):
            return stock(inputs, targets, alpha, gamma, reduction)
        return ops.sigmoid_focal_loss(inputs, targets, alpha, gamma, reduction)

    return sigmoid_focal_loss
