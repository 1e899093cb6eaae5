"""fuse(model): a copy of a trained model that runs on fused ops."""

from __future__ import annotations

import copy

import torch
from torch import nn

from .report import Fusion, Report
from .surgery import Surgeon

__all__ = ["Fusion", "Report", "fuse"]

_DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def fuse(
    model: nn.Module, *, channels_last: bool | None = None, dtype: torch.dtype | None = None
) -> nn.Module:
    """A copy of ``model`` for inference in which chains of layers are one op each.

    Convolution (transposed, too), batch normalization with its running statistics, the addition of
    a residual and an activation become one op, as do a linear layer and its activation. The
    normalization becomes part of the weights. Any torch.nn model will do: what torch.fx can trace
    is searched as a whole, else module by module. What cannot be fused safely stays as it is,
    such as code whose source is unknown, that tests the types of its layers or that depends on
    options: ``str(fused.fastvision_report)`` tells what was done, what not and why.

    Modules keep their names and classes, but for three things: a layer that was fused with the one
    before it is an nn.Identity, a module whose own code calls a function that was fused is a
    torch.fx.GraphModule, and torchvision's FeaturePyramidNetwork is one that adds in place.
    Results differ from the model's by rounding. The copy can be moved, copied, pickled, exported
    and compiled; it takes inputs of any size that the model takes, and lets gradients through to
    its inputs, but its weights are frozen and train() does not bring batch statistics back. Methods
    other than forward meet the fused layers, too.

    Args:
        model: any module; it is not changed.
        channels_last: whether activations between layers are in that memory format: None for where
            it pays. What comes out is contiguous unless what goes in is channels_last.
        dtype: to convert the copy to, after folding in float32: it then takes inputs of that dtype.

    Returns:
        The copy, in eval mode, with the attribute ``fastvision_report``, a :class:`Report`.

    Raises:
        TypeError: model is no nn.Module, or an option is of the wrong type.
        ValueError: dtype is not a float type.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, got {type(model).__name__}")
    if channels_last is not None and not isinstance(channels_last, bool):
        raise TypeError(f"channels_last must be True, False or None, got {channels_last!r}")
    if dtype is not None and not isinstance(dtype, torch.dtype):
        raise TypeError(f"dtype must be a torch.dtype, got {dtype!r}")
    if dtype is not None and dtype not in _DTYPES:
        raise ValueError(f"dtype must be float16, bfloat16, float32 or float64, got {dtype}")
    # tensors made in inference mode do not tell when they change
    with torch.inference_mode(False), torch.no_grad():
        surgeon = Surgeon(copy.deepcopy(model).eval(), channels_last)
        fused = surgeon.operate()
        if dtype is not None:
            fused.to(dtype)
    _attach(fused, surgeon.report)
    return fused


def _attach(module: nn.Module, report: Report) -> None:
    if isinstance(module, torch.fx.GraphModule):  # of whose attributes a copy keeps these only
        module.meta["_user_preserved_attributes"] = {"fastvision_report": report}
    module.fastvision_report = report  # type: ignore[assignment]
