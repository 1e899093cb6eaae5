"""Tiles for the kernels on pairs of boxes."""

from __future__ import annotations

from typing import NamedTuple

NUM_WARPS = 4
ROTATED_REGISTERS = 200  # of the gradient; ptxas spills to fit one more program
GRADIENT_ROWS = 256  # of a strip, so that sums of columns are 1 / 256 of the pairs
# boxes one by one
LOSS_WARPS = 4
LOSS_BLOCK = 128


class Tile(NamedTuple):
    block_m: int
    block_n: int


# rows at a time: the values of a pair have to stay in registers
_ROWS = {"box_iou": 8, "box_iou_backward": 4, "box_iou_rotated": 4, "box_iou_rotated_backward": 2}


def tile(op: str, double: bool) -> Tile:
    """Of an operator, for boxes in float64 or others. Warps write whole cache lines."""
    return Tile(_ROWS[op], 64 if double else 128)
