"""roi_align and its gradient against torchvision."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torchvision
from torch import Tensor

import fastvision
from benchmarks import work
from benchmarks.harness import BASELINE, COMPILED, Case, Providers, backends, compiled
from fastvision.testing import cases
from fastvision.testing.numerics import assert_matches

FORWARD, BACKWARD, BOTH = "forward", "backward", "forward and backward"
LARGE, TINY = (2, 256, 200, 304), (1, 5, 33, 47)
FLOAT, BFLOAT, HALF = torch.float32, torch.bfloat16, torch.float16
NCHW, LAST, LAYOUTS = (False,), (True,), (False, True)  # channels_last
# (shape, boxes, bins, samples or 0 for adaptive, dtype, mode), layouts, part of a quick run
SPECIFICATIONS = [
    ((TINY, 17, 7, 2, FLOAT, FORWARD), NCHW, True),
    ((TINY, 17, 7, 2, FLOAT, BOTH), NCHW, True),
    ((LARGE, 1000, 7, 2, FLOAT, FORWARD), LAYOUTS, True),
    ((LARGE, 1000, 7, 2, FLOAT, BOTH), LAYOUTS, False),
    ((LARGE, 1000, 7, 0, FLOAT, FORWARD), LAYOUTS, False),
    ((LARGE, 1000, 7, 0, FLOAT, BOTH), LAYOUTS, False),
    ((LARGE, 512, 14, 2, FLOAT, FORWARD), LAYOUTS, False),
    ((LARGE, 512, 14, 2, FLOAT, BOTH), LAYOUTS, False),
    ((LARGE, 1, 7, 2, FLOAT, FORWARD), LAYOUTS, False),
    ((LARGE, 1000, 7, 2, BFLOAT, FORWARD), LAYOUTS, False),
    ((LARGE, 1000, 7, 2, HALF, FORWARD), LAYOUTS, False),
    ((LARGE, 1000, 14, 2, BFLOAT, FORWARD), LAST, False),
    ((LARGE, 1000, 7, 2, BFLOAT, BOTH), LAST, False),
    ((LARGE, 1000, 7, 2, BFLOAT, BACKWARD), LAST, False),
]
SCALE = 0.25
GRADIENT_TERMS = 32  # a pixel's gradient sums the bins of many boxes


def torchvision_roi_align(
    x: Tensor, rois: Tensor, bins: int, scale: float, sampling: int
) -> Tensor:
    """16-bit features go through float32, as under autocast: bfloat16 kernels do not exist."""
    if x.element_size() == 2:
        x_float = x.float()
        return torchvision.ops.roi_align(x_float, rois, bins, scale, sampling).to(x.dtype)
    return torchvision.ops.roi_align(x, rois, bins, scale, sampling)


class Differentiated:
    """Gradient of the features: forward and backward in each call, or the backward alone."""

    def __init__(self, forward: Any, *, again: bool) -> None:
        self.forward, self.again = forward, again
        self.output: Tensor | None = None
        self.grad: Tensor | None = None

    def __call__(self, x: Tensor, rois: Tensor) -> Tensor:
        if self.again or self.output is None:
            self.output = self.forward(x, rois)
        if self.grad is None:
            self.grad = torch.empty_like(self.output)  # in the result's memory format
            self.grad.copy_(cases.feature_map(*self.output.shape, seed=7))
        return torch.autograd.grad(self.output, x, self.grad, retain_graph=not self.again)[0]


def roi_align_case(
    shape: tuple[int, ...],
    count: int,
    bins: int,
    sampling: int,
    dtype: torch.dtype,
    mode: str,
    *,
    channels_last: bool,
    quick: bool,
) -> Case:
    gradient = mode != FORWARD
    box_range = {"min_size": 8, "max_size": 64} if shape == TINY else {}
    height, width = shape[2] / SCALE, shape[3] / SCALE

    def inputs(device: torch.device) -> tuple[Tensor, Tensor]:
        x = cases.feature_map(*shape, dtype=dtype, channels_last=channels_last).to(device)
        rois = cases.rois(count, shape[0], height=height, width=width, **box_range)
        return x.requires_grad_(gradient), rois.to(device)

    def wrap(forward: Any) -> Any:
        if not gradient:
            return forward
        return Differentiated(forward, again=mode == BOTH)

    def providers(device: torch.device) -> Providers:
        def baseline(x: Tensor, rois: Tensor) -> Tensor:
            return torchvision_roi_align(x, rois, bins, SCALE, sampling)

        def run(x: Tensor, rois: Tensor, backend: str) -> Tensor:
            return fastvision.ops.roi_align(x, rois, bins, SCALE, sampling, backend=backend)

        peers = {BASELINE: baseline}
        if mode == FORWARD and (bins, sampling, dtype) == (7, 2, torch.float32) and count == 1000:
            peers[COMPILED] = compiled(baseline)
        ours = backends(run, device, reference=shape == TINY)
        return {name: wrap(function) for name, function in (peers | ours).items()}

    def least_work(tensors: tuple[Tensor, Tensor], _: Tensor) -> work.Work:
        x, rois = tensors
        level_of = torch.zeros(len(rois), dtype=torch.int64)
        directions = {"forward": mode != BACKWARD, "backward": gradient}
        return work.roi_align([x], rois, level_of, [SCALE], bins, sampling, **directions)

    layout = "channels_last" if channels_last else "contiguous"
    kind = str(dtype).removeprefix("torch.")
    samples = f"{sampling}x{sampling} samples" if sampling else "adaptive samples"
    size = "x".join(map(str, shape))
    boxes = "1 box" if count == 1 else f"{count} boxes"
    return Case(
        "roi_align",
        f"{mode}, {size}, {boxes}, {bins}x{bins} bins, {samples}, {kind}, {layout}",
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
    roi_align_case(*specification, channels_last=last, quick=quick)
    for specification, layouts, quick in SPECIFICATIONS
    for last in layouts
]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_roi_align(case: Case, compare) -> None:
    compare(case)
