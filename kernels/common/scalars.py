"""Exact scalar arguments and IEEE arithmetic, which Triton does not provide by default."""

from __future__ import annotations

import functools
import struct

import torch
import triton
import triton.language as tl


def double_bits(value: float) -> int:
    """Bits of ``value`` for :func:`as_double`, since Triton passes a Python float as float32."""
    return struct.unpack("q", struct.pack("d", value))[0]


@functools.lru_cache(maxsize=64)
def threshold_bits(iou_threshold: float, dtype: torch.dtype) -> int:
    """The threshold rounded down to ``dtype``, which does not change any comparison with an IoU."""
    if iou_threshold < 0:  # below the -1 that stands for an IoU of 0
        return double_bits(-2.0)
    rounded = torch.tensor(iou_threshold, dtype=torch.float64).to(dtype)
    if rounded.item() > iou_threshold:
        rounded = torch.nextafter(rounded, torch.tensor(-torch.inf, dtype=dtype))
    return double_bits(rounded.item())


@triton.jit
def as_double(bits):
    # 0.0 arrives as an int32
    return bits.to(tl.int64).to(tl.float64, bitcast=True)


@triton.jit
def select(values, index):
    """Element ``index`` of a tuple, since tuples cannot be indexed at run time."""
    chosen = values[0]
    for i in tl.static_range(1, len(values)):
        chosen = tl.where(index == i, values[i], chosen)
    return chosen


@triton.jit
def divide(x, y):
    # `/` is approximate in float32
    if x.dtype == tl.float64:
        return x / y
    else:
        return tl.div_rn(x, y)


@triton.jit
def square_root(x):
    if x.dtype == tl.float64:
        return tl.sqrt(x)
    else:
        return tl.sqrt_rn(x)


@triton.jit
def is_finite(x):
    return tl.abs(x) < float("inf")
