"""Tiles for the kernels of squeeze and excitation."""

from __future__ import annotations

import triton

NUM_WARPS = 4
LINEAR_BLOCK = 8  # outputs of a program: few, so that an image's are on many multiprocessors
_ELEMENTS = 2048  # of a tile: 16 per thread


def tile(channels: int, pixels: int, channels_last: bool) -> tuple[int, int]:
    """BLOCK_S, BLOCK_C: long along the dimension that is contiguous in memory."""
    if channels_last:
        block_c = min(triton.next_power_of_2(channels), 64)
        return min(triton.next_power_of_2(pixels), _ELEMENTS // block_c), block_c
    block_s = min(triton.next_power_of_2(pixels), 512)
    return block_s, min(triton.next_power_of_2(channels), _ELEMENTS // block_s)
