"""nms and batched_nms against torchvision."""

from __future__ import annotations

import pytest
import torch
import torchvision
from torch import Tensor

import fastvision
from benchmarks import peers, work
from benchmarks.harness import BASELINE, COMPILED, Case, Providers, backends, compiled
from fastvision.testing import cases

THRESHOLD = 0.5
BOXES = {"uniform": cases.uniform_boxes, "clustered": cases.clustered_boxes}
COUNTS = {
    "uniform": (1, 10, 100, 1000, 4000, 12_000, 20_000, 100_000),
    "clustered": (1000, 4000, 12_000, 20_000, 100_000),
}
BATCHED_COUNTS, CLASSES = (1000, 4000, 12_000, 20_000, 100_000), 80


def check(actual: Tensor, expected: Tensor) -> None:
    """In any order, as that of equal scores is the package's own."""
    same = torch.equal(actual.sort()[0], expected.sort()[0])
    assert same, f"keeps {len(actual)} boxes, not the {len(expected)} expected, or others"


def class_by_class(boxes: Tensor, scores: Tensor, idxs: Tensor) -> Tensor:
    """What batched_nms must give. torchvision's other way shifts the boxes by class, which rounds
    their corners, and this one leaves the order of equal scores open: here it is by index."""
    kept = torchvision.ops.boxes._batched_nms_vanilla(boxes, scores, idxs, THRESHOLD).sort()[0]
    return kept[scores[kept].argsort(descending=True, stable=True)]


def nms_case(kind: str, count: int) -> Case:
    def providers(device: torch.device) -> Providers:
        baseline = {BASELINE: lambda b, s: torchvision.ops.nms(b, s, THRESHOLD)}
        if count == 4000:
            baseline[COMPILED] = compiled(baseline[BASELINE])

        def run(b: Tensor, s: Tensor, backend: str) -> Tensor:
            return fastvision.ops.nms(b, s, THRESHOLD, backend=backend)

        ours = backends(run, device, reference=count <= 100)
        return baseline | peers.nms(THRESHOLD, device) | ours

    return Case(
        "nms",
        f"nms, {kind}, {count}",
        inputs=lambda device: (BOXES[kind](count).to(device), cases.scores(count).to(device)),
        providers=providers,
        check=check,
        work=lambda inputs, kept: work.nms(inputs, len(kept), count - len(kept)),
        quick=count <= 4000,
        peak_memory=count == 100_000,
    )


def batched_case(count: int, num_classes: int) -> Case:
    def inputs(device: torch.device) -> tuple[Tensor, ...]:
        boxes = cases.uniform_boxes(count)
        return tuple(
            t.to(device) for t in (boxes, cases.scores(count), cases.classes(count, num_classes))
        )

    def providers(device: torch.device) -> Providers:
        baseline = {BASELINE: lambda b, s, c: torchvision.ops.batched_nms(b, s, c, THRESHOLD)}
        if count == 1000:  # from 1001 boxes on it loops over the classes, and compiles for minutes
            baseline[COMPILED] = compiled(baseline[BASELINE])

        def run(b: Tensor, s: Tensor, c: Tensor, backend: str) -> Tensor:
            return fastvision.ops.batched_nms(b, s, c, THRESHOLD, backend=backend)

        return baseline | backends(run, device, reference=False)

    return Case(
        "nms",
        f"batched_nms, {num_classes} classes, {count}",
        inputs=inputs,
        providers=providers,
        check=check,
        expected=class_by_class,
        work=lambda tensors, kept: work.nms(tensors, len(kept), count - len(kept)),
        quick=count <= 4000,
    )


CASES = [
    *(nms_case(kind, count) for kind, counts in COUNTS.items() for count in counts),
    *(batched_case(count, CLASSES) for count in BATCHED_COUNTS),
]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_nms(case: Case, compare) -> None:
    compare(case)
