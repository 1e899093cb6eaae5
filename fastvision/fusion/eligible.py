"""Which modules of a model can be fused, and by which class."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..ops._layers import is_frozen_batch_norm
from .convolutions import FusedConv2d, FusedConvNd, FusedConvTranspose2d
from .layers import FLOATS
from .linear import FusedLinear


def why_not(module: nn.Module) -> str | None:
    """The reason why a convolution or linear layer cannot be fused, or None."""
    cls = type(module)
    base = next(c for c in cls.__mro__ if c.__module__.startswith("torch.nn.modules."))
    if isinstance(module, torch.jit.ScriptModule):
        return "is a ScriptModule"
    if "forward" in vars(module):
        return "its forward was replaced"
    if base not in FUSED or cls.forward is not base.forward or _changes_call(cls, base):  # type: ignore[attr-defined]
        return f"{cls.__module__}.{cls.__qualname__} computes something else than {base.__name__}"
    weight = module._parameters.get("weight")
    if weight is None or type(weight.data) is not Tensor:
        return "its weight is no plain parameter"
    if weight.dtype not in FLOATS:
        return f"its weight is {weight.dtype}"
    if getattr(module, "padding_mode", "zeros") != "zeros":
        return f"padding_mode is {module.padding_mode}"
    return None


def _changes_call(cls: type, base: type) -> bool:
    names = ("__call__", "_conv_forward", "__getattr__", "__getattribute__")
    return any(getattr(cls, n, None) is not getattr(base, n, None) for n in names)


def is_norm(module: nn.Module) -> bool:
    """Whether ``module`` is a batch normalization equal to torch's in eval mode."""
    if "forward" in vars(module) or isinstance(module, torch.jit.ScriptModule):
        return False
    if is_frozen_batch_norm(module):
        return True
    kinds = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)
    if type(module).__call__ is not nn.Module.__call__:
        return False
    return isinstance(module, kinds) and any(
        type(module).forward is kind.forward for kind in kinds if isinstance(module, kind)
    )


LAYERS = (
    nn.Conv1d, nn.Conv2d, nn.Conv3d,
    nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d,
    nn.Linear,
)  # fmt: skip
FUSED: dict[type, type] = {
    nn.Conv1d: FusedConvNd,
    nn.Conv2d: FusedConv2d,
    nn.Conv3d: FusedConvNd,
    nn.ConvTranspose2d: FusedConvTranspose2d,
    nn.Linear: FusedLinear,
}
