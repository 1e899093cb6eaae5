"""Places and values of samples, and the tensors of deformable convolution as kernels take them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

MAX_PIXELS = 2**31 - 4096  # of all results; those of the last tile are counted in 32 bits
SIZES = ["pixels", "H", "W", "OH", "OW", "padding_h", "padding_w"]


@triton.jit
def pixel_of(m, pixels, OH, OW, stride_h, stride_w, padding_h, padding_w):
    """Image and place of output pixels, and the corner of their window in the input."""
    m_mask = m < pixels
    n = m // (OH * OW)
    place = m - n * (OH * OW)
    y = place // OW * stride_h - padding_h
    x = place % OW * stride_w - padding_w
    return m_mask, n, place, y, x


@triton.jit
def locate_samples(offset_ptr, at, m_mask, y, x, H, W, area):
    """The pixel at the top left of samples, distances from it, and whether samples reach the image
    and count: at -1 exactly they have no value, yet derivatives."""
    y = y.to(tl.float32) + tl.load(offset_ptr + at, mask=m_mask, other=0.0).to(tl.float32)
    x = x.to(tl.float32) + tl.load(offset_ptr + at + area, mask=m_mask, other=0.0).to(tl.float32)
    reached = m_mask & (y >= -1) & (y < H) & (x >= -1) & (x < W)
    counts = reached & (y > -1) & (x > -1)
    y = tl.where(reached, y, 0.0)
    x = tl.where(reached, x, 0.0)
    top = tl.floor(y)
    left = tl.floor(x)
    return top.to(tl.int32), left.to(tl.int32), y - top, x - left, reached, counts


@triton.jit
def in_image(row, column, H, W):
    return (row >= 0) & (row < H) & (column >= 0) & (column < W)


@triton.jit
def load_corner(image_ptr, row, column, valid, c, c_mask, C, H, W, INT64: tl.constexpr):
    """[M, C] values of pixels, zeros outside; where they are, and which are inside."""
    mask = (valid & in_image(row, column, H, W))[:, None] & c_mask[None, :]
    offset = row * W + column
    if INT64:
        offset = offset.to(tl.int64)
    at = image_ptr[:, None] + (offset * C)[:, None] + c[None, :]
    return tl.load(at, mask=mask, other=0.0).to(tl.float32), offset, mask


@triton.jit
def bilinear_samples(
    image_ptr, top, left, y, x, counts, c, c_mask, C, H, W, INT64: tl.constexpr
):  # fmt: skip
    """[M, C] bilinear values."""
    y = y[:, None]
    x = x[:, None]
    v, _, _ = load_corner(image_ptr, top, left, counts, c, c_mask, C, H, W, INT64)
    total = (1 - y) * (1 - x) * v
    v, _, _ = load_corner(image_ptr, top, left + 1, counts, c, c_mask, C, H, W, INT64)
    total += (1 - y) * x * v
    v, _, _ = load_corner(image_ptr, top + 1, left, counts, c, c_mask, C, H, W, INT64)
    total += y * (1 - x) * v
    v, _, _ = load_corner(image_ptr, top + 1, left + 1, counts, c, c_mask, C, H, W, INT64)
    return total + y * x * v


class Call:
    """Tensors in the layouts of the kernels, and the arguments that they share."""

    def __init__(
        self,
        input: Tensor,
        offset: Tensor,
        mask: Tensor | None,
        weight: Tensor,
        window: Sequence[int],
        groups: int,
        offset_groups: int,
    ) -> None:
        N, C, H, W = input.shape
        self.K = weight.shape[0] // groups
        self.R, self.S = weight.shape[2:]
        OH, OW = offset.shape[2:]
        self.pixels = N * OH * OW
        if self.pixels > MAX_PIXELS:
            raise ValueError(f"the result must have at most {MAX_PIXELS} pixels, got {self.pixels}")
        self.input = self.last(input)
        self.offset = offset.contiguous()
        self.mask = None if mask is None else mask.contiguous()
        self.weight = self.last(weight)
        self.section = math.gcd(C // groups, C // offset_groups)
        tf32 = input.is_cuda and torch.backends.cuda.matmul.allow_tf32
        # the interpreter, too, is faster with large tiles
        self.tensor_cores = not input.is_cuda or self.input.element_size() == 2 or tf32
        sizes = (input.numel(), offset.numel(), weight.numel(), self.pixels * weight.shape[0])
        self.shared = (
            *(self.pixels, H, W, OH, OW, C, self.K, groups, offset_groups, self.section),
            *window,
        )
        self.options: dict[str, Any] = {
            "R": self.R,
            "S": self.S,
            "INT64": max(sizes) >= 2**31,
            "TF32": tf32 and self.input.dtype == torch.float32,
        }

    @staticmethod
    def last(x: Tensor) -> Tensor:
        # Triton's interpreter multiplies bfloat16 matrices as integers
        if x.device.type == "cpu" and x.dtype == torch.bfloat16:
            x = x.float()
        # of the two formats of a map of one channel or pixel, this is the right one
        return x.permute(0, 2, 3, 1).contiguous()
