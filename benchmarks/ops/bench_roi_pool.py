"""roi_pool and its gradient against torchvision."""

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
LARGE, STRIDE_16, TINY = (2, 256, 200, 304), (1, 512, 50, 76), (1, 5, 33, 47)
# (shape, boxes, bins, scale, dtype, mode), layouts (channels_last), part of a quick run
SPECIFICATIONS = [
    ((TINY, 17, 7, 1 / 4, torch.float32, FORWARD), (False,), True),
    ((TINY, 17, 7, 1 / 4, torch.float32, BOTH), (False,), True),
    ((STRIDE_16, 300, 7, 1 / 16, torch.float32, FORWARD), (False, True), True),
    ((STRIDE_16, 300, 7, 1 / 16, torch.float32, BOTH), (False, True), True),
    ((LARGE, 1000, 7, 1 / 4, torch.float32, FORWARD), (False, True), False),
    ((LARGE, 1000, 7, 1 / 4, torch.float32, BOTH), (False, True), False),
    ((LARGE, 1000, 7, 1 / 4, torch.bfloat16, FORWARD), (True,), False),
]
GRADIENT_TERMS = 32  # a pixel's gradient sums the bins of many boxes


def torchvision_roi_pool(x: Tensor, rois: Tensor, bins: int, scale: float) -> Tensor:
    """16-bit features go through float32: torchvision has no kernels for them."""
    if x.element_size() == 2:
        return torchvision.ops.roi_pool(x.float(), rois, bins, scale).to(x.dtype)
    return torchvision.ops.roi_pool(x, rois, bins, scale)


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


def roi_pool_case(
    shape: tuple[int, ...],
    count: int,
    bins: int,
    scale: float,
    dtype: torch.dtype,
    mode: str,
    *,
    channels_last: bool,
    quick: bool,
) -> Case:
    gradient = mode == BOTH
    box_range = {"min_size": 8, "max_size": 64} if shape == TINY else {}

    def inputs(device: torch.device) -> tuple[Tensor, Tensor]:
        x = cases.feature_map(*shape, dtype=dtype, channels_last=channels_last).to(device)
        height, width = shape[2] / scale, shape[3] / scale
        rois = cases.rois(count, shape[0], height=height, width=width, **box_range)
        return x.requires_grad_(gradient), rois.to(device)

    def providers(device: torch.device) -> Providers:
        def baseline(x: Tensor, rois: Tensor) -> Tensor:
            return torchvision_roi_pool(x, rois, bins, scale)

        def run(x: Tensor, rois: Tensor, backend: str) -> Tensor:
            return fastvision.ops.roi_pool(x, rois, bins, scale, backend=backend)

        ours = backends(run, device, reference=shape == TINY)
        ours.pop("triton", None)  # has no kernel
        every = {BASELINE: baseline} | ours
        return {name: Differentiated(f) if gradient else f for name, f in every.items()}

    def least_work(tensors: tuple[Tensor, Tensor], _: Tensor) -> work.Work:
        x, rois = tensors
        return work.roi_pool(x, rois, scale, bins, backward=gradient)

    layout = "channels_last" if channels_last else "contiguous"
    kind = str(dtype).removeprefix("torch.")
    size = "x".join(map(str, shape))
    return Case(
        "roi_pool",
        f"{mode}, {size}, {count} boxes, {bins}x{bins} bins, {kind}, {layout}",
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
    roi_pool_case(*specification, channels_last=last, quick=quick)
    for specification, layouts, quick in SPECIFICATIONS
    for last in layouts
]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_roi_pool(case: Case, compare) -> None:
    compare(case)
