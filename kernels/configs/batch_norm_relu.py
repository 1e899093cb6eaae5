"""Tiles for the batch normalization kernels."""

from __future__ import annotations

import triton

NUM_WARPS = 4
_ELEMENTS = 2048  # per tile: 16 per thread
# per reduction: several on each multiprocessor, but a constant, so that the order of summation is
# the same on all devices
_PROGRAMS = 1024


def tile(channels: int, length: int, channels_last: bool) -> tuple[int, int]:
    """BLOCK_S, BLOCK_C: long in the dimension that is contiguous in memory."""
    if channels_last:
        block_c = min(triton.next_power_of_2(channels), 64)
        return min(triton.next_power_of_2(length), _ELEMENTS // block_c), block_c
    block_s = min(triton.next_power_of_2(length), _ELEMENTS)
    return block_s, min(triton.next_power_of_2(channels), _ELEMENTS // block_s)


def splits(blocks: int, channel_blocks: int) -> int:
    """Number of programs among which the blocks of the same channels are split in a sum."""
    return max(min(blocks, triton.cdiv(_PROGRAMS, channel_blocks)), 1)
