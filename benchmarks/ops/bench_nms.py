"""nms, batched_nms and batched_nms_padded against torchvision."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torchvision
from torch import Tensor

import fastvision
from benchmarks import work
from benchmarks.harness import BASELINE, COMPILED, Case, CudaGraph, Providers, backends, compiled
from fastvision.testing import cases

THRESHOLD = 0.5
BOXES = {"uniform": cases.uniform_boxes, "clustered": cases.clustered_boxes}


def check(actual: Tensor, expected: Tensor) -> None:
    assert torch.equal(actual, expected), f"{len(actual)} boxes kept or ordered differently"


def nms_case(kind: str, count: int) -> Case:
    def providers(device: torch.device) -> Providers:
        baseline = {BASELINE: lambda b, s: torchvision.ops.nms(b, s, THRESHOLD)}
        if count == 4000:
            baseline[COMPILED] = compiled(baseline[BASELINE])

        def run(b: Tensor, s: Tensor, backend: str) -> Tensor:
            return fastvision.ops.nms(b, s, THRESHOLD, backend=backend)

        return baseline | backends(run, device, reference=count <= 1000)

    return Case(
        "nms",
        f"nms, {kind}, {count}",
        inputs=lambda device: (BOXES[kind](count).to(device), cases.scores(count).to(device)),
        providers=providers,
        check=check,
        work=lambda inputs, kept: work.nms(*inputs, None, len(kept)),
        quick=count <= 4000,
        peak_memory=count == 100_000,
    )


def batched_case(count: int, num_classes: int = 80) -> Case:
    def inputs(device: torch.device) -> tuple[Tensor, ...]:
        boxes = cases.uniform_boxes(count)
        return tuple(
            t.to(device) for t in (boxes, cases.scores(count), cases.classes(count, num_classes))
        )

    def providers(device: torch.device) -> Providers:
        baseline = {BASELINE: lambda b, s, c: torchvision.ops.batched_nms(b, s, c, THRESHOLD)}
        if count == 4000:
            baseline[COMPILED] = compiled(baseline[BASELINE])

        def run(b: Tensor, s: Tensor, c: Tensor, backend: str) -> Tensor:
            return fastvision.ops.batched_nms(b, s, c, THRESHOLD, backend=backend)

        return baseline | backends(run, device, reference=count <= 1000)

    return Case(
        "nms",
        f"batched_nms, {num_classes} classes, {count}",
        inputs=inputs,
        providers=providers,
        check=check,
        # class by class: its other way shifts the boxes by class, which rounds their corners
        expected=lambda b, s, c: torchvision.ops.boxes._batched_nms_vanilla(b, s, c, THRESHOLD),
        work=lambda tensors, kept: work.nms(*tensors, len(kept)),
        quick=count <= 4000,
    )


def padded_case(images: int, count: int, num_classes: int, max_output: int) -> Case:
    def inputs(device: torch.device) -> tuple[Tensor, ...]:
        boxes = torch.stack([cases.clustered_boxes(count, seed=10 * i) for i in range(images)])
        scores = torch.stack([cases.scores(count, seed=10 * i + 1) for i in range(images)])
        classes = torch.stack(
            [cases.classes(count, num_classes, seed=10 * i + 2) for i in range(images)]
        )
        return boxes.to(device), scores.to(device), classes.to(device)

    def each(function: Any, *tensors: Tensor) -> list[Tensor]:
        return [function(*image, THRESHOLD)[:max_output] for image in zip(*tensors, strict=True)]

    def run(b: Tensor, s: Tensor, c: Tensor, backend: str | None) -> tuple[Tensor, Tensor]:
        return fastvision.ops.batched_nms_padded(
            b, s, c, THRESHOLD, max_output=max_output, backend=backend
        )

    def providers(device: torch.device) -> Providers:
        baseline = {BASELINE: lambda *tensors: each(torchvision.ops.batched_nms, *tensors)}
        ours = backends(run, device, reference=False)
        if device.type == "cuda":
            ours |= {f"{name}, CUDA graph": CudaGraph(call) for name, call in ours.items()}
        return baseline | ours

    def check_padded(actual: Any, expected: list[Tensor]) -> None:
        if isinstance(actual, tuple):
            indices, counts = actual
            assert (indices.ge(0).sum(1) == counts).all(), "the padding does not fit the counts"
            actual = [kept[:n] for kept, n in zip(indices, counts.tolist(), strict=True)]
        for one, other in zip(actual, expected, strict=True):
            check(one, other)

    vanilla = torchvision.ops.boxes._batched_nms_vanilla
    return Case(
        "nms",
        f"batched_nms_padded, {images} images, {num_classes} classes, {count}",
        inputs=inputs,
        providers=providers,
        check=check_padded,
        expected=lambda *tensors: each(vanilla, *tensors),
        work=lambda tensors, kept: work.nms(*tensors, sum(map(len, kept))),
        note=f"torchvision in a loop over the images; the best {max_output} of each are asked for",
    )


CASES = [
    *(nms_case("uniform", count) for count in (1, 10, 100, 1000, 4000, 12_000, 20_000, 100_000)),
    *(nms_case("clustered", count) for count in (1000, 4000, 12_000, 20_000, 100_000)),
    *(batched_case(count) for count in (1000, 4000, 12_000, 20_000, 100_000)),
    padded_case(images=4, count=4000, num_classes=80, max_output=100),
    padded_case(images=8, count=10_000, num_classes=5, max_output=1000),  # RPN: levels as classes
]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_nms(case: Case, compare) -> None:
    compare(case)
