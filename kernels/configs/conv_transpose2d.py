"""Tiles for the transposed convolution kernels: up to 64 float32 sums per thread."""

from __future__ import annotations

from dataclasses import dataclass

import triton

ELEMENTWISE_WARPS = 4
SEPARABLE_BLOCK = 1024  # consecutive elements of an output row


@dataclass(frozen=True)
class Tile:
    block_m: int  # output pixels of a phase
    block_n: int  # output channels
    block_k: int  # reduction
    warps: int
    stages: int


def tile(pixels: int, K: int, C: int, element_size: int, tf32: bool) -> Tile:
    """Tile for [pixels, taps * C] x [taps * C, K] in each phase and group."""
    if element_size == 4 and not tf32:
        # without tensor cores, threads hold their rows and columns in registers
        return Tile(32, 32 if K > 16 else 16, 16, 4, 2)
    block_n = min(max(triton.next_power_of_2(K), 16), 128 if element_size == 2 else 64)
    block_m = 128 if pixels > 64 * 64 else 64
    # 4-byte operands take twice the shared memory and registers
    block_k = min(max(triton.next_power_of_2(C), 16), 128 // element_size)
    return Tile(block_m, block_n, block_k, 8 if block_m * block_n > 64 * 64 else 4, 3)


def depthwise_block(channels: int) -> tuple[int, int]:
    """BLOCK_M, BLOCK_N: 16 sums per thread, whole cache lines of channels."""
    block_n = min(triton.next_power_of_2(channels), 64)
    return 2048 // block_n, block_n
