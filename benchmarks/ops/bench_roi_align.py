"""roi_align and its gradient against torchvision."""

from __future__ import annotations

import pytest
import torch
import torchvision
from torch import Tensor

import fastvision
from benchmarks import peers, work
from benchmarks.harness import Case, Providers
from benchmarks.rois import BACKWARD, BOTH, FORWARD, roi_case
from fastvision.testing import cases

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
    height, width = shape[2] / SCALE, shape[3] / SCALE
    sizes = {"min_size": 8, "max_size": 64} if shape == TINY else {}

    def boxes() -> Tensor:
        return cases.rois(count, shape[0], height=height, width=width, **sizes)

    def baseline(x: Tensor, rois: Tensor) -> Tensor:
        return torchvision.ops.roi_align(x, rois, bins, SCALE, sampling)

    def run(x: Tensor, rois: Tensor, backend: str) -> Tensor:
        return fastvision.ops.roi_align(x, rois, bins, SCALE, sampling, backend=backend)

    def least_work(x: Tensor, rois: Tensor) -> work.Work:
        level_of = torch.zeros(len(rois), dtype=torch.int64)
        directions = {"forward": mode != BACKWARD, "backward": mode != FORWARD}
        return work.roi_align([x], rois, level_of, [SCALE], bins, sampling, **directions)

    def others(device: torch.device) -> Providers:
        return peers.roi_align(bins, SCALE, sampling, device)

    plain = mode == FORWARD and dtype == FLOAT and not channels_last
    samples = f"{sampling}x{sampling} samples" if sampling else "adaptive samples"
    return roi_case(
        "roi_align",
        mode,
        shape,
        count,
        f"{bins}x{bins} bins, {samples}",
        dtype,
        boxes=boxes,
        baseline=baseline,
        run=run,
        least_work=least_work,
        channels_last=channels_last,
        quick=quick,
        reference=shape == TINY,
        triton=True,
        others=others if plain else None,
        compile=mode == FORWARD and (bins, sampling, dtype) == (7, 2, FLOAT) and count == 1000,
    )


CASES = [
    roi_align_case(*specification, channels_last=last, quick=quick)
    for specification, layouts, quick in SPECIFICATIONS
    for last in layouts
]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_roi_align(case: Case, compare) -> None:
    compare(case)
