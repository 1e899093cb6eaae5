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


def contiguous(x: Tensor) -> Tensor:
    """``x.contiguous()``, where torch's copy of a channels_last map is many times slower than its
    transposition of a matrix."""
    if not x.is_cpu or x.dim() != 4 or x.requires_grad or not is_channels_last(x):
        return x.contiguous()
    rows = x.permute(0, 2, 3, 1).flatten(1, 2)  # a view, [N, HW, C]
    result = torch.empty_like(x, memory_format=torch.contiguous_format)
    for image, matrix in zip(result.flatten(2), rows, strict=True):
        image.copy_(matrix.t())
    return result
