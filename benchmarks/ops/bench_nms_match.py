"""nms_match against torchvision's nms and the overlaps of what it keeps with all boxes."""

from __future__ import annotations

import pytest
import torch
import torchvision
from torch import Tensor

import fastvision
from benchmarks import work
from benchmarks.harness import BASELINE, Case, Providers, backends
from fastvision.testing import cases

THRESHOLD = 0.5
BOXES = {"uniform": cases.uniform_boxes, "clustered": cases.clustered_boxes}
COUNTS = (100, 1000, 4000)


def by_overlaps(boxes: Tensor, scores: Tensor) -> tuple[Tensor, Tensor]:
    """The kept boxes are in order of score, so the first that overlaps is the match."""
    keep = torchvision.ops.nms(boxes, scores, THRESHOLD)
    covers = torchvision.ops.box_iou(boxes[keep], boxes) > THRESHOLD
    match = keep[covers.int().argmax(0)]
    match[keep] = keep
    return keep, match


def check(actual: tuple[Tensor, Tensor], expected: tuple[Tensor, Tensor]) -> None:
    assert all(map(torch.equal, actual, expected))


def case(kind: str, count: int) -> Case:
    def providers(device: torch.device) -> Providers:
        def run(b: Tensor, s: Tensor, backend: str) -> tuple[Tensor, Tensor]:
            return fastvision.ops.nms_match(b, s, THRESHOLD, backend=backend)

        ours = backends(run, device, reference=False)
        ours.pop("cuda", None)
        return {BASELINE: by_overlaps} | ours

    return Case(
        "nms_match",
        f"{kind}, {count}",
        inputs=lambda device: (BOXES[kind](count).to(device), cases.scores(count).to(device)),
        providers=providers,
        check=check,
        work=lambda inputs, results: work.nms_match(inputs, len(results[0])),
        quick=count <= 1000,
    )


CASES = [case(kind, count) for kind in BOXES for count in COUNTS]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_nms_match(case: Case, compare) -> None:
    compare(case)
