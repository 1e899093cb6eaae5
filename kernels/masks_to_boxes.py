"""The smallest box around the nonzero pixels of each mask, a program per mask."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from .configs.masks_to_boxes import NUM_WARPS, tile

_BITS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


@triton.jit
def _masks_to_boxes_kernel(
    masks_ptr,  # [N, H, W]
    boxes_ptr,  # [N, 4]
    H,
    W,
    SIGNED_ZERO: tl.constexpr,  # the bits of floating-point numbers
    BLOCK_H: tl.constexpr,
    BLOCK_W: tl.constexpr,
):
    mask = tl.program_id(0).to(tl.int64)
    masks_ptr += mask * H * W
    x1, x2, y1, y2 = W, W * 0 - 1, H, H * 0 - 1
    for first_row in range(0, H, BLOCK_H):
        rows = first_row + tl.arange(0, BLOCK_H)
        for first_column in range(0, W, BLOCK_W):
            columns = first_column + tl.arange(0, BLOCK_W)
            inside = (rows[:, None] < H) & (columns[None, :] < W)
            # in 64 bits, since one mask may have 2^31 pixels
            offsets = rows[:, None].to(tl.int64) * W + columns[None, :]
            pixels = tl.load(masks_ptr + offsets, mask=inside, other=0)
            if SIGNED_ZERO:
                pixels = pixels << 1
            nonzero = (pixels != 0).to(tl.int32)
            in_column = tl.max(nonzero, 0) > 0
            in_row = tl.max(nonzero, 1) > 0
            x1 = tl.minimum(x1, tl.min(tl.where(in_column, columns, W), 0))
            x2 = tl.maximum(x2, tl.max(tl.where(in_column, columns, -1), 0))
            y1 = tl.minimum(y1, tl.min(tl.where(in_row, rows, H), 0))
            y2 = tl.maximum(y2, tl.max(tl.where(in_row, rows, -1), 0))
    boxes_ptr += mask * 4
    empty = x2 < 0
    tl.store(boxes_ptr, tl.where(empty, 0, x1).to(tl.float32))
    tl.store(boxes_ptr + 1, tl.where(empty, 0, y1).to(tl.float32))
    tl.store(boxes_ptr + 2, tl.where(empty, 0, x2).to(tl.float32))
    tl.store(boxes_ptr + 3, tl.where(empty, 0, y2).to(tl.float32))


def launch_masks_to_boxes(masks: Tensor) -> Tensor:
    """float32 (x1, y1, x2, y2) [N, 4]. See :func:`fastvision.ops.masks_to_boxes`."""
    masks = masks.contiguous()
    floating = masks.is_floating_point()
    if floating or masks.dtype == torch.bool:
        masks = masks.view(_BITS[masks.element_size()])
    N, H, W = masks.shape
    boxes = masks.new_empty((N, 4), dtype=torch.float32)
    block_h, block_w = tile(W)
    with torch.cuda.device_of(masks):
        _masks_to_boxes_kernel[(N,)](
            masks, boxes, H, W,
            SIGNED_ZERO=floating, BLOCK_H=block_h, BLOCK_W=block_w, num_warps=NUM_WARPS,
        )  # fmt: skip
    return boxes
