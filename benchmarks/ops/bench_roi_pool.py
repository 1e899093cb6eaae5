"""roi_pool and its gradient against torchvision."""

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

LARGE, STRIDE_16, TINY = (2, 256, 200, 304), (1, 512, 50, 76), (1, 5, 33, 47)
STRIDE_8 = (1, 256, 80, 112)
# (shape, boxes, bins, scale, dtype, mode), layouts (channels_last), part of a quick run
SPECIFICATIONS = [
    ((TINY, 17, 7, 1 / 4, torch.float32, FORWARD), (False,), True),
    ((TINY, 17, 7, 1 / 4, torch.float32, BOTH), (False,), True),
    ((STRIDE_16, 300, 7, 1 / 16, torch.float32, FORWARD), (False, True), True),
    ((STRIDE_16, 300, 7, 1 / 16, torch.float32, BOTH), (False, True), True),
    ((STRIDE_8, 300, 7, 1 / 8, torch.float32, FORWARD), (False, True), False),
    ((STRIDE_8, 300, 7, 1 / 8, torch.float32, BOTH), (False, True), False),
    ((LARGE, 1000, 7, 1 / 4, torch.float32, FORWARD), (False, True), False),
    ((LARGE, 1000, 7, 1 / 4, torch.float32, BOTH), (False, True), False),
    ((LARGE, 1000, 7, 1 / 4, torch.bfloat16, FORWARD), (True,), False),
]


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
    height, width = shape[2] / scale, shape[3] / scale
    sizes = {"min_size": 8, "max_size": 64} if shape == TINY else {}

    def boxes() -> Tensor:
        return cases.rois(count, shape[0], height=height, width=width, **sizes)

    def baseline(x: Tensor, rois: Tensor) -> Tensor:
        return torchvision.ops.roi_pool(x, rois, bins, scale)

    def run(x: Tensor, rois: Tensor, backend: str) -> Tensor:
        return fastvision.ops.roi_pool(x, rois, bins, scale, backend=backend)

    def least_work(x: Tensor, rois: Tensor) -> work.Work:
        return work.roi_pool(x, rois, scale, bins, backward=mode == BOTH)

    return roi_case(
        "roi_pool",
        mode,
        shape,
        count,
        f"{bins}x{bins} bins",
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
    roi_pool_case(*specification, channels_last=last, quick=quick)
    for specification, layouts, quick in SPECIFICATIONS
    for last in layouts
]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_roi_pool(case: Case, compare) -> None:
    compare(case)
