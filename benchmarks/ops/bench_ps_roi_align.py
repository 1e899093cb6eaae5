"""ps_roi_align and its gradient against torchvision."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torchvision
from torch import Tensor

import fastvision
from benchmarks import work
from benchmarks.harness import BASELINE, Case, Providers, backends
from fastvision.testing import cases
from fastvision.testing.numerics import assert_matches

FORWARD, BOTH = "forward", "forward and backward"
R_FCN, LIGHT, TINY = (1, 1029, 40, 56), (1, 490, 50, 76), (1, 98, 13, 17)
# (shape, boxes, samples, dtype, mode), layouts (channels_last), part of a quick run
SPECIFICATIONS = [
    ((TINY, 17, 2, torch.float32, FORWARD), (False,), True),
    ((TINY, 17, 2, torch.float32, BOTH), (False,), True),
    ((R_FCN, 300, 2, torch.float32, FORWARD), (False, True), True),
    ((R_FCN, 300, 2, torch.float32, BOTH), (False, True), True),
    ((LIGHT, 1000, 2, torch.float32, FORWARD), (False, True), False),
    ((LIGHT, 1000, 2, torch.float32, BOTH), (False, True), False),
    ((R_FCN, 300, 2, torch.bfloat16, FORWARD), (False,), False),
]
BINS, SCALE = 7, 1 / 16
GRADIENT_TERMS = 32  # a pixel's gradient sums the bins of many boxes


class Differentiated:
    """Gradient of the features: forward and backward in each call."""

    def __init__(self, forward: Any) -> None:
        self.forward = forward
        self.grad: Tensor | None = None

    def __call__(self, x: Tensor, rois: Tensor) -> Tensor:
        output = self.forward(x, rois)
        if self.grad is None:
            self.grad = torch.empty_like(output)  # in the result's memory format
            self.grad.copy_(cases.feature_map(*output.shape, seed=7))
        return torch.autograd.grad(output, x, self.grad)[0]


def ps_roi_align_case(
    shape: tuple[int, ...],
    count: int,
    sampling: int,
    dtype: torch.dtype,
    mode: str,
    *,
    channels_last: bool,
    quick: bool,
) -> Case:
    gradient = mode == BOTH

    def inputs(device: torch.device) -> tuple[Tensor, Tensor]:
        x = cases.feature_map(*shape, dtype=dtype, channels_last=channels_last).to(device)
        rois = cases.rois(count, shape[0], height=shape[2] / SCALE, width=shape[3] / SCALE)
        return x.requires_grad_(gradient), rois.to(device)

    def providers(device: torch.device) -> Providers:
        def baseline(x: Tensor, rois: Tensor) -> Tensor:
            # bfloat16 has no kernel
            wide = x.float() if dtype == torch.bfloat16 else x
            pooled = torchvision.ops.ps_roi_align(wide, rois, BINS, SCALE, sampling)
            return pooled.to(x.dtype)

        def run(x: Tensor, rois: Tensor, backend: str) -> Tensor:
            return fastvision.ops.ps_roi_align(x, rois, BINS, SCALE, sampling, backend=backend)

        ours = backends(run, device, reference=shape == TINY)
        ours.pop("triton", None)  # has no kernel
        every = {BASELINE: baseline} | ours
        return {name: Differentiated(f) if gradient else f for name, f in every.items()}

    def least_work(tensors: tuple[Tensor, Tensor], _: Tensor) -> work.Work:
        return work.ps_roi_align(*tensors, SCALE, BINS, sampling, backward=gradient)

    layout = "channels_last" if channels_last else "contiguous"
    kind = str(dtype).removeprefix("torch.")
    size = "x".join(map(str, shape))
    samples = f"{sampling}x{sampling} samples"
    return Case(
        "ps_roi_align",
        f"{mode}, {size}, {count} boxes, {BINS}x{BINS} bins, {samples}, {kind}, {layout}",
        inputs=inputs,
        providers=providers,
        check=lambda y, expected: assert_matches(
            y, expected, scale=GRADIENT_TERMS if gradient else 1
        ),
        work=least_work,
        quick=quick,
        note="torchvision through float32" if dtype != torch.float32 else "",
    )


CASES = [
    ps_roi_align_case(*specification, channels_last=last, quick=quick)
    for specification, layouts, quick in SPECIFICATIONS
    for last in layouts
]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_ps_roi_align(case: Case, compare) -> None:
    compare(case)
