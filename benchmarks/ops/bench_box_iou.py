"""Overlaps of all pairs of boxes, and losses of boxes one by one, against torchvision."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torchvision
from torch import Tensor

import fastvision
from benchmarks import peers, work
from benchmarks.harness import BASELINE, COMPILED, Case, Providers, backends, compiled
from fastvision.testing import cases
from fastvision.testing.numerics import assert_matches

KINDS = {
    "iou": "box_iou",
    "generalized": "generalized_box_iou",
    "distance": "distance_box_iou",
    "complete": "complete_box_iou",
}
# anchors or proposals and objects; with gradients; part of a quick run
COUNTS = [((10, 10), False, True), ((5000, 700), False, True), ((1000, 300), True, True)]
LOSS_COUNTS = (100, 100_000)


def gradients(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Of both sets of boxes, through forward and backward."""

    def run(*boxes: Tensor) -> Tensor:
        leaves = [b.detach().requires_grad_() for b in boxes]
        return torch.cat(torch.autograd.grad(function(*leaves).sum(), leaves))

    return run


def providers_of(name: str, device: torch.device, *, gradient: bool, peer: bool) -> Providers:
    def wrapped(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
        return gradients(function) if gradient else function

    theirs = getattr(torchvision.ops, name)
    ours = {
        backend: wrapped(function)
        for backend, function in backends(
            getattr(fastvision.ops, name), device, reference=False
        ).items()
        if backend != "cuda"
    }
    baselines = {BASELINE: wrapped(theirs)}
    if not gradient:
        baselines[COMPILED] = compiled(theirs)
    return baselines | (peers.overlaps(name, device) if peer else {}) | ours


def pairs_case(kind: str, counts: tuple[int, int], *, gradient: bool, quick: bool) -> Case:
    def inputs(device: torch.device) -> tuple[Tensor, ...]:
        return tuple(
            cases.uniform_boxes(n, seed=i, max_size=256).to(device) for i, n in enumerate(counts)
        )

    suffix = ", forward and backward" if gradient else ""
    return Case(
        "box_iou",
        f"{KINDS[kind]}{suffix}, {counts[0]}x{counts[1]}",
        inputs=inputs,
        providers=lambda device: providers_of(
            KINDS[kind],
            device,
            gradient=gradient,
            peer=not gradient,
        ),
        check=lambda actual, expected: assert_matches(
            actual.float(), expected, scale=100 if gradient else 1
        ),
        work=lambda tensors, _: work.box_iou(*tensors, kind, backward=gradient),
        quick=quick,
        peak_memory=counts == (5000, 700),
    )


def loss_case(kind: str, count: int) -> Case:
    name = f"{KINDS[kind]}_loss"
    per_box = work.OVERLAP_FLOPS[kind]
    return Case(
        "box_iou",
        f"{name}, forward and backward, {count}",
        inputs=lambda device: tuple(
            cases.uniform_boxes(count, seed=i, max_size=256).to(device) for i in range(2)
        ),
        providers=lambda device: providers_of(name, device, gradient=True, peer=False),
        check=lambda actual, expected: assert_matches(actual, expected),
        work=lambda tensors, _: work.Work(16 * tensors[0].numel(), 3 * count * per_box),
        quick=count == LOSS_COUNTS[-1],
    )


CASES = [
    *(
        pairs_case(kind, counts, gradient=gradient, quick=quick)
        for counts, gradient, quick in COUNTS
        for kind in KINDS
    ),
    *(loss_case(kind, count) for count in LOSS_COUNTS for kind in KINDS if kind != "iou"),
]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_box_iou(case: Case, compare) -> None:
    compare(case)
