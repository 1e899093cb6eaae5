"""matrix_nms against its definition in torch's operations; torchvision has none."""

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
COUNTS = (100, 500, 2000)


def case(kernel: str, kind: str, count: int) -> Case:
    def providers(device: torch.device) -> Providers:
        def run(b: Tensor, s: Tensor, backend: str) -> Tensor:
            return fastvision.ops.matrix_nms(b, s, kernel=kernel, backend=backend)

        ours = backends(run, device, reference=False)
        ours.pop("cuda", None)
        return {EAGER: lambda *tensors: run(*tensors, backend="reference")} | ours

    return Case(
        "matrix_nms",
        f"{kernel}, {kind}, {count}",
        inputs=lambda device: (BOXES[kind](count).to(device), cases.scores(count).to(device)),
        providers=providers,
        check=assert_matches,
        work=lambda tensors, _: work.matrix_nms(tensors),
        quick=count <= 500,
    )


CASES = [
    case(kernel, kind, count)
    for kernel in ("gaussian", "linear")
    for kind in BOXES
    for count in COUNTS
]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_matrix_nms(case: Case, compare) -> None:
    compare(case)
