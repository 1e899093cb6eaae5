"""ps_roi_pool and its gradient against torchvision."""

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

R_FCN, LIGHT, TINY = (1, 1029, 40, 56), (1, 490, 50, 76), (1, 98, 13, 17)
# (shape, boxes, dtype, mode), layouts (channels_last), part of a quick run
SPECIFICATIONS = [
    ((TINY, 17, torch.float32, FORWARD), (False,), True),
    ((TINY, 17, torch.float32, BOTH), (False,), True),
    ((R_FCN, 300, torch.float32, FORWARD), (False, True), True),
    ((R_FCN, 300, torch.float32, BOTH), (False, True), True),
    ((LIGHT, 1000, torch.float32, FORWARD), (False, True), False),
    ((LIGHT, 1000, torch.float32, BOTH), (False, True), False),
    ((R_FCN, 300, torch.bfloat16, FORWARD), (False,), False),
]
BINS, SCALE = 7, 1 / 16


def ps_roi_pool_case(
    shape: tuple[int, ...],
    count: int,
    dtype: torch.dtype,
    mode: str,
    *,
    channels_last: bool,
    quick: bool,
) -> Case:
    height, width = shape[2] / SCALE, shape[3] / SCALE

    def boxes() -> Tensor:
        rois = cases.rois(count, shape[0], height=height, width=width)
        # where torchvision's gradient is of other bins than its forward's
        rois[:, 3].clamp_(max=width - 2 / SCALE)
        rois[:, 4].clamp_(max=height - 2 / SCALE)
        return rois

    def baseline(x: Tensor, rois: Tensor) -> Tensor:
        return torchvision.ops.ps_roi_pool(x, rois, BINS, SCALE)

    def run(x: Tensor, rois: Tensor, backend: str) -> Tensor:
        return fastvision.ops.ps_roi_pool(x, rois, BINS, SCALE, backend=backend)

    def least_work(x: Tensor, rois: Tensor) -> work.Work:
        return work.ps_roi_pool(x, rois, SCALE, BINS, backward=mode == BOTH)

    return roi_case(
        "ps_roi_pool",
        mode,
        shape,
        count,
        f"{BINS}x{BINS} bins",
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
    ps_roi_pool_case(*specification, channels_last=last, quick=quick)
    for specification, layouts, quick in SPECIFICATIONS
    for last in layouts
]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_ps_roi_pool(case: Case, compare) -> None:
    compare(case)
