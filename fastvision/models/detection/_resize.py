"""Maps resized by matrices: the weights of their rows, and of their columns, in each pixel."""

from __future__ import annotations

import torch
from torch import Tensor

from ...ops._huge_pages import matmul


def resized(rows: Tensor, maps: Tensor, columns: Tensor) -> Tensor:
    """[..., H, W] of maps [..., M, M] and weights [..., H, M] and [..., W, M], in their own dtype.

    Under autocast too, whose 16 bits would move edges and maxima.
    """
    device = maps.device.type
    if maps.is_meta or not torch.is_autocast_enabled(device):
        return matmul(rows, maps @ columns.mT)
    with torch.autocast(device, enabled=False):
        return matmul(rows, maps @ columns.mT)
