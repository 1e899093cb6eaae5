"""soft_nms against its definition in torch's operations; torchvision has none."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import fastvision
from benchmarks import work
from benchmarks.harness import EAGER, Case, Providers, backends
from fastvision.testing import cases
from fastvision.testing.numerics import assert_matches

BOXES = {"uniform": cases.uniform_boxes, "clustered": cases.clustered_boxes}
# boxes, method, classes, part of a quick run
PROBLEMS = [
    (100, "linear", None, True),
    (1000, "linear", None, True),
    (1000, "gaussian", None, True),
    (5000, "linear", None, False),
    (5000, "gaussian", None, False),
    (5000, "linear", 80, False),
]


def check(actual: tuple[Tensor, Tensor], expected: tuple[Tensor, Tensor]) -> None:
    assert torch.equal(actual[0], expected[0])
    assert_matches(actual[1], expected[1])


def case(kind: str, count: int, method: str, classes: int | None, *, quick: bool) -> Case:
    def inputs(device: torch.device) -> tuple[Tensor, ...]:
        tensors = [BOXES[kind](count), cases.scores(count)]
        if classes is not None:
            tensors.append(cases.classes(count, classes))
        return tuple(t.to(device) for t in tensors)

    def providers(device: torch.device) -> Providers:
        def run(b: Tensor, s: Tensor, *idxs: Tensor, backend: str) -> tuple[Tensor, Tensor]:
            options = {"idxs": idxs[0]} if idxs else {}
            return fastvision.ops.soft_nms(b, s, method=method, **options, backend=backend)

        ours = backends(run, device, reference=False)
        ours.pop("cuda", None)
        return {EAGER: lambda *tensors: run(*tensors, backend="reference")} | ours

    return Case(
        "soft_nms",
        f"{method}, {kind}, {count}" + (f", {classes} classes" if classes is not None else ""),
        inputs=inputs,
        providers=providers,
        check=check,
        work=lambda tensors, results: work.soft_nms(tensors, len(results[0])),
        quick=quick,
    )


CASES = [
    case(kind, count, method, classes, quick=quick)
    for kind in BOXES
    for count, method, classes, quick in PROBLEMS
]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_soft_nms(case: Case, compare) -> None:
    compare(case)
