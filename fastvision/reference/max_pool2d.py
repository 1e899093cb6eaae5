"""Maxima of windows with their positions: torch's own op."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from .._memory_format import format_of


def max_pool2d_with_indices(
    input: Tensor,  # [N, C, H, W]
    kernel_size: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    output_size: Sequence[int],
) -> tuple[Tensor, Tensor]:
    """Values and indices, both [N, C, OH, OW]; see fastvision.ops."""
    if input.numel() == 0:
        shape = (*input.shape[:2], *output_size)
        empty = input.new_empty(shape) + input.sum()  # in the graph of derivatives
        return empty, torch.empty(shape, dtype=torch.int64, device=input.device)
    size = input.shape[2:]
    # the output size that torch finds for itself says whether the last window is cut off
    floor = [
        (n + 2 * p - d * (k - 1) - 1) // s + 1
        for n, k, s, p, d in zip(size, kernel_size, stride, padding, dilation, strict=True)
    ]
    ceil_mode = list(output_size) != floor
    args = (tuple(kernel_size), tuple(stride), tuple(padding), tuple(dilation), ceil_mode)
    return F.max_pool2d_with_indices(input, *args)


def max_pool2d_backward(
    grad: Tensor, indices: Tensor, size: Sequence[int], *_window: Sequence[int]
) -> Tensor:
    """The sum of ``grad`` over the windows whose maximum a pixel is: [N, C, H, W]."""
    zeros = grad.new_zeros(*grad.shape[:2], size[0] * size[1])
    sums = zeros.scatter_add(2, indices.flatten(2), grad.flatten(2))
    return sums.unflatten(2, tuple(size)).contiguous(memory_format=format_of(grad))
