"""Regions of an image as images of one size."""

from __future__ import annotations

import torch
from torch import Tensor

from ...ops import roi_align


def warp_regions(image: Tensor, boxes: Tensor, size: int, context: int = 0) -> Tensor:
    """Each box stretched to a square, with some of its surroundings (Girshick et al., R-CNN, 2014,
    appendix A).

    Args:
        image: [C, H, W].
        boxes: [n, 4] (x1, y1, x2, y2) in pixels.
        size: pixels of the squares.
        context: pixels of the square on each side that are outside of the box.

    Returns:
        [n, C, size, size]; zeros where there is no image. Larger boxes are averaged, not sampled.
    """
    centre, half = (boxes[:, :2] + boxes[:, 2:]) / 2, (boxes[:, 2:] - boxes[:, :2]) / 2
    half = half * (size / (size - 2 * context))
    corners = torch.cat((centre - half, centre + half), 1)
    return roi_align(image[None], [corners], size, aligned=True)
