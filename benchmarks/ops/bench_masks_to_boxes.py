"""Boxes around masks against torchvision."""

from __future__ import annotations

import pytest
import torch
import torchvision
from torch import Tensor

import fastvision
from benchmarks import work
from benchmarks.harness import BASELINE, Case, Providers, backends
from fastvision.testing.cases import generator

# (N, H, W), dtype, part of a quick run
MASKS = [
    ((100, 28, 28), torch.bool, True),
    ((100, 400, 500), torch.bool, True),
    ((100, 400, 500), torch.uint8, False),
    ((20, 800, 1216), torch.float32, False),
]


def ellipses(shape: tuple[int, int, int], dtype: torch.dtype) -> Tensor:
    """Of random centers and axes, as masks of objects."""
    count, height, width = shape
    g = generator(9)
    center = torch.rand(count, 2, 1, 1, generator=g) * torch.tensor([height, width]).view(2, 1, 1)
    axes = (0.05 + 0.4 * torch.rand(count, 2, 1, 1, generator=g)) * min(height, width)
    y = (torch.arange(height).view(-1, 1) - center[:, 0]) / axes[:, 0]
    x = (torch.arange(width) - center[:, 1]) / axes[:, 1]
    return (x.square() + y.square() < 1).to(dtype)


def check(actual: Tensor, expected: Tensor) -> None:
    assert torch.equal(actual, expected)


def case(shape: tuple[int, int, int], dtype: torch.dtype, *, quick: bool) -> Case:
    def providers(device: torch.device) -> Providers:
        ours = backends(fastvision.ops.masks_to_boxes, device, reference=False)
        ours.pop("cuda", None)
        return {BASELINE: torchvision.ops.masks_to_boxes} | ours

    size = "x".join(map(str, shape))
    return Case(
        "masks_to_boxes",
        f"{size}, {str(dtype).removeprefix('torch.')}",
        inputs=lambda device: (ellipses(shape, dtype).to(device),),
        providers=providers,
        check=check,
        work=lambda tensors, boxes: work.masks_to_boxes(*tensors, boxes.cpu()),
        quick=quick,
    )


CASES = [case(shape, dtype, quick=quick) for shape, dtype, quick in MASKS]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_masks_to_boxes(case: Case, compare) -> None:
    compare(case)
