"""In which of torch's memory formats a map lies."""

from __future__ import annotations

import torch
from torch import Tensor

_CHANNELS_LAST = torch.channels_last


def is_channels_last(x: Tensor) -> bool:
    """Whether the channels of ``x``, [N, C, H, W] or [C, H, W], vary fastest; where both formats
    describe the strides, it is contiguous."""
    if x.is_contiguous():
        return False
    dim = x.dim()
    if dim == 3:
        x = x.unsqueeze(0)
    return dim in (3, 4) and x.is_contiguous(memory_format=_CHANNELS_LAST)


def memory_format(channels_last: bool) -> torch.memory_format:
    return _CHANNELS_LAST if channels_last else torch.contiguous_format


def format_of(x: Tensor) -> torch.memory_format:
    return memory_format(is_channels_last(x))
