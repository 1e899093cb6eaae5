"""Random and hostile tensors that the fuzzers share."""

from __future__ import annotations

import random

import torch
from torch import Tensor

DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
HOSTILE = (float("nan"), float("inf"), -float("inf"), 1e30, -1e30, 1e9, -1.0, -0.0, 1e-40, 65504.0)


def random_boxes(rng: random.Random, count: int, extent: float) -> Tensor:
    """[count, 4] boxes; some have sides that are negative, zero, huge or not a number."""
    corner = torch.rand(count, 2) * extent * 1.5 - extent * 0.25
    boxes = torch.cat([corner, corner + torch.rand(count, 2) * extent], 1)
    kind = rng.choice(("ordinary", "degenerate", "reversed", "whole pixels", "hostile"))
    if kind == "degenerate":
        boxes[::2, 2:] = boxes[::2, :2]
    elif kind == "reversed":
        boxes[::3] = boxes[::3].flip(1)
    elif kind == "whole pixels":
        boxes = boxes.round()
    elif kind == "hostile":
        for _ in range(count):
            boxes[rng.randrange(count), rng.randrange(4)] = rng.choice(HOSTILE)
    return boxes


def random_format(rng: random.Random, x: Tensor) -> Tensor:
    kind = rng.choice(("contiguous", "channels_last", "strided"))
    if kind == "channels_last":
        return x.contiguous(memory_format=torch.channels_last)
    return x.mT.contiguous().mT if kind == "strided" else x


def random_layout(rng: random.Random, x: Tensor) -> Tensor:
    """The same values in memory of another order, or with gaps."""
    kind = rng.choice(("contiguous", "transposed", "gaps"))
    if kind == "transposed" and x.dim() > 1:
        return x.mT.contiguous().mT
    return torch.stack([x, x], -1)[..., 0] if kind == "gaps" else x


def random_rotated_boxes(rng: random.Random, count: int) -> Tensor:
    """[count, 5] boxes whose angle may be anything too."""
    boxes = random_boxes(rng, max(count, 1), 40.0)[:count]
    angle = torch.rand(count, 1) * 720 - 360
    if count and rng.random() < 0.3:
        angle[rng.randrange(count)] = rng.choice(HOSTILE)
    return torch.cat([boxes, angle], 1)


def random_solid_boxes(rng: random.Random, count: int) -> Tensor:
    """[count, 7] boxes whose heights and yaws may be anything too."""
    flat, upright = (random_boxes(rng, max(count, 1), 40.0)[:count] for _ in range(2))
    yaw = random_rotated_boxes(rng, count)[:, 4:] / 57
    return torch.cat([flat[:, :2], upright[:, :1], flat[:, 2:], upright[:, 2:3], yaw], 1)
