"""Max pooling with indices, and its gradient.

Forward: one thread per result, which goes through its window in row-major order. Backward: one
thread per pixel, which goes through the windows that contain it, so the sum has a fixed order.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from .._memory_format import format_of

BLOCK = 256
NUM_WARPS = 4
_LAST = 2**31


@triton.jit
def _place(C, H, W, count, CHANNELS_LAST: tl.constexpr, INT64: tl.constexpr, BLOCK: tl.constexpr):
    """Element of [N, C, H, W], or [N, H, W, C]; its plane, row, column, channel; whether it is."""
    first = tl.program_id(0)
    if INT64:
        first = first.to(tl.int64)
    element = first * BLOCK + tl.arange(0, BLOCK)
    if CHANNELS_LAST:
        channel = element % C
        pixel = element // C
    else:
        channel = element * 0
        pixel = element
    return element, pixel // (H * W), pixel // W % H, pixel % W, channel, element < count


@triton.jit
def _max_pool2d_kernel(
    input_ptr,  # [N, C, H, W], or [N, H, W, C] if CHANNELS_LAST
    output_ptr,  # [N, C, OH, OW], or [N, OH, OW, C]
    indices_ptr,  # as the output
    C,
    H,
    W,
    OH,
    OW,
    stride_h,
    stride_w,
    padding_h,
    padding_w,
    dilation_h,
    dilation_w,
    count,  # of results
    KERNEL_H: tl.constexpr,
    KERNEL_W: tl.constexpr,
    CHANNELS_LAST: tl.constexpr,
    INT64: tl.constexpr,
    BLOCK: tl.constexpr,
):
    element, plane, oh, ow, channel, mask = _place(C, OH, OW, count, CHANNELS_LAST, INT64, BLOCK)
    best = tl.full([BLOCK], float("-inf"), output_ptr.dtype.element_ty)
    place = tl.full([BLOCK], -1, tl.int64)
    step = C if CHANNELS_LAST else 1
    for tap in range(KERNEL_H * KERNEL_W):
        h = oh * stride_h - padding_h + tap // KERNEL_W * dilation_h
        w = ow * stride_w - padding_w + tap % KERNEL_W * dilation_w
        inside = mask & (h >= 0) & (h < H) & (w >= 0) & (w < W)
        value = tl.load(
            input_ptr + (plane * (H * W) + h * W + w) * step + channel,
            mask=inside,
            other=float("-inf"),
        )
        # the first pixel of the window is its maximum if all are minus infinity
        better = inside & ((value > best) | (value != value) | (place < 0))
        best = tl.where(better, value, best)
        place = tl.where(better, h.to(tl.int64) * W + w, place)
    tl.store(output_ptr + element, best, mask=mask)
    tl.store(indices_ptr + element, place, mask=mask)


@triton.jit
def _max_pool2d_backward_kernel(
    grad_ptr,  # [N, C, OH, OW], or [N, OH, OW, C] if CHANNELS_LAST
    indices_ptr,  # as the gradient
    result_ptr,  # [N, C, H, W], or [N, H, W, C]
    C,
    H,
    W,
    OH,
    OW,
    stride_h,
    stride_w,
    padding_h,
    padding_w,
    dilation_h,
    dilation_w,
    count,  # of pixels in all planes
    KERNEL_H: tl.constexpr,
    KERNEL_W: tl.constexpr,
    CHANNELS_LAST: tl.constexpr,
    INT64: tl.constexpr,
    BLOCK: tl.constexpr,
):
    element, plane, h, w, channel, mask = _place(C, H, W, count, CHANNELS_LAST, INT64, BLOCK)
    pixel = h.to(tl.int64) * W + w
    dtype: tl.constexpr = tl.float64 if grad_ptr.dtype.element_ty == tl.float64 else tl.float32
    total = tl.zeros([BLOCK], dtype)
    step = C if CHANNELS_LAST else 1
    for tap in range(KERNEL_H * KERNEL_W):
        # the window for which the pixel is this tap; the last tap first: windows in order
        last = KERNEL_H * KERNEL_W - 1 - tap
        y = h + padding_h - last // KERNEL_W * dilation_h
        x = w + padding_w - last % KERNEL_W * dilation_w
        oh = y // stride_h
        ow = x // stride_w
        inside = mask & (y >= 0) & (x >= 0) & (oh < OH) & (ow < OW)
        inside &= (oh * stride_h == y) & (ow * stride_w == x)
        offset = (plane * (OH * OW) + oh * OW + ow) * step + channel
        index = tl.load(indices_ptr + offset, mask=inside, other=-1)
        grad = tl.load(grad_ptr + offset, mask=inside & (index == pixel), other=0.0)
        total += grad.to(dtype)
    tl.store(result_ptr + element, total.to(result_ptr.dtype.element_ty), mask=mask)


def _launch(
    kernel: triton.JITFunction,
    tensors: Sequence[Tensor],
    count: int,
    input_size: Sequence[int],
    output_size: Sequence[int],
    window: Sequence[int],
    format: torch.memory_format,
) -> None:
    kernel_h, kernel_w, *steps = window
    with torch.cuda.device_of(tensors[0]):
        kernel[(triton.cdiv(count, BLOCK),)](
            *tensors, tensors[0].shape[1], *input_size, *output_size,
            *steps, count, KERNEL_H=kernel_h, KERNEL_W=kernel_w,
            CHANNELS_LAST=format == torch.channels_last,
            INT64=max(t.numel() for t in tensors) >= _LAST - BLOCK, BLOCK=BLOCK,
            num_warps=NUM_WARPS,
        )  # fmt: skip


def launch_max_pool2d(input: Tensor, *window: int) -> tuple[Tensor, Tensor]:
    """Values and indices in the memory format of ``input``. The window: kernel size, stride,
    padding, dilation and size of the results, each vertically and horizontally."""
    format = format_of(input)
    *window, output_h, output_w = window
    output = input.new_empty((*input.shape[:2], output_h, output_w)).to(memory_format=format)
    indices = torch.empty_like(output, dtype=torch.int64)
    if output.numel() > 0:
        tensors = (input.contiguous(memory_format=format), output, indices)
        sizes = (input.shape[2:], (output_h, output_w))
        _launch(_max_pool2d_kernel, tensors, output.numel(), *sizes, window, format)
    return output, indices


def launch_max_pool2d_backward(grad: Tensor, indices: Tensor, *window: int) -> Tensor:
    """The gradient of the input in the memory format of ``indices``. The window: as in
    :func:`launch_max_pool2d`, but with the size of the input."""
    format = format_of(indices)
    *window, input_h, input_w = window
    result = grad.new_empty((*grad.shape[:2], input_h, input_w)).to(memory_format=format)
    if result.numel() > 0:
        dense = (t.contiguous(memory_format=format) for t in (grad, indices))
        sizes = ((input_h, input_w), grad.shape[2:])
        tensors = (*dense, result)
        _launch(_max_pool2d_backward_kernel, tensors, result.numel(), *sizes, window, format)
    return result
