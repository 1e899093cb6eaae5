"""Overlaps of all pairs of solid boxes against torchvision's rotated ones times the heights, in
eager operations."""

from __future__ import annotations

import math

import pytest
import torch
import torchvision
from torch import Tensor

import fastvision
from benchmarks import work
from benchmarks.harness import BASELINE, Case, Providers, backends
from fastvision.testing.cases import generator
from fastvision.testing.numerics import assert_matches

# boxes in 100 m x 80 m, or close to each other; part of a quick run
COUNTS = [(10, 1.0, True), (1000, 1.0, True), (1000, 0.1, False), (4000, 1.0, False)]


def solid_boxes(count: int, share: float, seed: int) -> Tensor:
    """[count, 7] as of road users, in meters."""
    g = generator(seed)
    center = torch.rand(count, 3, generator=g) * torch.tensor([100.0, 80.0, 2.0])
    center[:, :2] *= share
    sides = torch.tensor([1.0, 0.6, 1.4]) + torch.rand(count, 3, generator=g) * 4
    return torch.cat([center, sides, torch.rand(count, 1, generator=g) * 2 * math.pi], 1)


def by_areas(boxes1: Tensor, boxes2: Tensor) -> Tensor:
    flat1, flat2 = (
        torch.cat([b[:, :2], b[:, 3:5], b[:, 6:] * (-180 / math.pi)], 1) for b in (boxes1, boxes2)
    )
    overlap = torchvision.ops.box_iou(flat1, flat2, "cxcywhr")
    areas = (flat1[:, 2] * flat1[:, 3])[:, None] + flat2[:, 2] * flat2[:, 3]
    b1, b2 = boxes1[:, None], boxes2
    low = torch.maximum(b1[..., 2] - b1[..., 5] / 2, b2[:, 2] - b2[:, 5] / 2)
    high = torch.minimum(b1[..., 2] + b1[..., 5] / 2, b2[:, 2] + b2[:, 5] / 2)
    shared = areas * overlap / (1 + overlap) * (high - low).clamp(min=0)
    return shared / (b1[..., 3:6].prod(-1) + b2[:, 3:6].prod(-1) - shared)


def case(count: int, share: float, *, quick: bool) -> Case:
    def providers(device: torch.device) -> Providers:
        ours = backends(fastvision.ops.box_iou_3d, device, reference=count == 1000)
        ours.pop("cuda", None)
        return {BASELINE: by_areas} | ours

    return Case(
        "box_iou_3d",
        f"{'dense' if share < 1 else 'spread'}, {count}x{count}",
        inputs=lambda device: tuple(solid_boxes(count, share, i).to(device) for i in range(2)),
        providers=providers,
        # whose arithmetic is in float32, and for which corners that nearly meet are noise
        check=lambda actual, expected: assert_matches(actual, expected, scale=10),
        work=lambda tensors, _: work.box_iou_rotated(*tensors),
        quick=quick,
    )


CASES = [case(count, share, quick=quick) for count, share, quick in COUNTS]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_box_iou_3d(case: Case, compare) -> None:
    compare(case)
