"""Tiles for the kernels of deformable convolution, small because each element of a tile of samples
has four addresses and values in registers: from 32 channels on, they spill."""

from __future__ import annotations

from dataclasses import dataclass

import triton

BLOCK_C = 16  # input channels
STAGES = 2
MAX_SPLITS = 64  # of the pixels of the weight gradient, each with its own sums
_PROGRAMS = 512  # that fill a GPU


@dataclass(frozen=True)
class Tile:
    block_m: int  # output pixels
    block_n: int  # output channels
    warps: int


def _block(size: int, most: int) -> int:
    return min(max(triton.next_power_of_2(size), 16), most)


def tile(filters: int, tensor_cores: bool) -> Tile:
    """For the product of samples and weights."""
    # without tensor cores, threads hold their rows and columns in registers
    return Tile(64, _block(filters, 64), 8) if tensor_cores else Tile(32, _block(filters, 32), 4)


def points_tile(filters: int, tensor_cores: bool) -> Tile:
    """For the gradients of input, offset and mask; ``block_n`` is the reduction's."""
    return Tile(32, _block(filters, 32) if tensor_cores else 16, 4)


def weight_tile(filters: int, tensor_cores: bool) -> Tile:
    """For the weight's gradient; ``block_m`` is the reduction's."""
    return Tile(32, _block(filters, 64), 4) if tensor_cores else Tile(16, _block(filters, 32), 4)


def splits(programs: int, pixels: int, block_m: int) -> int:
    """Parts of the pixels, by sizes alone, so that sums are the same on every device."""
    wanted = triton.cdiv(_PROGRAMS, programs)
    return max(min(wanted, triton.cdiv(pixels, 8 * block_m), MAX_SPLITS), 1)
