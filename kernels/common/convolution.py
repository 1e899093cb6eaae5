"""What the convolution kernels share."""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from .activation import activate


@triton.jit
def epilogue(
    acc,  # [BLOCK_M, BLOCK_N] float32
    k,  # channel of each column, or of each row
    k_mask,
    offset,  # in the output
    mask,
    scale_ptr,
    shift_ptr,
    residual_ptr,
    negative_slope,
    CHANNEL_AXIS: tl.constexpr,
    ACTIVATION: tl.constexpr,
):
    if scale_ptr is not None:
        scale = tl.load(scale_ptr + k, mask=k_mask, other=0.0)
        acc *= tl.expand_dims(scale, 1 - CHANNEL_AXIS)
    if shift_ptr is not None:
        shift = tl.load(shift_ptr + k, mask=k_mask, other=0.0)
        acc += tl.expand_dims(shift, 1 - CHANNEL_AXIS)
    if residual_ptr is not None:
        acc += tl.load(residual_ptr + offset, mask=mask, other=0.0).to(tl.float32)
    return activate(acc, negative_slope, ACTIVATION)


def unit_of(size: int) -> int:
    """The largest of 16, 8, 4, 2 and 1 that divides ``size``."""
    return min(size & -size, 16) or 16


def exceeds_int32(*tensors: Tensor) -> bool:
    return any(t.numel() >= 2**31 for t in tensors)
