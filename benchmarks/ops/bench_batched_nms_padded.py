"""batched_nms_padded against torchvision's batched_nms in a loop over the images."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torchvision
from torch import Tensor

import fastvision
from benchmarks import work
from benchmarks.harness import BASELINE, Case, CudaGraph, Providers, backends
from benchmarks.ops.bench_nms import THRESHOLD, check, class_by_class
from fastvision.testing import cases

# (images, boxes of each, classes, most boxes kept of each)
SHAPES = [
    (4, 4000, 80, 100),
    (8, 10_000, 5, 1000),  # RPN: levels as classes
]


def padded_case(images: int, count: int, num_classes: int, max_output: int) -> Case:
    def inputs(device: torch.device) -> tuple[Tensor, ...]:
        boxes = torch.stack([cases.clustered_boxes(count, seed=10 * i) for i in range(images)])
        scores = torch.stack([cases.scores(count, seed=10 * i + 1) for i in range(images)])
        classes = torch.stack(
            [cases.classes(count, num_classes, seed=10 * i + 2) for i in range(images)]
        )
        return boxes.to(device), scores.to(device), classes.to(device)

    def each(function: Any, *tensors: Tensor) -> list[Tensor]:
        return [function(*image)[:max_output] for image in zip(*tensors, strict=True)]

    def baseline(*tensors: Tensor) -> list[Tensor]:
        return each(lambda *image: torchvision.ops.batched_nms(*image, THRESHOLD), *tensors)

    def run(b: Tensor, s: Tensor, c: Tensor, backend: str | None) -> tuple[Tensor, Tensor]:
        return fastvision.ops.batched_nms_padded(
            b, s, c, THRESHOLD, max_output=max_output, backend=backend
        )

    def providers(device: torch.device) -> Providers:
        ours = backends(run, device, reference=False)
        if device.type == "cuda":
            graphs = {name: call for name, call in ours.items() if name != "reference"}
            ours |= {f"{name}, CUDA graph": CudaGraph(call) for name, call in graphs.items()}
        return {BASELINE: baseline} | ours

    def check_padded(actual: Any, expected: list[Tensor]) -> None:
        if isinstance(actual, tuple):
            indices, counts = actual
            assert (indices.ge(0).sum(1) == counts).all(), "the padding does not fit the counts"
            actual = [kept[:n] for kept, n in zip(indices, counts.tolist(), strict=True)]
        for one, other in zip(actual, expected, strict=True):
            check(one, other)

    return Case(
        "batched_nms_padded",
        f"{images} images, {num_classes} classes, {count}",
        inputs=inputs,
        providers=providers,
        check=check_padded,
        expected=lambda *tensors: each(class_by_class, *tensors),
        # once the best are found, nothing need be known of the others
        work=lambda tensors, kept: work.nms(tensors, sum(map(len, kept)), dropped=0),
        note=f"torchvision in a loop over the images; the best {max_output} of each are asked for",
    )


CASES = [padded_case(*shape) for shape in SHAPES]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_batched_nms_padded(case: Case, compare) -> None:
    compare(case)
