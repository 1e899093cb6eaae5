"""Overlaps of all pairs of rotated boxes against torchvision."""

from __future__ import annotations

import pytest
import torch
import torchvision
from torch import Tensor

import fastvision
from benchmarks import work
from benchmarks.harness import BASELINE, Case, Providers, backends
from fastvision.testing.cases import IMAGE_HEIGHT, IMAGE_WIDTH, generator
from fastvision.testing.numerics import assert_matches

# boxes in one image, how far apart (share of the image that they are in), part of a quick run
COUNTS = [(10, 1.0, True), (1000, 1.0, True), (1000, 0.1, False), (4000, 1.0, False)]


def rotated_boxes(count: int, share: float, seed: int) -> Tensor:
    """[count, 5] centers, sides of 8 to 128 pixels, and angles."""
    g = generator(seed)
    center = torch.rand(count, 2, generator=g) * torch.tensor([IMAGE_WIDTH, IMAGE_HEIGHT]) * share
    sides = 8 + torch.rand(count, 2, generator=g) * 120
    return torch.cat([center, sides, torch.rand(count, 1, generator=g) * 360 - 180], 1)


def check(actual: Tensor, expected: Tensor, boxes: tuple[Tensor, Tensor]) -> None:
    """torchvision's arithmetic is in float32, and for it corners that nearly meet are noise: of few
    pairs it is far off, and for these the float64 result counts."""
    i, j = torch.nonzero((actual - expected).abs() > 1e-3, as_tuple=True)
    assert len(i) <= 2 + 1e-5 * expected.numel(), f"{len(i)} pairs differ"
    exact = fastvision.ops.box_iou_rotated(
        *(b.double()[k] for b, k in zip(boxes, (i, j), strict=True)), backend="reference"
    )
    expected = expected.index_put((i, j), exact.diagonal().float())
    assert_matches(actual, expected, scale=10)


def case(count: int, share: float, *, quick: bool) -> Case:
    def providers(device: torch.device) -> Providers:
        ours = backends(fastvision.ops.box_iou_rotated, device, reference=False)
        ours.pop("cuda", None)
        return {BASELINE: lambda b1, b2: torchvision.ops.box_iou(b1, b2, "cxcywhr")} | ours

    def boxes(device: torch.device) -> tuple[Tensor, Tensor]:
        return rotated_boxes(count, share, 0).to(device), rotated_boxes(count, share, 1).to(device)

    return Case(
        "box_iou_rotated",
        f"{count}x{count}, {'dense' if share < 1 else 'spread'}",
        inputs=boxes,
        providers=providers,
        check=lambda actual, expected: check(actual, expected, boxes(actual.device)),
        work=lambda tensors, _: work.box_iou_rotated(*tensors),
        quick=quick,
    )


CASES = [case(count, share, quick=quick) for count, share, quick in COUNTS]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_box_iou_rotated(case: Case, compare) -> None:
    compare(case)
