"""Focal loss and its gradient against torchvision."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torchvision
from torch import Tensor
from torch.nn.functional import cross_entropy

import fastvision
from benchmarks import work
from benchmarks.harness import BASELINE, COMPILED, Case, Providers, backends, compiled
from fastvision.testing import cases
from fastvision.testing.numerics import assert_matches

TINY, MEDIUM, LARGE = (17, 5), (8, 1000, 80), (2, 120_000, 80)
KINDS, GRADIENT = ("zeros and ones", "labels", "softmax"), (False, True)
FLOAT, BFLOAT = torch.float32, torch.bfloat16
# (shape, dtype, reduction), kinds, forward or both, part of a quick run
SPECIFICATIONS = [
    ((TINY, FLOAT, "sum"), KINDS, GRADIENT, True),
    ((MEDIUM, FLOAT, "sum"), KINDS, GRADIENT, True),
    ((LARGE, FLOAT, "sum"), KINDS, GRADIENT, False),
    ((LARGE, FLOAT, "none"), KINDS[:1], (False,), False),
    ((LARGE, BFLOAT, "sum"), KINDS, GRADIENT, False),
]
# of a sigmoid with prior probability 0.01, as a detector begins; 1 % of the anchors are positive
PRIOR = -4.6
NOTES = {
    "labels": "torchvision's targets of zeros and ones are made from the labels beforehand",
    "softmax": "torchvision has none: the formula on torch's cross_entropy instead",
}


def softmax_baseline(x: Tensor, labels: Tensor) -> Tensor:
    loss = cross_entropy(x.flatten(0, -2), labels.flatten(), reduction="none")
    return ((1 - torch.exp(-loss)) ** 2 * loss).sum()


class Differentiated:
    """Loss and gradient of the logits: forward and backward in each call."""

    def __init__(self, forward: Any) -> None:
        self.forward = forward

    def __call__(self, x: Tensor, labels: Tensor, numbers: Tensor) -> tuple[Tensor, Tensor]:
        loss = self.forward(x, labels, numbers)
        return loss.detach(), torch.autograd.grad(loss / 1000, x)[0]


def focal_loss_case(
    kind: str,
    gradient: bool,
    shape: tuple[int, ...],
    dtype: torch.dtype,
    reduction: str,
    *,
    quick: bool,
) -> Case:
    def inputs(device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
        x = (cases.feature_map(*shape) + PRIOR).to(dtype).to(device)
        labels = cases.classes(x[..., 0].numel(), shape[-1]).view(shape[:-1])
        if kind != "softmax":
            chance = torch.rand(labels.shape, generator=cases.generator(3))
            labels = torch.where(chance < 0.01, labels, -1)
        # torchvision's targets, which no other kind reads: keep them small
        numbers = torch.zeros(shape if kind != "softmax" else 0, dtype=dtype)
        if kind != "softmax":
            positive = labels >= 0
            numbers[positive, labels[positive]] = 1
        return x.requires_grad_(gradient), labels.to(device), numbers.to(device)

    def baseline(x: Tensor, labels: Tensor, numbers: Tensor) -> Tensor:
        if kind == "softmax":
            return softmax_baseline(x, labels)
        return torchvision.ops.sigmoid_focal_loss(x, numbers, reduction=reduction)

    def run(x: Tensor, labels: Tensor, numbers: Tensor, backend: str) -> Tensor:
        if kind == "softmax":
            return fastvision.ops.softmax_focal_loss(
                x, labels, reduction=reduction, backend=backend
            )
        targets = labels if kind == "labels" else numbers
        return fastvision.ops.sigmoid_focal_loss(x, targets, reduction=reduction, backend=backend)

    def wrap(forward: Any) -> Any:
        return Differentiated(forward) if gradient else forward

    def providers(device: torch.device) -> Providers:
        peers: Providers = {BASELINE: baseline}
        if shape != TINY:
            peers[COMPILED] = compiled(baseline)
        ours = backends(run, device, reference=False)
        return {name: wrap(function) for name, function in (peers | ours).items()}

    def expected(x: Tensor, labels: Tensor, numbers: Tensor) -> Any:
        """In float32 also for lower precision, which torchvision's own sum does not survive."""
        wide = x.detach().float().requires_grad_(gradient)
        return wrap(baseline)(wide, labels, numbers.float())

    def check(actual: Any, wanted: Any) -> None:
        for one, other in zip(*((r if gradient else (r,)) for r in (actual, wanted)), strict=True):
            assert_matches(one, other)

    def least_work(tensors: tuple[Tensor, Tensor, Tensor], _: Any) -> work.Work:
        x, labels, numbers = tensors
        targets = numbers if kind == "zeros and ones" else labels
        losses = x.numel() if reduction == "none" else 0
        return work.focal_loss(x, targets, gradient=gradient, losses=losses)

    size = "x".join(map(str, shape))
    mode = "forward and backward" if gradient else "forward"
    return Case(
        "focal_loss",
        f"{mode}, {kind}, {size}, {str(dtype).removeprefix('torch.')}, {reduction}",
        inputs=inputs,
        providers=providers,
        check=check,
        work=least_work,
        expected=expected,
        quick=quick,
        peak_memory=shape == LARGE and gradient,
        note=NOTES.get(kind, ""),
    )


CASES = [
    focal_loss_case(kind, gradient, *specification, quick=quick)
    for specification, kinds, gradients, quick in SPECIFICATIONS
    for kind in kinds
    for gradient in gradients
]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_focal_loss(case: Case, compare) -> None:
    compare(case)
