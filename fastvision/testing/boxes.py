"""Boxes for the tests of ops on them."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .cases import generator

KINDS = ("iou", "generalized", "distance", "complete")


def boxes(*shape: int, seed: int = 0, extent: float = 50.0) -> Tensor:
    """[*shape, 4] corners (x1, y1, x2, y2); many of them overlap."""
    g = generator(seed)
    corner = torch.rand(*shape, 2, generator=g) * extent
    return torch.cat([corner, corner + 1 + torch.rand(*shape, 2, generator=g) * extent], -1)


def rotated_boxes(*shape: int, seed: int = 0, extent: float = 50.0) -> Tensor:
    """[*shape, 5] centers, sides and angles in degrees, from -360 to 360."""
    g = generator(seed)
    center = torch.rand(*shape, 2, generator=g) * extent
    sides = 2 + torch.rand(*shape, 2, generator=g) * extent
    angle = torch.rand(*shape, 1, generator=g) * 720 - 360
    return torch.cat([center, sides, angle], -1)


def beyond_a_side(boxes: Tensor, gap: float, seed: int = 0) -> Tensor:
    """[N, 5] rotated boxes, each with a corner ``gap`` beyond the right side of one of ``boxes``
    [N, 5] (within it, below 0), and all of it on the corner's right."""
    others = rotated_boxes(len(boxes), seed=seed).double()
    cx, cy, width, height, angle = boxes.double().unbind(1)
    turn = torch.deg2rad(others[:, 4] - angle)
    half_width, half_height = others[:, 2] / 2, others[:, 3] / 2
    right = width / 2 + gap + (half_width * turn.cos()).abs() + (half_height * turn.sin()).abs()
    down = (torch.rand(len(boxes), generator=generator(seed)) - 0.5) * height / 2
    down -= half_width * turn.sin() * turn.cos().sign()
    down += half_height * turn.cos() * turn.sin().sign()
    radians = torch.deg2rad(angle)
    others[:, 0] = cx + right * radians.cos() + down * radians.sin()
    others[:, 1] = cy - right * radians.sin() + down * radians.cos()
    return others.to(boxes.dtype)


def solid_boxes(*shape: int, seed: int = 0, extent: float = 50.0) -> Tensor:
    """[*shape, 7] centers, sides and yaws in radians, from -2 pi to 2 pi."""
    flat = rotated_boxes(*shape, seed=seed, extent=extent)
    g = generator(seed + 100)
    z = torch.rand(*shape, 1, generator=g) * extent
    depth = 2 + torch.rand(*shape, 1, generator=g) * extent
    yaw = flat[..., 4:] * (math.pi / 180)
    return torch.cat([flat[..., :2], z, flat[..., 2:4], depth, yaw], -1)


def hostile_boxes() -> Tensor:
    """[N, 4] corners with NaN, infinities, sides that are 0, negative or huge, and equal boxes."""
    inf, nan = math.inf, math.nan
    return torch.tensor(
        [
            [0, 0, 4, 4],
            [0, 0, 4, 4],
            [4, 0, 8, 4],
            [1, 1, 1, 1],
            [1, 1, 1, 3],
            [3, 3, 1, 1],
            [3, 0, 1, 4],
            [nan, 0, 4, 4],
            [0, 0, nan, 4],
            [0, 0, 4, nan],
            [-inf, -inf, inf, inf],
            [0, 0, inf, 4],
            [inf, 0, inf, 4],
            [0, 0, 1e20, 1e20],
            [-1e30, -1e30, 1e30, 1e30],
            [-0.0, -0.0, 0.0, 0.0],
        ]
    )
