"""Focal loss of one logit, matching csrc/common/focal.h."""

from __future__ import annotations

import os

import triton
import triton.language as tl

_INTERPRETED = tl.constexpr(os.environ.get("TRITON_INTERPRET") == "1")
LOG2_E = tl.constexpr(1.4426950408889634)


@triton.jit
def exp(x):
    """e^x, flushed to 0 below the smallest normal number."""
    if x.dtype == tl.float64 or _INTERPRETED:
        return tl.exp(x)
    else:
        # tl.exp handles subnormals, which takes three more instructions
        return tl.inline_asm_elementwise(
            "ex2.approx.ftz.f32 $0, $1;", "=f,f", [x * LOG2_E], tl.float32, True, 1
        )


@triton.jit
def reciprocal(x):
    """1 / x for x in [1, 2]."""
    if x.dtype == tl.float64 or _INTERPRETED:
        return 1.0 / x
    else:
        return tl.inline_asm_elementwise(
            "rcp.approx.ftz.f32 $0, $1;", "=f,f", [x], tl.float32, True, 1
        )


@triton.jit
def log1p(x):
    """log(1 + x) for x in [0, 1], relative error at most 2e-7 (float32) or 1e-14."""
    if x.dtype == tl.float64:
        s = x / (2.0 + x)
        square = s * s
        series = tl.full(x.shape, 2.0 / 31, tl.float64)
        for i in tl.static_range(15):
            series = series * square + 2.0 / (29 - 2 * i)
        return s * series
    else:
        q = tl.fma(tl.zeros_like(x) + 0.0053648185, x, -0.030065769)
        q = tl.fma(q, x, 0.079204500)
        q = tl.fma(q, x, -0.13753799)
        q = tl.fma(q, x, 0.19153653)
        q = tl.fma(q, x, -0.24857163)
        q = tl.fma(q, x, 0.33321324)
        q = tl.fma(q, x, -0.49999648)
        return tl.fma(x * x, q, x)


@triton.jit
def whole_power(x, GAMMA: tl.constexpr):
    result = tl.full(x.shape, 1.0, x.dtype)
    for _ in tl.static_range(GAMMA):
        result *= x
    return result


@triton.jit
def at_most_finite(x):
    if x.dtype == tl.float64:
        return tl.where(x > 1.7976931348623157e308, 1.7976931348623157e308, x)
    else:
        return tl.where(x > 3.4028234e38, 3.4028234e38, x)


@triton.jit
def negative_terms(x, gamma, GAMMA: tl.constexpr):
    """Unweighted loss of a negative and its derivative. GAMMA: gamma if 0 to 3, else -1."""
    below = x < 0
    e = exp(-tl.abs(x))
    log1p_e = log1p(e)
    large = reciprocal(1.0 + e)
    small = e * large
    p = tl.where(below, small, large)
    softplus = log1p_e + tl.where(below, 0.0, x)
    if GAMMA >= 0:
        modulator = whole_power(p, GAMMA)
    else:
        modulator = exp(-gamma * (log1p_e + tl.where(below, -x, 0.0)))
    rest = tl.where(below, large, small)
    # e^-x * x has the limit 0
    grad = modulator * (gamma * rest * at_most_finite(softplus) + p)
    return modulator * softplus, grad


@triton.jit
def soft_terms(x, t, positive, negative, gamma, GAMMA: tl.constexpr):
    """Weighted loss and derivative for a floating-point target t."""
    below = x < 0
    magnitude = tl.abs(x)
    e = exp(-magnitude)
    large = reciprocal(1.0 + e)
    small = e * large
    p = tl.where(below, small, large)
    rest = tl.where(below, large, small)
    f = 1.0 - t
    share = tl.where(below, t, f)  # the part of the loss that grows with |x|
    cross_entropy = log1p(e) + tl.where(share == 0, 0.0, share * magnitude)
    miss = p * f + rest * t
    modulator = whole_power(miss, GAMMA) if GAMMA >= 0 else exp(gamma * tl.log(miss))
    weighted = (positive * t + negative * f) * modulator
    slope = tl.where(miss == 0, 1.0, p * rest / tl.where(miss == 0, 1.0, miss))
    grad = (p * f - rest * t) + gamma * (f - t) * slope * at_most_finite(cross_entropy)
    return weighted * cross_entropy, weighted * grad
