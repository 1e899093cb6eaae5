"""Boxes around masks."""

from __future__ import annotations

import torch
from torch import Tensor


def masks_to_boxes(masks: Tensor) -> Tensor:
    """float32 (x1, y1, x2, y2) [N, 4] of masks [N, H, W]; 0 for a mask without a nonzero value."""
    nonzero = masks != 0
    ends = []
    for occupied in (nonzero.any(1), nonzero.any(2)):  # columns, rows
        size = occupied.shape[1]
        index = torch.arange(size, device=masks.device)
        first = torch.where(occupied, index, size).amin(1)
        last = torch.where(occupied, index, -1).amax(1)
        ends.append((torch.where(last < 0, 0, first), last.clamp(min=0)))
    (x1, x2), (y1, y2) = ends
    return torch.stack((x1, y1, x2, y2), 1).float()
