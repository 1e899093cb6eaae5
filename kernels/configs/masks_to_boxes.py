"""Tiles for the kernel that finds boxes around masks."""

from __future__ import annotations

import triton

NUM_WARPS = 8
_PIXELS = 8192  # of a tile: 32 per thread, whole cache lines of bytes


def tile(width: int) -> tuple[int, int]:
    """BLOCK_H, BLOCK_W."""
    block_w = min(max(triton.next_power_of_2(width), 16), 1024)
    return _PIXELS // block_w, block_w
