"""Where Winograd's algorithm pays."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from .prepared import MAX_PHASES
from .spec import ConvSpec

_MIN_PIXELS = 96
_MIN_STRIDED_PIXELS = 256  # of results with stride 2
_MIN_PIXELS_ONCE = 1024  # from which on packing the weights for a single call pays
# input times output channels with stride 2: enough to pay for the transforms, and so many that the
# transformed weights, nine times the original ones, take 42 MB
_MIN_STRIDED, _MAX_STRIDED = 1 << 13, 1 << 17
# input times output channels, in whole vectors, times phases of a transposed convolution: at most,
# so that the transformed weights take 52 to 75 MB
_MAX_TRANSPOSED, _LANES = 1 << 19, 16
_MIN_PIXELS_OF_TILE, _MIN_PIXELS_OF_SLOW_TILE = 8, 12  # of 16, averaged over a map's tiles


class Tiles(NamedTuple):
    """What Winograd's algorithm needs to pay for its transforms and larger weights."""

    step: int  # of the windows, in pixels of the input
    pixels: int  # the least number of the result, or of a phase
    pixels_of_tile: int  # the least number in a tile, on average

    def suffice(self, shape: Sequence[int]) -> bool:
        """Whether an input of this shape has enough of them. Its size, divided by the step, is
        taken to be the size of the result or of a phase."""
        N, _, H, W = shape
        H, W = -(-H // self.step), -(-W // self.step)
        pixels, tiles = H * W, -(-H // 4) * -(-W // 4)
        return N * pixels >= self.pixels and pixels >= self.pixels_of_tile * tiles


def tiles_of(
    shape: Sequence[int], dtype: torch.dtype, spec: ConvSpec, *, once: bool = False
) -> Tiles | None:
    """When Winograd's algorithm pays; None for never.

    Args:
        shape: of the weight.
        dtype: of the inputs.
        once: the weights will change.
    """
    if spec.dilation != (1, 1) or spec.groups != 1 or dtype != torch.float32:
        return None
    tiles = (_transposed_tiles if spec.transposed else _dense_tiles)(shape, spec.stride)
    return tiles._replace(pixels=_MIN_PIXELS_ONCE) if tiles is not None and once else tiles


def _dense_tiles(shape: Sequence[int], stride: tuple[int, int]) -> Tiles | None:
    K, C, *window = shape
    if window != [3, 3] or K < 16:
        return None
    if stride == (1, 1) and C >= 32:
        return Tiles(1, _MIN_PIXELS, _MIN_PIXELS_OF_TILE)
    if stride == (2, 2) and C >= 64 and _MIN_STRIDED <= C * K <= _MAX_STRIDED:
        return Tiles(2, _MIN_STRIDED_PIXELS, _MIN_PIXELS_OF_SLOW_TILE)
    return None


def _transposed_tiles(shape: Sequence[int], stride: tuple[int, int]) -> Tiles | None:
    C, K, *window = shape
    down, across = stride
    phases = down * across
    if C < 32 or phases > MAX_PHASES or C * (-(-K // _LANES) * _LANES) * phases > _MAX_TRANSPOSED:
        return None
    if window == [3 * down, 3 * across] and K >= 16:  # each phase has 3x3 taps
        return Tiles(1, _MIN_PIXELS, _MIN_PIXELS_OF_TILE)
    if window == [2 * down, 2 * across]:
        return Tiles(1, _MIN_PIXELS, _MIN_PIXELS_OF_TILE if C >= 64 else _MIN_PIXELS_OF_SLOW_TILE)
    return None


def wins_once(input: Tensor, weight: Tensor, spec: ConvSpec) -> bool:
    """Whether Winograd's algorithm is the fastest with weights that it packs for this call."""
    tiles = tiles_of(weight.shape, input.dtype, spec, once=True)
    return tiles is not None and tiles.suffice(input.shape)
