"""Max unpooling and its gradient, deterministic where indices overlap.

The first launch finds the last position that names each pixel, by an atomic maximum of positions,
whose result does not depend on their order. The second one reads values or gradients there.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from .._memory_format import is_channels_last, memory_format

BLOCK = 1024
NUM_WARPS = 4
_LAST = 2**31


@triton.jit
def _split(element, C, size, CHANNELS_LAST: tl.constexpr):
    """Plane, place in it, and channel of an element of [N, C, size], or [N, size, C]."""
    if CHANNELS_LAST:
        return element // (C * size), element // C % size, element % C
    else:
        return element // size, element % size, 0


@triton.jit
def _offset(plane, place, channel, C, size, CHANNELS_LAST: tl.constexpr):
    """The reverse of :func:`_split`."""
    if CHANNELS_LAST:
        return (plane * size + place) * C + channel
    else:
        return plane * size + place


@triton.jit
def _elements(count, INT64: tl.constexpr, BLOCK: tl.constexpr):
    first = tl.program_id(0)
    if INT64:
        first = first.to(tl.int64)
    element = first * BLOCK + tl.arange(0, BLOCK)
    return element, element < count


@triton.jit
def _max_unpool2d_winners_kernel(
    indices_ptr,  # [N, C, positions], or [N, positions, C] if CHANNELS_LAST
    winners_ptr,  # [N, C, pixels], or [N, pixels, C]; -1
    C,
    positions,
    pixels,
    count,  # of indices
    CHANNELS_LAST: tl.constexpr,
    INT64: tl.constexpr,
    BLOCK: tl.constexpr,
):
    element, mask = _elements(count, INT64, BLOCK)
    plane, position, channel = _split(element, C, positions, CHANNELS_LAST)
    index = tl.load(indices_ptr + element, mask=mask, other=-1)
    mask &= (index >= 0) & (index < pixels)
    # what is in the plane fits the type of the offsets
    pixel = tl.where(mask, index, 0).to(element.dtype)
    offset = _offset(plane, pixel, channel, C, pixels, CHANNELS_LAST)
    tl.atomic_max(
        winners_ptr + offset, position.to(winners_ptr.dtype.element_ty), mask=mask, sem="relaxed"
    )


@triton.jit
def _max_unpool2d_kernel(
    input_ptr,  # [N, C, positions], or [N, positions, C] if CHANNELS_LAST
    winners_ptr,  # [N, C, pixels], or [N, pixels, C]
    output_ptr,  # as the winners
    C,
    positions,
    pixels,
    count,  # of pixels in all planes
    CHANNELS_LAST: tl.constexpr,
    INT64: tl.constexpr,
    BLOCK: tl.constexpr,
):
    element, mask = _elements(count, INT64, BLOCK)
    plane, _, channel = _split(element, C, pixels, CHANNELS_LAST)
    winner = tl.load(winners_ptr + element, mask=mask, other=-1)
    position = tl.maximum(winner, 0).to(element.dtype)
    offset = _offset(plane, position, channel, C, positions, CHANNELS_LAST)
    value = tl.load(input_ptr + offset, mask=mask & (winner >= 0), other=0.0)
    tl.store(output_ptr + element, value, mask=mask)


@triton.jit
def _max_unpool2d_backward_kernel(
    grad_ptr,  # [N, C, pixels], or [N, pixels, C] if CHANNELS_LAST
    indices_ptr,  # [N, C, positions], or [N, positions, C]
    winners_ptr,  # as the gradient
    result_ptr,  # as the indices
    C,
    positions,
    pixels,
    count,  # of indices
    CHANNELS_LAST: tl.constexpr,
    INT64: tl.constexpr,
    BLOCK: tl.constexpr,
):
    element, mask = _elements(count, INT64, BLOCK)
    plane, position, channel = _split(element, C, positions, CHANNELS_LAST)
    index = tl.load(indices_ptr + element, mask=mask, other=-1)
    kept = mask & (index >= 0) & (index < pixels)
    pixel = tl.where(kept, index, 0).to(element.dtype)
    offset = _offset(plane, pixel, channel, C, pixels, CHANNELS_LAST)
    kept &= tl.load(winners_ptr + offset, mask=kept, other=-1) == position
    value = tl.load(grad_ptr + offset, mask=kept, other=0.0)
    tl.store(result_ptr + element, value, mask=mask)


class _Layout:
    """Sizes and memory format of the indices and the planes they point into."""

    def __init__(self, like: Tensor, indices: Tensor, size: Sequence[int]) -> None:
        last = is_channels_last(like)
        self.format = memory_format(last)
        self.indices = self.dense(indices)
        self.shape = (*indices.shape[:2], *size)
        self.count = indices.numel()
        self.planes_count = indices.shape[0] * indices.shape[1] * size[0] * size[1]
        self.sizes = (indices.shape[1], indices.shape[2] * indices.shape[3], size[0] * size[1])
        self.options = {
            "CHANNELS_LAST": last,
            "INT64": max(self.count, self.planes_count) >= _LAST - BLOCK,
            "BLOCK": BLOCK,
            "num_warps": NUM_WARPS,
        }

    def dense(self, x: Tensor) -> Tensor:
        return x.contiguous(memory_format=self.format)

    def empty(self, like: Tensor, shape: Sequence[int]) -> Tensor:
        return like.new_empty(tuple(shape)).to(memory_format=self.format)

    def winners(self) -> Tensor:
        dtype = torch.int32 if self.sizes[1] < _LAST else torch.int64
        shape = self.shape
        found = torch.full(shape, -1, dtype=dtype, device=self.indices.device)
        found = found.contiguous(memory_format=self.format)
        if self.count > 0:
            _max_unpool2d_winners_kernel[(triton.cdiv(self.count, BLOCK),)](
                self.indices, found, *self.sizes, self.count, **self.options
            )
        return found


def launch_max_unpool2d(input: Tensor, indices: Tensor, *output_size: int) -> Tensor:
    """[N, C, *output_size] in the memory format of ``input``."""
    layout = _Layout(input, indices, output_size)
    output = layout.empty(input, layout.shape)
    if output.numel() > 0:
        with torch.cuda.device_of(input):
            _max_unpool2d_kernel[(triton.cdiv(layout.planes_count, BLOCK),)](
                layout.dense(input), layout.winners(), output, *layout.sizes, layout.planes_count,
                **layout.options,
            )  # fmt: skip
    return output


def launch_max_unpool2d_backward(grad: Tensor, indices: Tensor, *_stride: int) -> Tensor:
    """The shape and memory format of ``indices``."""
    layout = _Layout(indices, indices, grad.shape[2:])
    result = layout.empty(grad, indices.shape)
    if result.numel() > 0:
        with torch.cuda.device_of(grad):
            _max_unpool2d_backward_kernel[(triton.cdiv(layout.count, BLOCK),)](
                layout.dense(grad), layout.indices, layout.winners(), result, *layout.sizes,
                layout.count, **layout.options,
            )  # fmt: skip
    return result
