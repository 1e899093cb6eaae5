"""Tiles for the batch normalization kernels."""

from __future__ import annotations

import triton

NUM_WARPS = 4
_ELEMENTS = 2048  # of a tile: 16 per thread
_PROGRAMS = (
    1024  # of a reduction: several on every multiprocessor; a constant, so that the order of
)
# summation is the same on every device


def tile(channels: int, length: int, channels_last: bool) -> tuple[int, int]:
    """BLOCK_S, BLOCK_C: long along the dimension that is contiguous in memory."""
    if channels_last:
        block_c = min(triton.next_power_of_2(channels), 64)
        return min(triton.next_power_of_2(length), _ELEMENTS // block_c), block_c
    block_s = min(triton.next_power_of_2(length), _ELEMENTS)
    return block_s, min(triton.next_power_of_2(channels), _ELEMENTS // block_s)


def splits(blocks: int, channel_blocks: int) -> int:
    """Number of programs that share the blocks of the same channels in a sum."""
    return max(min(blocks, triton.cdiv(_PROGRAMS, channel_blocks)), 1)
