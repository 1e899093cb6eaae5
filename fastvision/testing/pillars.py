"""A small scene of solid boxes."""

from __future__ import annotations

import torch
from torch import Tensor

EXTENT = (-9.6, -6.4, -1.0, 9.6, 6.4, 4.0)  # of the scene: least x, y, z, largest x, y, z


def objects() -> dict[str, Tensor]:
    """Two cars and a pedestrian, away from the directions of anchors."""
    boxes = torch.tensor(
        [
            [-4.0, 2.0, 0.8, 4.0, 1.7, 1.5, 0.3],
            [3.2, -2.9, 0.7, 3.7, 1.8, 1.6, -2.0],
            [0.1, 4.0, 0.9, 0.6, 0.5, 1.8, 2.0],
        ]
    )
    return {"boxes": boxes, "labels": torch.tensor([1, 1, 2])}
