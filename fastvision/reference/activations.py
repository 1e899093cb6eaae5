"""The activations of a convolution's epilogue."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

# in the order of their codes, csrc/common/activation.h
ACTIVATIONS = ("none", "relu", "relu6", "leaky_relu", "silu", "hardswish", "sigmoid")

DEFAULT_SLOPE = 0.01  # leaky_relu's, as torch's


def activate(x: Tensor, activation: str, negative_slope: float = DEFAULT_SLOPE) -> Tensor:
    """Applies ``activation``, given by name; ``negative_slope`` is used by leaky_relu."""
    if activation == "none":
        return x
    if activation == "leaky_relu":
        return F.leaky_relu(x, negative_slope)
    return {
        "relu": F.relu,
        "relu6": F.relu6,
        "silu": F.silu,
        "hardswish": F.hardswish,
        "sigmoid": F.sigmoid,
    }[activation](x)
