"""Linear layer and activation, in steps."""

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
    """activation(input @ weight.T + bias) in float32 or float64, rounded once at the end.

    Args:
        input: [..., I] of any float dtype.
        weight: [O, I].
        bias: [O], or None.

    Returns:
        [..., O] in the dtype of ``input``.
    """
    dtype = torch.promote_types(input.dtype, torch.float32)
    y = F.linear(input.to(dtype), weight.to(dtype), None if bias is None else bias.to(dtype))
    return activate(y, activation, negative_slope).to(input.dtype)
