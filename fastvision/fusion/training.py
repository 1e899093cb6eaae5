"""fuse(model, training=True): normalization, addition and activation as one differentiable op."""

from __future__ import annotations

import copy
import functools
from typing import Any

import torch
from torch import Tensor, fx, nn

from .._memory_format import is_channels_last
from ..ops._checks import FLOATING, is_eager, is_transformed, needs_gradient
from ..ops._layers import is_frozen_batch_norm
from ..ops._normalization import normalization_of
from ..ops.chain import count_batch, has_dtype_for, process_group_of, statistics_of
from ..ops.conv.conv2d import convolution_in_training
from ..ops.conv.spec import parse
from .classes import Fused, Mixed, become
from .eligible import is_norm
from .pending import Pending, pend, resolved


class TrainedNorm(Mixed):
    """Mixed into a batch normalization's class: its result waits for the addition and the
    activation that follow."""

    weight: Tensor | None
    bias: Tensor | None
    eps: float

    def forward(self, input: Any) -> Any:
        if not _can_wait(input, self.weight) or not has_dtype_for(self, input):
            return super().forward(input)
        if is_frozen_batch_norm(self):  # of any shape and dtype otherwise
            if input.dim() != 4 or any(b.dtype != input.dtype for b in self.buffers()):
                return super().forward(input)
        else:
            self._check_input_dim(input)  # type: ignore[operator]
        input = input.resolve() if type(input) is Pending else input
        if not (input.is_contiguous() or is_channels_last(input)):
            return super().forward(input)
        (running_mean, running_var), training, momentum = statistics_of(self)
        if not training and running_mean is not None and running_var is not None:
            # read when the result is used
            running_mean, running_var = running_mean.clone(), running_var.clone()
        normalization = normalization_of(
            input, running_mean, running_var, self.weight, self.bias, training, momentum, self.eps,
            process_group_of(self),
        )  # fmt: skip
        count_batch(self)
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
            not _can_wait(input, self.weight)
            or input.dim() != 4
            or input.dtype != self.weight.dtype
            or torch.is_autocast_enabled(input.device.type)
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
            return resolved(base.forward(self, *args, **kwargs))

        return {"forward": forward}


def _can_wait(input: Any, weight: Tensor | None) -> bool:
    """Whether autograd alone records the call, and the ops take its tensors."""
    return (
        is_eager()
        and type(input) in (Tensor, nn.Parameter, Pending)
        and (weight is None or type(weight.data) is Tensor)
        and needs_gradient((input, weight))
        and input.dtype in FLOATING
        and not input.is_inference()
        and not is_transformed()
    )


def fuse_for_training(model: nn.Module) -> nn.Module:
    """A copy of ``model`` with its parameters and buffers, see :func:`fastvision.fuse`."""
    if any(isinstance(module, Fused) for module in model.modules()):
        raise ValueError("model must not be a copy that fuse() made for inference")
    shared: dict[int, Any] = {id(t): t for t in (*model.parameters(), *model.buffers())}
    for module in model.modules():
        shared |= {id(hook): hook for hooks in _hooks_of(module) for hook in hooks.values()}
    trained = copy.deepcopy(model, shared)
    for module in trained.modules():
        if module is trained or isinstance(module, (Mixed, torch.jit.ScriptModule)):
            continue  # the whole model gives ordinary tensors
        if is_norm(module) and (is_frozen_batch_norm(module) or _is_torchs(module)):
            become(module, TrainedNorm)
        elif (
            type(module) is nn.Conv2d
            and module.padding_mode == "zeros"
            and "forward" not in vars(module)
        ):
            become(module, TrainedConv2d)
    if isinstance(trained, fx.GraphModule):
        _resolve_output(trained)
    elif "forward" not in vars(trained) and not isinstance(
        trained, (Mixed, torch.jit.ScriptModule)
    ):
        become(trained, TrainedModel)
    return trained


def _hooks_of(module: nn.Module) -> list[dict[Any, Any]]:
    return [value for name, value in vars(module).items() if name.endswith("_hooks") and value]


def _resolve_output(module: fx.GraphModule) -> None:
    """As TrainedModel, for a graph, whose code is its own."""
    output = next(iter(reversed(module.graph.nodes)))
    with module.graph.inserting_before(output):
        output.args = (module.graph.call_function(resolved, (output.args[0],)),)
    module.recompile()


def _is_torchs(module: nn.Module) -> bool:
    return type(module) in (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)


def take_back(model: nn.Module) -> None:
    """Gives the modules of a copy by :func:`fuse_for_training` their own classes."""
    for module in model.modules():
        mixin, base = getattr(type(module), "_fused_from", (None, None))
        if mixin in (TrainedNorm, TrainedConv2d, TrainedModel):
            object.__setattr__(module, "__class__", base)
