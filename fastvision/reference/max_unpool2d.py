"""Max unpooling as a gather: each pixel of the result takes the last value that names it."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .._memory_format import format_of


def _winners(indices: Tensor, pixels: int) -> Tensor:
    """The last position that names a pixel, or -1: [N, C, pixels] of [N, C, positions]."""
    inside = (indices >= 0) & (indices < pixels)
    # vmap has no rule for the check
    if not (indices.is_cuda or torch._C._are_functorch_transforms_active()):
        torch._assert_async(inside.all(), f"indices must be at least 0 and below {pixels}")
    last = torch.full((*indices.shape[:2], pixels + 1), -1, device=indices.device)
    positions = torch.arange(indices.shape[2], device=indices.device).expand_as(indices)
    # whatever is out of range goes to one pixel more
    places = torch.where(inside, indices, pixels)
    return last.scatter_reduce(2, places, positions, "amax")[:, :, :-1]


def max_unpool2d(input: Tensor, indices: Tensor, output_size: Sequence[int]) -> Tensor:
    """[N, C, OH, OW] of values and indices [N, C, H, W]; see fastvision.ops."""
    winners = _winners(indices.flatten(2), output_size[0] * output_size[1])
    if input.numel() == 0:
        result = input.new_zeros(winners.shape) + input.sum()  # in the graph of derivatives
    else:
        values = input.flatten(2).gather(2, winners.clamp(min=0))
        result = torch.where(winners >= 0, values, values.new_zeros(()))
    result = result.unflatten(2, tuple(output_size))
    return result.contiguous(memory_format=format_of(input))


def max_unpool2d_backward(grad: Tensor, indices: Tensor, _stride: Sequence[int]) -> Tensor:
    """The gradient of each value: that of its pixel, or 0 if a later value took the pixel."""
    flat = indices.flatten(2)
    winners = _winners(flat, grad.shape[2] * grad.shape[3])
    places = flat.clamp(0, winners.shape[2] - 1)
    positions = torch.arange(flat.shape[2], device=flat.device)
    won = winners.gather(2, places) == positions
    values = grad.flatten(2).gather(2, places)
    result = torch.where(won, values, values.new_zeros(())).view(indices.shape)
    return result.contiguous(memory_format=format_of(indices))
