"""Boxes and scores that are hard on NMS."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from fastvision.testing import cases
from fastvision.testing.boxes import solid_boxes


def special_boxes(count: int, seed: int) -> Tensor:
    """Uniform boxes, some of them reversed, empty, denormal, huge, infinite or NaN."""
    g = cases.generator(seed)
    boxes = cases.uniform_boxes(count, seed=seed) - 200
    values = torch.tensor([math.nan, math.inf, -math.inf, 3e38, -3e38, 1e20, 0.0, -0.0, 1e-40, 50])
    rows = torch.randint(0, count, (count // 3,), generator=g)
    columns = torch.randint(0, 4, rows.shape, generator=g)
    boxes[rows, columns] = values[torch.randint(0, len(values), rows.shape, generator=g)]
    reversed_rows = torch.randint(0, count, (count // 8,), generator=g)
    boxes[reversed_rows] = boxes[reversed_rows].flip(1)
    tiny = torch.randint(0, count, (count // 8,), generator=g)
    boxes[tiny] = boxes[tiny] * torch.tensor([1e-10, 1e-22, 1e-30, 1e-42])[tiny % 4, None]
    return boxes


def grid_boxes(count: int, seed: int = 0) -> Tensor:
    """Boxes on a coarse grid of integers: many equal or empty ones, and IoUs of simple fractions,
    exactly at a threshold."""
    g = cases.generator(seed)
    corner = torch.randint(-6, 6, (count, 2), generator=g)
    return torch.cat([corner, corner + torch.randint(0, 5, (count, 2), generator=g)], 1).float()


def mixed_scale_boxes(count: int, seed: int) -> Tensor:
    """Sides over six orders of magnitude, at offsets where a pixel is a few float32 ulps."""
    g = cases.generator(seed)
    size = torch.exp(torch.rand(count, 2, generator=g) * 14 - 4)
    corner = torch.randn(count, 2, generator=g) * size * 0.3 + 1e5 * (seed % 2)
    return torch.cat([corner, corner + size], 1)


def chain_boxes(count: int) -> Tensor:
    """Each box overlaps the next one only, by an IoU of 3/7: as many rounds as boxes."""
    left = torch.arange(count) * 4.0
    return torch.stack([left, 0 * left, left + 10, 0 * left + 10], 1)


BOXES = {
    "uniform": lambda count, seed: cases.uniform_boxes(count, seed=seed),
    "clustered": lambda count, seed: cases.clustered_boxes(count, seed=seed),
    "special": special_boxes,
    "grid": grid_boxes,
    "mixed_scale": mixed_scale_boxes,
}


def tied_scores(count: int, seed: int) -> Tensor:
    """Many equal scores, with NaN, infinities and both zeros among them."""
    values = torch.tensor([math.nan, math.inf, -math.inf, -0.0, 0.0, -1.0, 0.25, 0.5, 1.0])
    return values[torch.randint(0, len(values), (count,), generator=cases.generator(seed))]


def scores_for(count: int, seed: int) -> Tensor:
    return tied_scores(count, seed) if seed % 2 else cases.scores(count, seed=seed)


def expect(actual: Tensor, expected: Tensor) -> None:
    assert actual.dtype == torch.int64
    assert actual.tolist() == expected.tolist()


def turned_boxes(corners: Tensor, seed: int) -> Tensor:
    """[N, 5] rotated boxes with the sides of these corners, at angles from -180 to 180 degrees."""
    low, high = corners[:, :2], corners[:, 2:]
    angle = torch.rand(len(corners), 1, generator=cases.generator(seed + 7)) * 360 - 180
    return torch.cat([(low + high) / 2, high - low, angle], 1)


def _with_special_numbers(boxes: Tensor, seed: int) -> Tensor:
    """Some of the boxes with a number that is negative, tiny, huge, infinite or NaN."""
    g = cases.generator(seed)
    values = torch.tensor([math.nan, math.inf, -math.inf, 3e38, 1e20, 0.0, -0.0, 1e-40, -50])
    rows = torch.randint(0, len(boxes), (len(boxes) // 3,), generator=g)
    columns = torch.randint(0, boxes.shape[1], rows.shape, generator=g)
    boxes[rows, columns] = values[torch.randint(0, len(values), rows.shape, generator=g)]
    return boxes


def special_rotated_boxes(count: int, seed: int) -> Tensor:
    boxes = turned_boxes(cases.uniform_boxes(count, seed=seed), seed)
    return _with_special_numbers(boxes, seed)


def special_solid_boxes(count: int, seed: int) -> Tensor:
    return _with_special_numbers(solid_boxes(count, seed=seed), seed)


def dense_corners(count: int, seed: int) -> Tensor:
    """Jittered copies of one object per ten boxes."""
    return cases.clustered_boxes(count, seed=seed, objects=count // 10 + 1)


ROTATED = {
    "uniform": lambda count, seed: turned_boxes(cases.uniform_boxes(count, seed=seed) / 4, seed),
    "clustered": lambda count, seed: turned_boxes(dense_corners(count, seed), seed),
    "special": special_rotated_boxes,
}


def expect_greedy(
    kept: Tensor,
    overlaps: Tensor,
    scores: Tensor,
    idxs: Tensor | None,
    threshold: float,
    *,
    tolerance: float = 0.0,
) -> None:
    """Asserts that ``kept`` is the greedy choice, where overlaps [N, N] (row: the box that
    suppresses) are known up to ``tolerance``."""
    order = scores.argsort(descending=True, stable=True)
    rank = order.argsort()
    assert kept.dtype == torch.int64
    assert (rank[kept].diff() > 0).all()
    suppresses = overlaps.double().cpu()
    first = rank[:, None] < rank
    if idxs is not None:
        first &= idxs[:, None] == idxs
    is_kept = torch.zeros(len(scores), dtype=torch.bool)
    is_kept[kept] = True
    surely = (suppresses > threshold + tolerance) & first & is_kept[:, None]
    assert not (surely.any(0) & is_kept).any()
    maybe = (suppresses > threshold - tolerance) & first & is_kept[:, None]
    assert (maybe.any(0) | is_kept).all()
