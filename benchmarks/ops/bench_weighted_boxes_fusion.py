"""weighted_boxes_fusion against the same box by box in eager mode, each box with all clusters of
its class at once, as the package ensemble-boxes does it in NumPy."""

from __future__ import annotations

import functools
from typing import Any

import pytest
import torch
from torch import Tensor

import fastvision
from benchmarks import work
from benchmarks.harness import EAGER, Case, Providers, backends
from fastvision.testing import cases
from fastvision.testing.numerics import assert_matches

# models, boxes of each, classes, part of a quick run
SIZES = [(2, 10, 1, True), (5, 100, 20, True), (5, 300, 80, False), (5, 2000, 80, False)]
Models = list[Tensor]


def check(actual: tuple[Tensor, ...], expected: tuple[Tensor, ...]) -> None:
    for one, other in zip(actual, expected, strict=True):
        assert_matches(one.float(), other)


def case(models: int, count: int, classes: int, *, quick: bool) -> Case:
    def inputs(device: torch.device) -> tuple[Models, Models, Models]:
        # of the same objects, at places that differ a little
        boxes = cases.clustered_boxes(models * count, objects=count // 2)
        scores = cases.scores(models * count)
        labels = cases.classes(models * count, classes)
        of_models: Any = [list(t.to(device).split(count)) for t in (boxes, scores, labels)]
        return tuple(of_models)  # type: ignore[return-value]

    def providers(device: torch.device) -> Providers:
        run = fastvision.ops.weighted_boxes_fusion
        ours = backends(run, device, reference=False)
        ours.pop("cuda", None)
        return {EAGER: functools.partial(run, backend="reference")} | ours

    return Case(
        "weighted_boxes_fusion",
        f"{models} models of {count} boxes, {classes} classes",
        inputs=inputs,
        providers=providers,
        check=check,
        work=lambda tensors, fused: work.weighted_boxes_fusion(tensors[0], fused[0]),
        quick=quick,
    )


CASES = [case(*size, quick=quick) for *size, quick in SIZES]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_weighted_boxes_fusion(case: Case, compare) -> None:
    compare(case)
