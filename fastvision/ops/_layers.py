"""Which layers of torch the ops can stand for."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from ..reference.activations import DEFAULT_SLOPE

_ACTIVATIONS: dict[type[nn.Module], str] = {
    nn.ReLU: "relu",
    nn.ReLU6: "relu6",
    nn.LeakyReLU: "leaky_relu",
    nn.SiLU: "silu",
    nn.Hardswish: "hardswish",
    nn.Sigmoid: "sigmoid",
}
# whose sources were read: a class of that name may compute something else
_OPS = ("torchvision.ops.", "fastvision.ops.")
_FROZEN_BATCH_NORMS = (*_OPS, "detectron2.layers.")


def activation_of(module: nn.Module | None) -> tuple[str, float] | None:
    """Name and negative slope of an activation layer; None if it is not one of the ops'."""
    name = _ACTIVATIONS.get(own_class(module))
    slope = module.negative_slope if isinstance(module, nn.LeakyReLU) else DEFAULT_SLOPE
    return None if name is None else (name, float(slope))


def own_class(module: nn.Module | None) -> Any:
    """The class of a layer, also in a fused model, where it is a sub-class of it."""
    return getattr(type(module), "_fused_from", (None, type(module)))[1]


def activation_name(cls: type[nn.Module]) -> str:
    """Of a class for whose instances :func:`is_activation` is true."""
    return _ACTIVATIONS[cls]


def is_activation(module: nn.Module) -> bool:
    return type(module) in _ACTIVATIONS


def is_frozen_batch_norm(module: nn.Module | None) -> bool:
    cls = type(module)
    return cls.__name__ == "FrozenBatchNorm2d" and cls.__module__.startswith(_FROZEN_BATCH_NORMS)


def is_squeeze_excitation(module: nn.Module) -> bool:
    """Whether it is torchvision's or ours, or of a subclass."""
    return any(
        cls.__name__ == "SqueezeExcitation" and cls.__module__.startswith(_OPS)
        for cls in type(module).__mro__
    )


def is_plain(module: nn.Module) -> bool:
    """Whether a call of it is a call of its class's forward."""
    return not (
        module._forward_hooks
        or module._forward_pre_hooks
        or module._backward_hooks
        or module._backward_pre_hooks
        or "forward" in module.__dict__
        or type(module).__call__ is not nn.Module.__call__
    )


def is_overridden(module: nn.Module, *methods: str) -> bool:
    """Whether one of these methods is neither ours nor torchvision's."""
    return any(
        name in module.__dict__ or not getattr(type(module), name).__module__.startswith(_OPS)
        for name in methods
    )


def has_global_hooks() -> bool:
    state = nn.modules.module
    return bool(
        state._global_forward_hooks
        or state._global_forward_pre_hooks
        or state._global_backward_hooks
        or state._global_backward_pre_hooks
    )


def wants_layers() -> bool:
    """Whether every layer is to be called: somebody listens to all of them, or an ONNX file gets
    standard operators."""
    return has_global_hooks() or torch.onnx.is_in_onnx_export()
