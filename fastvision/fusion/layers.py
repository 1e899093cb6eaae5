"""Which modules and functions can be part of a fused chain, and with which facts."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from ..ops._layers import activation_of, is_frozen_batch_norm, is_plain
from ..reference.conv_bn_relu import fold_batch_norm
from .modules import FusedConv2d, FusedConvTranspose2d, FusedLinear, Norm

Activation = tuple[str, float]  # name in ACTIVATIONS, negative slope

_ANCHORS = (nn.Conv2d, nn.ConvTranspose2d, nn.Linear)
_FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)

_FUNCTIONS: dict[Any, str] = {
    F.relu: "relu",
    F.relu_: "relu",
    torch.relu: "relu",
    torch.relu_: "relu",
    "relu": "relu",
    "relu_": "relu",
    F.relu6: "relu6",
    F.silu: "silu",
    F.hardswish: "hardswish",
    F.sigmoid: "sigmoid",
    torch.sigmoid: "sigmoid",
    torch.sigmoid_: "sigmoid",
    "sigmoid": "sigmoid",
    "sigmoid_": "sigmoid",
}
# modules that give their input back in eval mode
_IDENTITIES = (nn.Identity, nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout)
IN_PLACE_OPERATORS = (
    *(operator.iadd, operator.isub, operator.imul, operator.itruediv, operator.ifloordiv),
    *(operator.imod, operator.ipow, operator.imatmul, operator.ilshift, operator.irshift),
    *(operator.iand, operator.ior, operator.ixor),
)
_WRITERS = (*IN_PLACE_OPERATORS, operator.setitem, operator.delitem)
_ADDITIONS = (operator.add, operator.iadd, torch.add, "add", "add_")


def has_hooks(module: nn.Module) -> bool:
    """Whether somebody wants to see the calls of ``module``, or does something else instead."""
    return not is_plain(module)


def is_anchor(module: nn.Module | None) -> bool:
    """Whether a chain could begin with ``module``, or a sub-class that changes what it does."""
    return isinstance(module, _ANCHORS)


def why_not(module: nn.Module) -> str | None:
    """Why no chain may begin with ``module``, an anchor; None if one may."""
    if type(module) not in _ANCHORS:
        cls = type(module)
        return f"{cls.__module__}.{cls.__qualname__} is a sub-class of {_base(module).__name__}"
    if "forward" in vars(module):
        return "its forward was replaced"
    if has_hooks(module):
        return "has hooks"
    weight = module.weight
    if not isinstance(weight, nn.Parameter) or type(weight.data) is not Tensor:
        return "its weight is no plain parameter"
    if weight.dtype not in _FLOATS:
        return f"its weight is {weight.dtype}"
    if weight.is_meta:
        return "its weight is on the meta device"
    if getattr(module, "padding_mode", "zeros") != "zeros":
        return f"padding_mode is {module.padding_mode}"
    return None


def _base(module: nn.Module) -> type:
    return next(base for base in _ANCHORS if isinstance(module, base))


def norm(module: nn.Module | None) -> tuple[Norm, Activation | None] | str | None:
    """A batch normalization over channels and the activation it may include; or why it cannot be
    folded; or None if ``module`` is something else."""
    if module is None:
        return None
    # not as attributes: a tracer would note that they are read
    tensors = {**module._parameters, **module._buffers}
    cls = type(module)
    act: Activation | None = None
    if is_frozen_batch_norm(module):
        pass
    elif cls.__name__ == "BatchNormAct2d" and cls.__module__.startswith("timm."):
        act = activation_module(module.act)
        if act is None and type(module.act) is not nn.Identity:
            return f"it includes {type(module.act).__name__}"
        if type(module.drop) is not nn.Identity:
            return f"it includes {type(module.drop).__name__}"
    elif cls not in (nn.BatchNorm2d, nn.SyncBatchNorm):
        return None
    weight, bias, mean, var = map(tensors.get, ("weight", "bias", "running_mean", "running_var"))
    if mean is None or var is None:
        return "no running statistics"
    if has_hooks(module):
        return "has hooks"
    return Norm(weight, bias, mean, var, float(module.eps)), act  # type: ignore[arg-type]


def activation_module(module: Any) -> Activation | None:
    known = activation_of(module)
    if known is not None:
        return known
    if type(module) is nn.Hardtanh and (module.min_val, module.max_val) == (0, 6):
        return "relu6", 0.01
    # timm has activations of its own under torch's names
    if type(module).__module__.startswith("timm.layers.") and not list(module.children()):
        name = {"Swish": "silu", "HardSwish": "hardswish", "Sigmoid": "sigmoid"}
        if type(module).__name__ in name:
            return name[type(module).__name__], 0.01
    return None


def activation(node: fx.Node, module: nn.Module | None) -> Activation | None:
    """The activation that ``node`` applies to its first argument."""
    if node.op == "call_module":
        return activation_module(module)
    if node.op not in ("call_function", "call_method") or not node.args:
        return None
    options = {k: v for k, v in node.kwargs.items() if k != "inplace"}
    if node.target in (F.leaky_relu, F.leaky_relu_):
        slope = node.args[1] if len(node.args) > 1 else options.pop("negative_slope", 0.01)
        return ("leaky_relu", float(slope)) if isinstance(slope, (int, float)) else None
    name = _FUNCTIONS.get(node.target) if _hashable(node.target) else None
    # a second positional argument can only be inplace
    return (name, 0.01) if name and not options and len(node.args) <= 2 else None


def _hashable(target: Any) -> bool:
    return isinstance(target, str) or callable(target)


def is_identity(node: fx.Node, module: nn.Module | None) -> bool:
    """Whether ``node`` gives its first argument back in eval mode."""
    if node.op == "call_module":
        return type(module) in _IDENTITIES and not module.training  # type: ignore[union-attr]
    if node.op == "call_function":
        name = getattr(node.target, "__name__", "")
        if name == "dropout" or name == "dropout2d":
            return node.kwargs.get("training") is False
        if name == "stochastic_depth":
            return node.kwargs.get("training", (*node.args, None, None)[3]) is False
    return False


def addend(node: fx.Node, value: fx.Node) -> fx.Node | None:
    """What ``node`` adds to ``value``, if it is an addition whose result ``value`` may become."""
    if node.op not in ("call_function", "call_method") or node.target not in _ADDITIONS:
        return None
    if len(node.args) != 2 or node.kwargs:
        return None
    left, right = node.args
    if left is value and isinstance(right, fx.Node) and right is not value:
        return right
    # an addition in place to something else is seen by others
    if right is value and isinstance(left, fx.Node) and node.target in (operator.add, torch.add):
        return left if left is not value else None
    return None


def is_in_place(node: fx.Node, module: nn.Module | None) -> bool:
    """Whether ``node`` may write to its arguments."""
    if node.op == "call_module":
        assert module is not None
        known = type(module).__module__.startswith(("torch.nn.", "fastvision."))
        if has_hooks(module) or not (known or norm(module) is not None):
            return True
        return any(getattr(m, "inplace", False) for m in module.modules())
    if node.op not in ("call_function", "call_method"):
        return False
    if node.kwargs.get("inplace") or "out" in node.kwargs:
        return True
    name = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", "")
    if name.endswith("_") and not name.endswith("__"):
        return True
    if getattr(node.target, "__module__", "") == "torch.nn.functional":
        return any(argument is True for argument in node.args)  # may be inplace
    return node.target in _WRITERS


def is_fresh(node: fx.Node, module: nn.Module | None) -> bool:
    """Whether the result of ``node`` shares no memory with its arguments, as far as is known."""
    if is_in_place(node, module):
        return False
    if activation(node, module) is not None:
        return True
    if node.op == "call_module":
        pooling = type(module).__module__ == "torch.nn.modules.pooling"
        return pooling or is_anchor(module) or norm(module) is not None
    return node.op == "call_function" and node.target in (operator.add, torch.add, torch.cat)


def is_fused_pyramid(module: nn.Module) -> bool:
    """Whether ``module`` is a feature pyramid whose inner blocks are fused, so that nobody but the
    pyramid sees what they give."""
    cls = type(module)
    return (
        cls.__module__ == "torchvision.ops.feature_pyramid_network"
        and cls.__name__ == "FeaturePyramidNetwork"
        and is_plain(module)
        and all(map(_is_fused_block, module.inner_blocks))  # type: ignore[arg-type]
    )


def _is_fused_block(block: nn.Module) -> bool:
    if not isinstance(block, nn.Sequential) or type(block).forward is not nn.Sequential.forward:
        return False
    if len(block) == 0:
        return False
    first, *others = block
    return (
        type(first) is FusedConv2d
        and all(type(other) is nn.Identity for other in others)
        and all(map(is_plain, block.modules()))
    )


def fused_module(
    anchor: nn.Module,
    normalization: Norm | None,
    act: Activation | None,
    *,
    channels_last: bool,
) -> nn.Module:
    """The module that runs a chain; folds in float32 or better, keeps the weight's dtype."""
    weight: Tensor = anchor.weight.detach()  # type: ignore[operator]
    bias: Tensor | None = None if anchor.bias is None else anchor.bias.detach()  # type: ignore[operator]
    if normalization is not None:
        dtype = weight.dtype
        weight, bias = _fold(anchor, weight, bias, normalization)
        weight, bias = weight.to(dtype), bias.to(dtype)
    name, slope = act or ("none", 0.01)
    if isinstance(anchor, nn.Linear):
        return FusedLinear(weight, bias, name, slope)
    build: Callable[..., nn.Module] = (
        FusedConvTranspose2d if isinstance(anchor, nn.ConvTranspose2d) else FusedConv2d
    )
    return build(anchor, weight, bias, name, slope, channels_last)


def _fold(
    anchor: nn.Module, weight: Tensor, bias: Tensor | None, normalization: Norm
) -> tuple[Tensor, Tensor]:
    statistics = (None if t is None else t.detach() for t in normalization[:4])
    arguments: tuple[Any, ...] = (bias, *statistics, normalization.eps)
    if isinstance(anchor, nn.ConvTranspose2d):
        # [I, O / groups, ...] to [O, I / groups, ...] and back, for one rule of folding
        groups = anchor.groups
        inputs, outputs, *kernel = weight.shape
        rows = weight.view(groups, inputs // groups, outputs, *kernel).transpose(1, 2)
        rows = rows.reshape(groups * outputs, inputs // groups, *kernel)
        folded, shift = fold_batch_norm(rows, *arguments)
        folded = folded.view(groups, outputs, inputs // groups, *kernel).transpose(1, 2)
        return folded.reshape(weight.shape), shift  # type: ignore[return-value]
    return fold_batch_norm(weight, *arguments)  # type: ignore[return-value]
