"""fuse(model, training=True): normalization, addition and activation as one differentiable op."""

from __future__ import annotations

import copy
import functools
from typing import Any

import torch
from torch import Tensor, nn

from ..ops._checks import FLOATING, is_eager, is_transformed, needs_gradient
from ..ops._layers import is_frozen_batch_norm
from ..ops._normalization import normalization_of
from ..ops.chain import process_group_of, statistics_of
from ..ops.conv.conv2d import convolution_in_training
from ..ops.conv.spec import parse
from .classes import Mixed, become
from .eligible import is_norm
from .pending import Pending, pend
from .trees import map_tree


class TrainedNorm(Mixed):
    """Mixed into a batch normalization's class: its result waits for the addition and the
    activation that follow."""

    weight: Tensor | None
    bias: Tensor | None
    eps: float

    def forward(self, input: Any) -> Any:
        if not isinstance(input, Tensor) or input.dim() < 2 or not _can_wait(input, self.weight):
            return super().forward(input)
        input = input.resolve() if type(input) is Pending else input
        (running_mean, running_var), training, momentum = statistics_of(self)
        normalization = normalization_of(
            input, running_mean, running_var, self.weight, self.bias, training, momentum, self.eps,
            process_group_of(self) if training else None,
        )  # fmt: skip
        return pend(normalization)


class TrainedConv2d(Mixed):
    """Mixed into the class of a convolution: runs by Winograd's algorithm where that is faster."""

    weight: Tensor
    bias: Tensor | None
    stride: tuple[int, int]
    padding: Any
    dilation: tuple[int, int]
    groups: int

    def forward(self, input: Any) -> Any:
        if (
            not isinstance(input, Tensor)
            or input.dim() != 4
            or torch.is_autocast_enabled(input.device.type)
            or not _can_wait(input, self.weight)
        ):
            return super().forward(input)
        input = input.resolve() if type(input) is Pending else input
        spec = parse(
            self.weight.shape[2:], self.stride, self.padding, self.dilation, self.groups,
            0.0, "none", 0.0,
        )  # fmt: skip
        return convolution_in_training(input, self.weight, self.bias, spec)


class TrainedModel(Mixed):
    """Mixed into the class of the whole model: what leaves it are ordinary tensors."""

    @classmethod
    def body_for(cls, base: Any) -> dict[str, Any]:
        @functools.wraps(base.forward)
        def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
            return _resolved(base.forward(self, *args, **kwargs))

        return {"forward": forward}


def _resolved(result: Any) -> Any:
    return result.resolve() if type(result) is Pending else map_tree(_resolved, result)


def _can_wait(input: Tensor, weight: Tensor | None) -> bool:
    """Whether autograd alone records the call, of what the ops take."""
    return (
        needs_gradient((input, weight))
        and input.dtype in FLOATING
        and type(input) in (Tensor, nn.Parameter, Pending)
        and is_eager()
        and not is_transformed()
    )


def fuse_for_training(model: nn.Module) -> nn.Module:
    """A copy of ``model`` with its parameters and buffers, see :func:`fastvision.fuse`."""
    shared = {id(t): t for t in (*model.parameters(), *model.buffers())}
    trained = copy.deepcopy(model, shared)
    for module in list(trained.modules()):
        if isinstance(module, (Mixed, torch.jit.ScriptModule)):
            continue
        if is_norm(module) and (is_frozen_batch_norm(module) or _is_torchs(module)):
            become(module, TrainedNorm)
        elif (
            type(module) is nn.Conv2d
            and module.padding_mode == "zeros"
            and "forward" not in vars(module)
        ):
            become(module, TrainedConv2d)
    if "forward" not in vars(trained) and not isinstance(trained, (Mixed, torch.jit.ScriptModule)):
        become(trained, TrainedModel)
    return trained


def _is_torchs(module: nn.Module) -> bool:
    return type(module) in (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)


def take_back(model: nn.Module) -> None:
    """Gives the modules of a copy by :func:`fuse_for_training` their own classes."""
    for module in model.modules():
        mixin, base = getattr(type(module), "_fused_from", (None, None))
        if mixin in (TrainedNorm, TrainedConv2d, TrainedModel):
            object.__setattr__(module, "__class__", base)
