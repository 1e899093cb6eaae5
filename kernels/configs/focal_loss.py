"""Tiles for the focal loss kernels."""

from __future__ import annotations

import triton

# tile of logits with labels: one load of the label per row, and 16 columns fill a memory sector
BLOCK_ROWS = 128
BLOCK_COLUMNS = 16
LABELS_WARPS = 8

BLOCK_NUMBERS = 1024
NUMBERS_WARPS = 4

BLOCK_SCALE = 2048


def softmax_tile(classes: int) -> tuple[int, int, int]:
    """BLOCK_ROWS, BLOCK_K, warps: short rows in one piece, 8 logits per thread."""
    block_k = min(triton.next_power_of_2(max(classes, 1)), 1024)
    return min(1024 // block_k, 32), block_k, 4
