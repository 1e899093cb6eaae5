"""Tiles of the pairs of two sets of boxes."""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor


@triton.jit
def tile_of_pairs(N, M, tile, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr):
    """Image, rows [BLOCK_M] and columns [BLOCK_N] of a tile of [B, N, M] pairs."""
    across = tl.cdiv(M, BLOCK_N)
    down = tl.cdiv(N, BLOCK_M)
    image = (tile // (across * down)).to(tl.int64)
    rows = tile // across % down * BLOCK_M + tl.arange(0, BLOCK_M)
    return image, rows, tile % across * BLOCK_N + tl.arange(0, BLOCK_N)


def batched_pairs(boxes1: Tensor, boxes2: Tensor) -> tuple[Tensor, Tensor, int, int, int]:
    """Both sets with a dimension of images, their number, and for each the boxes from one image to
    the next (0 if all images have the same)."""
    boxes1, boxes2 = (
        (b if b.dim() == 3 else b.unsqueeze(0)).contiguous() for b in (boxes1, boxes2)
    )
    images = len(boxes2) if len(boxes1) == 1 else len(boxes1)
    step1, step2 = (b.shape[1] if len(b) > 1 else 0 for b in (boxes1, boxes2))
    return boxes1, boxes2, images, step1, step2
