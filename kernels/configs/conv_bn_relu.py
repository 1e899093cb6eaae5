"""Candidate tiles for the convolution kernels, best guess first; measurement chooses."""

from __future__ import annotations

import functools
from dataclasses import dataclass, replace

import torch
import triton

DEPTHWISE_WARPS = 4
DEPTHWISE_REGISTERS = 168  # without a limit, ptxas spills to fit more programs
POINTWISE_WARPS = 4
FOLD_BLOCK = 256  # channels; a normalization needs only a few programs
# bytes of shared memory per program, by compute capability; the minimum for unknown ones
_SHARED_MEMORY = {(8, 0): 163 << 10, (9, 0): 227 << 10, (10, 0): 227 << 10, (10, 3): 227 << 10}
_MIN_SHARED_MEMORY = 99 << 10
_MAX_SPLITS = 32
_STEPS_PER_SPLIT = 4  # fewer would not fill the load pipeline


@dataclass(frozen=True)
class Tile:
    block_m: int  # output pixels
    block_n: int  # output channels
    block_k: int  # reduction
    warps: int
    stages: int
    splits: int = 1  # parts of the reduction

    def __str__(self) -> str:
        split = f" in {self.splits}" if self.splits > 1 else ""
        return f"{self.block_m}x{self.block_n}x{self.block_k}{split}"


# up to 64 float32 sums per thread, since with 128 the epilogue spills; block_k for 16-bit types
_TILES = (
    Tile(128, 128, 64, 8, 3),
    Tile(128, 64, 64, 8, 3),
    Tile(64, 64, 64, 4, 4),
    Tile(64, 32, 64, 4, 4),
    Tile(64, 16, 64, 4, 4),
)
# without tensor cores, threads hold their rows and columns in registers
_IEEE_TILES = (Tile(64, 64, 16, 4, 2), Tile(32, 32, 16, 4, 2), Tile(32, 16, 16, 4, 2))


def is_flat(channels: int) -> bool:
    """Whether a tile of the reduction spans several taps, since few channels would be padding."""
    return channels < 16


@functools.cache
def _device_limits(device: torch.device) -> tuple[int, int]:
    """Number of multiprocessors, and shared memory per program."""
    if device.type != "cuda":  # the interpreter runs one program at a time
        return 1, _MIN_SHARED_MEMORY
    properties = torch.cuda.get_device_properties(device)
    capability = (properties.major, properties.minor)
    shared = _SHARED_MEMORY.get(capability, _MIN_SHARED_MEMORY)
    return properties.multi_processor_count, shared


def _block_k(channels: int, taps: int, most: int) -> int:
    if is_flat(channels):
        return min(max(triton.next_power_of_2(channels * taps), 16), 32)
    return next((b for b in (most, most // 2, 16) if channels % b == 0), min(most, 32))


def tiles(
    M: int,
    K: int,  # per group, like C
    C: int,
    taps: int,
    groups: int,
    element_size: int,
    tf32: bool,
    multiprocessors: int,
    shared_memory: int,
) -> list[Tile]:
    """The best guess, then tiles of similar size, for [M, taps * C] x [taps * C, K] per group."""
    ieee = element_size == 4 and not tf32
    block_k = _block_k(C, taps, 16 if ieee else 128 // element_size)
    steps = triton.cdiv(taps * C, block_k)
    fitting = []
    for tile in _IEEE_TILES if ieee else _TILES:
        tile = replace(tile, block_k=block_k)
        staged = (tile.block_m + tile.block_n) * block_k * element_size * tile.stages
        wide = tile.block_n > max(triton.next_power_of_2(K), 16)
        # 4-byte operands and addresses that span taps take registers, too
        sums = tile.block_m * tile.block_n
        crowded = sums > (64 * 64 if is_flat(C) else 128 * 64 if element_size == 4 else 128 * 128)
        if staged <= shared_memory and not wide and not crowded:
            count = groups * triton.cdiv(M, tile.block_m) * triton.cdiv(K, tile.block_n)
            splits = min(multiprocessors // count, steps // _STEPS_PER_SPLIT, _MAX_SPLITS)
            fitting.append((count, replace(tile, splits=max(splits, 1))))
    # the largest that gives every multiprocessor a tile, or else the smallest
    best = next((i for i, (n, _) in enumerate(fitting) if n >= multiprocessors), len(fitting) - 1)
    order = sorted(range(len(fitting)), key=lambda i: abs(i - best))
    return [fitting[i][1] for i in order[:3]]


def candidate_tiles(
    M: int,
    K: int,
    C: int,
    taps: int,
    groups: int,
    element_size: int,
    tf32: bool,
    device: torch.device,
) -> list[Tile]:
    return tiles(M, K, C, taps, groups, element_size, tf32, *_device_limits(device))


def default_tile(*problem: int | torch.device) -> Tile:
    """The best guess of :func:`candidate_tiles`."""
    return candidate_tiles(*problem)[0]


def depthwise_block(channels: int) -> tuple[int, int]:
    """BLOCK_M, BLOCK_N: 16 sums per thread, whole cache lines of channels."""
    block_n = min(triton.next_power_of_2(channels), 64)
    return 2048 // block_n, block_n


def pointwise_block(columns: int) -> tuple[int, int]:
    """BLOCK_M, BLOCK_N: 16 elements per thread, contiguous in memory."""
    block_n = min(triton.next_power_of_2(columns), 512)
    return 2048 // block_n, block_n
