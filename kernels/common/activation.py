"""The activations of a convolution's epilogue."""

from __future__ import annotations

import triton
import triton.language as tl

# codes, in the order of csrc/common/activation.h
NONE = tl.constexpr(0)
RELU = tl.constexpr(1)
RELU6 = tl.constexpr(2)
LEAKY_RELU = tl.constexpr(3)
SILU = tl.constexpr(4)
HARDSWISH = tl.constexpr(5)
SIGMOID = tl.constexpr(6)


@triton.jit
def activate(x, negative_slope, ACTIVATION: tl.constexpr):
    """Applies the activation to ``x``. Uses selects, since min and max would drop a NaN."""
    if ACTIVATION == RELU:
        return tl.where(x < 0, 0.0, x)
    elif ACTIVATION == RELU6:
        return tl.where(x < 0, 0.0, tl.where(x > 6, 6.0, x))
    elif ACTIVATION == LEAKY_RELU:
        return tl.where(x < 0, x * negative_slope, x)
    elif ACTIVATION == SILU:
        return x * tl.sigmoid(x)
    elif ACTIVATION == HARDSWISH:
        gate = x + 3
        gate = tl.where(gate < 0, 0.0, tl.where(gate > 6, 6.0, gate))
        return x * gate / 6
    elif ACTIVATION == SIGMOID:
        return tl.sigmoid(x)
    else:
        return x
