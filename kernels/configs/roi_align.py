"""Tiles for the RoIAlign kernels: at most 64 accumulators per thread, to avoid spilling."""

from __future__ import annotations

import triton

# three blocks per SM; without a limit, ptxas spills to fit one more
BACKWARD_REGISTERS = 168


def forward_tile(bins: int, channels: int, channels_last: bool) -> tuple[int, int, int]:
    """BLOCK_BINS, BLOCK_C, warps."""
    if channels_last:  # whole cache lines of channels, so that a tap is one wide load
        block_c = min(triton.next_power_of_2(channels), 256)
        return min(triton.next_power_of_2(bins), 2048 // block_c, 64), block_c, 4
    # bins of a row are close in memory; channels are far apart
    block_bins = min(triton.next_power_of_2(bins), 64)
    return block_bins, min(triton.next_power_of_2(channels), 1024 // block_bins), 8


def backward_tile(channels: int, channels_last: bool) -> tuple[int, int, int, int]:
    """TILE_H, TILE_W, BLOCK_C, warps."""
    if channels_last:
        return 4, 8, min(triton.next_power_of_2(channels), 256), 4
    return 8, 16, min(triton.next_power_of_2(channels), 32), 4
