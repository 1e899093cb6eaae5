"""A linear layer and the activation after it: step by step."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from .activations import DEFAULT_SLOPE, activate


def linear_act(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    activation: str = "relu",
    negative_slope: float = DEFAULT_SLOPE,
) -> Tensor:
    """[..., O] of input [..., I] and weight [O, I], in float32 or better, rounded once at the
    end."""
    dtype = torch.promote_types(input.dtype, torch.float32)
    y = F.linear(input.to(dtype), weight.to(dtype), None if bias is None else bias.to(dtype))
    return activate(y, activation, negative_slope).to(input.dtype)
