"""roi_align_rotated and its gradient against grid_sample at the same samples, and their mean."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

import fastvision
from benchmarks import work
from benchmarks.harness import EAGER, Case
from benchmarks.rois import BOTH, FORWARD, roi_case
from fastvision.testing import cases

STRIDE_8, LARGE, TINY = (1, 256, 80, 112), (1, 256, 200, 304), (1, 5, 33, 47)
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


def sample_and_average(x: Tensor, rois: Tensor, scale: float) -> Tensor:
    """Of one image, with all samples inside of it: the border has other rules in grid_sample."""
    H, W = x.shape[2:]
    side = BINS * SAMPLING
    along = (torch.arange(side, device=x.device) + 0.5) / side - 0.5
    cx, cy, width, height = (rois[:, 1:5] * scale)[:, :, None, None].unbind(1)
    angle = rois[:, 5, None, None] * (math.pi / 180)
    v, u = along[:, None] * height, along * width
    y = v * angle.cos() - u * angle.sin() + cy
    x_at = v * angle.sin() + u * angle.cos() + cx
    grid = torch.stack([x_at * (2 / W) - 1, y * (2 / H) - 1], -1)  # [K, side, side, 2]
    samples = torch.nn.functional.grid_sample(x, grid.flatten(0, 1)[None], align_corners=False)
    means = torch.nn.functional.avg_pool2d(samples, SAMPLING)[0]
    return means.unflatten(1, (len(rois), BINS)).transpose(0, 1)


def roi_align_rotated_case(
    shape: tuple[int, ...],
    count: int,
    scale: float,
    dtype: torch.dtype,
    mode: str,
    *,
    channels_last: bool,
    quick: bool,
) -> Case:
    def boxes() -> Tensor:
        height, width = shape[2] / scale, shape[3] / scale
        largest = min(height, width, 256.0) / 2
        rois = cases.rotated(cases.rois(count, 1, min_size=largest / 8, max_size=largest))
        centre = torch.rand(count, 2, generator=cases.generator(1))
        half_diagonal = rois[:, 3:5].norm(dim=1, keepdim=True) / 2 + 1 / scale
        space = torch.tensor([width, height]) - 2 * half_diagonal
        rois[:, 1:3] = half_diagonal + centre * space.clamp(min=0)
        return rois

    def baseline(x: Tensor, rois: Tensor) -> Tensor:
        return sample_and_average(x, rois, scale)

    def run(x: Tensor, rois: Tensor, backend: str) -> Tensor:
        return fastvision.ops.roi_align_rotated(x, rois, BINS, scale, SAMPLING, backend=backend)

    def least_work(x: Tensor, rois: Tensor) -> work.Work:
        return work.roi_samples(x, rois, BINS, SAMPLING, backward=mode == BOTH)

    return roi_case(
        "roi_align_rotated",
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
        peer=EAGER,
        forward_scale=4,
    )


CASES = [
    roi_align_rotated_case(*specification, channels_last=last, quick=quick)
    for specification, layouts, quick in SPECIFICATIONS
    for last in layouts
]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_roi_align_rotated(case: Case, compare) -> None:
    compare(case)
