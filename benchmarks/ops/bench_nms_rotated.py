"""nms_rotated and batched_nms_rotated against torchvision's overlaps of all pairs and a greedy loop
over them, since torchvision has no such op."""

from __future__ import annotations

import pytest
import torch
import torchvision
from torch import Tensor

import fastvision
from benchmarks import work
from benchmarks.harness import BASELINE, Case, Providers, backends
from fastvision.testing import cases
from fastvision.testing.nms import turned_boxes

THRESHOLD, CLASSES = 0.5, 15
BOXES = {"uniform": cases.uniform_boxes, "clustered": cases.clustered_boxes}
# boxes, classes or None, part of a quick run
CASES_OF = [
    ("uniform", 100, None, True),
    ("uniform", 1000, None, True),
    ("uniform", 5000, None, False),
    ("clustered", 1000, None, True),
    ("clustered", 5000, None, False),
    ("uniform", 5000, CLASSES, False),
]


def by_all_pairs(boxes: Tensor, scores: Tensor, idxs: Tensor | None) -> Tensor:
    """The greedy choice from a matrix of overlaps."""
    order = scores.argsort(descending=True, stable=True)
    drops = torchvision.ops.box_iou(boxes[order], boxes[order], "cxcywhr") > THRESHOLD
    if idxs is not None:
        drops &= idxs[order][:, None] == idxs[order]
    alive = torch.ones_like(order, dtype=torch.bool)
    for i in range(len(order)):
        if alive[i]:
            alive[i + 1 :] &= ~drops[i, i + 1 :]
    return order[alive]


def check(actual: Tensor, expected: Tensor) -> None:
    """The same boxes, but for those whose overlap is within rounding of the threshold."""
    different = set(actual.tolist()) ^ set(expected.tolist())
    assert len(different) <= len(expected) // 500, f"differs in {len(different)} boxes"


def case(kind: str, count: int, classes: int | None, *, quick: bool) -> Case:
    def inputs(device: torch.device) -> tuple[Tensor | None, ...]:
        idxs = None if classes is None else cases.classes(count, classes).to(device)
        return turned_boxes(BOXES[kind](count), 0).to(device), cases.scores(count).to(device), idxs

    def providers(device: torch.device) -> Providers:
        def run(b: Tensor, s: Tensor, i: Tensor | None, backend: str) -> Tensor:
            return fastvision.ops.nms_rotated(b, s, THRESHOLD, idxs=i, backend=backend)

        ours = backends(run, device, reference=True)
        ours.pop("cuda", None)
        return {BASELINE: by_all_pairs} | ours

    return Case(
        "nms_rotated",
        f"{'batched_' if classes else ''}nms_rotated, {kind}, {count}",
        inputs=inputs,
        providers=providers,
        check=check,
        work=lambda tensors, kept: work.nms(tensors[:2], len(kept), count - len(kept)),
        quick=quick,
    )


CASES = [case(kind, count, classes, quick=quick) for kind, count, classes, quick in CASES_OF]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_nms_rotated(case: Case, compare) -> None:
    compare(case)
