"""Deformable convolution as a matrix product of weights and bilinear samples."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .._memory_format import format_of


def _positions(
    offset: Tensor,  # [N, OG, R * S, 2, OH, OW]
    kernel: Sequence[int],
    window: Sequence[int],  # stride, padding and dilation, each vertical and horizontal
) -> list[Tensor]:
    """Vertical and horizontal positions of the samples in the image, each [N, OG, R * S, OH, OW]"""
    found = []
    for axis in (0, 1):
        stride, padding, dilation = window[axis], window[2 + axis], window[4 + axis]
        taps = torch.arange(kernel[axis], device=offset.device) * dilation
        taps = taps[:, None].expand(*kernel) if axis == 0 else taps.expand(*kernel)
        pixels = torch.arange(offset.shape[4 + axis], device=offset.device) * stride - padding
        pixels = pixels[:, None] if axis == 0 else pixels
        regular = taps.reshape(-1, 1, 1) + pixels  # exact before it is rounded to floating point
        found.append(regular.to(offset.dtype) + offset[:, :, :, axis])
    return found


def _samples(input: Tensor, y: Tensor, x: Tensor) -> Tensor:
    """[N, OG, C / OG, R * S * OH * OW] bilinear values of an image [N, OG, C / OG, H, W]."""
    H, W = input.shape[3:]
    image = input.flatten(3)
    # at -1 exactly the value is 0, and yet there are derivatives, towards the image
    reached = (y >= -1) & (y < H) & (x >= -1) & (x < W)
    counts = reached & (y > -1) & (x > -1)
    y, x = (torch.where(reached, position, 0) for position in (y, x))
    top, left = y.detach().floor(), x.detach().floor()
    total: Tensor | None = None
    for row, weight_y in ((top, 1 - (y - top)), (top + 1, y - top)):
        for column, weight_x in ((left, 1 - (x - left)), (left + 1, x - left)):
            inside = reached & (row >= 0) & (row < H) & (column >= 0) & (column < W)
            index = row.clamp(0, H - 1).long() * W + column.clamp(0, W - 1).long()
            shape = (*image.shape[:3], index.shape[2:].numel())
            pixels = image.gather(3, index.flatten(2)[:, :, None].expand(shape))
            inside, taken = (mask.flatten(2)[:, :, None] for mask in (inside, counts))
            # an infinite pixel does not turn a value that is 0 into NaN
            pixels = torch.where(inside & (taken | pixels.isfinite()), pixels, 0)
            term = (weight_y * weight_x).flatten(2)[:, :, None] * pixels
            total = term if total is None else total + term
    assert total is not None
    return total


def deform_conv2d(
    input: Tensor,  # [N, C, H, W]
    offset: Tensor,  # [N, OG * R * S * 2, OH, OW]
    mask: Tensor | None,  # [N, OG * R * S, OH, OW]
    weight: Tensor,  # [K, C / groups, R, S]
    bias: Tensor | None,  # [K]
    window: Sequence[int],
    groups: int,
    offset_groups: int,
) -> Tensor:
    """[N, K, OH, OW]; see :func:`fastvision.ops.deform_conv2d`.

    ``window``: stride, padding and dilation, each vertical and horizontal.
    """
    dtype, last = input.dtype, format_of(input)
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    N, C, H, W = input.shape
    K, _, *kernel = weight.shape
    taps = kernel[0] * kernel[1]
    OH, OW = offset.shape[2:]
    with torch.autocast(input.device.type, enabled=False):
        points = offset.to(wide).reshape(N, offset_groups, taps, 2, OH, OW)
        if H * W == 0:
            # all samples are outside; the zeros are part of the autograd graph
            columns = input.to(wide).sum() * points[:, :, :, :1].flatten(2)[:, :, None]
            columns = 0 * columns.expand(N, offset_groups, C // offset_groups, taps * OH * OW)
        else:
            image = input.to(wide).reshape(N, offset_groups, C // offset_groups, H, W)
            columns = _samples(image, *_positions(points, kernel, window))
        if mask is not None:
            columns = columns * mask.to(wide).reshape(N, offset_groups, 1, taps * OH * OW)
        columns = columns.reshape(N, groups, C // groups * taps, OH * OW)
        filters = weight.to(wide).reshape(groups, K // groups, C // groups * taps)
        result = (filters @ columns).reshape(N, K, OH, OW)
        if bias is not None:
            result = result + bias.to(wide)[:, None, None]
    return result.to(dtype).contiguous(memory_format=last)


def deform_conv2d_backward(
    grad: Tensor,
    input: Tensor,
    offset: Tensor,
    mask: Tensor | None,
    weight: Tensor,
    window: Sequence[int],
    groups: int,
    offset_groups: int,
    needs: int,
) -> tuple[Tensor, ...]:
    """Gradients of input, offset, mask, weight and bias; empty where its bit of ``needs`` is 0."""
    bias = weight.new_zeros(weight.shape[0])
    with torch.enable_grad():
        x, o, m, w, b = leaves = [
            None if t is None else t.detach().requires_grad_()
            for t in (input, offset, mask, weight, bias)
        ]
        assert x is not None and o is not None and w is not None
        result = deform_conv2d(x, o, m, w, b, window, groups, offset_groups)
        wanted = {i: t for i, t in enumerate(leaves) if t is not None and needs & 1 << i}
        inputs = list(wanted.values())
        found = torch.autograd.grad(result, inputs, grad) if inputs else ()
    gradients = [input.new_empty(0)] * 5
    for i, gradient in zip(wanted, found, strict=True):
        gradients[i] = gradient
    return tuple(gradients)
