"""roi_align with the maximum of samples, and its gradient, against torchvision's ops together."""

from __future__ import annotations

import pytest
import torch
import torchvision
from torch import Tensor

import fastvision
from benchmarks import work
from benchmarks.harness import Case
from benchmarks.rois import BOTH, FORWARD, roi_case
from fastvision.testing import cases

STRIDE_8, LARGE, TINY = (1, 256, 80, 112), (2, 256, 200, 304), (1, 5, 33, 47)
# (shape, boxes, scale, dtype, mode), layouts (channels_last), part of a quick run
SPECIFICATIONS = [
    ((TINY, 17, 1 / 4, torch.float32, FORWARD), (False,), True),
    ((TINY, 17, 1 / 4, torch.float32, BOTH), (False,), True),
    ((STRIDE_8, 300, 1 / 8, torch.float32, FORWARD), (False, True), True),
    ((STRIDE_8, 300, 1 / 8, torch.float32, BOTH), (False, True), True),
    ((LARGE, 1000, 1 / 4, torch.float32, FORWARD), (False, True), False),
    ((LARGE, 1000, 1 / 4, torch.float32, BOTH), (False, True), False),
    ((STRIDE_8, 300, 1 / 8, torch.bfloat16, FORWARD), (True,), False),
]
BINS, SAMPLING = 7, 2


def roi_align_max_case(
    shape: tuple[int, ...],
    count: int,
    scale: float,
    dtype: torch.dtype,
    mode: str,
    *,
    channels_last: bool,
    quick: bool,
) -> Case:
    sizes = {"min_size": 8, "max_size": 64} if shape == TINY else {}

    def boxes() -> Tensor:
        height, width = shape[2] / scale, shape[3] / scale
        rois = cases.rois(count, shape[0], height=height, width=width, **sizes)
        # positions that no way of computing them rounds, for the same sample to be the largest
        corner = (rois[:, 1:3] * scale * 8).round() / 8
        bin_size = ((rois[:, 3:] - rois[:, 1:3]) * scale / BINS * 4).round().clamp(min=1) / 4
        return torch.cat([rois[:, :1], corner / scale, (corner + bin_size * BINS) / scale], 1)

    def baseline(x: Tensor, rois: Tensor) -> Tensor:
        """A bin for each sample, and the maximum of those."""
        samples = torchvision.ops.roi_align(x, rois, BINS * SAMPLING, scale, 1, True)
        return torch.nn.functional.max_pool2d(samples, SAMPLING)

    def run(x: Tensor, rois: Tensor, backend: str) -> Tensor:
        return fastvision.ops.roi_align(
            x, rois, BINS, scale, SAMPLING, True, pool_mode="max", backend=backend
        )

    def least_work(x: Tensor, rois: Tensor) -> work.Work:
        return work.roi_samples(x, rois, BINS, SAMPLING, backward=mode == BOTH, argmax=True)

    return roi_case(
        "roi_align_max",
        mode,
        shape,
        count,
        f"{BINS}x{BINS} bins, {SAMPLING}x{SAMPLING} samples",
        dtype,
        boxes=boxes,
        baseline=baseline,
        run=run,
        least_work=least_work,
        channels_last=channels_last,
        quick=quick,
        reference=shape == TINY,
    )


CASES = [
    roi_align_max_case(*specification, channels_last=last, quick=quick)
    for specification, layouts, quick in SPECIFICATIONS
    for last in layouts
]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_roi_align_max(case: Case, compare) -> None:
    compare(case)
