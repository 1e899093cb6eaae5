"""Rois that are hard on RoIAlign, for two images, and shapes that leave it nothing to do."""

from __future__ import annotations

from math import inf, nan

import torch

# for 13 x 18 pixels at a scale of 1/4
ODD_ROIS = torch.tensor(
    [
        [0, -30, -20, 40, 30],  # over the left and upper borders
        [1, 60, 40, 200, 90],
        [1, -500, -500, -400, -400],  # outside
        [0, 40, 30, 10, 12],  # reversed
        [1, 10, 30, 30, 12],  # reversed in y only
        [0, 20, 20, 20, 20],  # empty
        [0, -4, -4, 68, 48],  # samples exactly at -1 and at the extent
        [1, 4, 8, 4.5, 8.25],
        [0, -300, -200, 500, 400],  # most samples outside
    ]
)
# zeros where samples are adaptive, but for the USABLE ones among them
UNUSABLE_ROIS = torch.tensor(
    [
        [0, 4, 4, 30, 30],
        [-1, 4, 4, 30, 30],
        [-0.5, 4, 4, 30, 30],
        [2, 4, 4, 30, 30],
        [1e30, 4, 4, 30, 30],
        [nan, 4, 4, 30, 30],
        [0, nan, 4, 30, 30],
        [0, 4, 4, inf, 30],
        [0, 4, -inf, 30, inf],
        [1, 8, 8, 24, 40],
        [0, -1e9, 4, 1e9, 30],  # too many samples, or its place is lost in rounding
        [1, -3e38, 4, 3e38, 30],
    ]
)
USABLE = torch.tensor([1, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0], dtype=torch.bool)
# input, boxes, bins
EMPTY = [
    ((2, 3, 4, 5), 0, (2, 2)),
    ((0, 3, 4, 5), 0, (2, 2)),
    ((2, 0, 4, 5), 3, (2, 2)),
    ((2, 3, 4, 5), 3, (0, 2)),
    ((2, 3, 4, 5), 3, (2, 0)),
    ((2, 3, 0, 5), 3, (2, 2)),
    ((2, 3, 4, 0), 3, (2, 2)),
]
