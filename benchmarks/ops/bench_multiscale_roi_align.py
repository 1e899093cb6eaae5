"""multiscale_roi_align against torchvision's MultiScaleRoIAlign."""

from __future__ import annotations

import pytest
import torch
import torchvision
from torch import Tensor

import fastvision
from benchmarks import work
from benchmarks.harness import BASELINE, Case, backends
from fastvision.testing import cases
from fastvision.testing.numerics import assert_matches

IMAGES, CHANNELS, LEVELS, BOXES, BINS, SAMPLES = 2, 256, 4, 1000, 7, 2
SIZES = {"min_size": 16, "max_size": 640}  # boxes of every level
SCALES = [1 / (4 << level) for level in range(LEVELS)]
# (dtype, channels_last)
KINDS = [(torch.float32, False), (torch.float32, True), (torch.bfloat16, True)]


def multiscale_case(dtype: torch.dtype, channels_last: bool) -> Case:
    names = [str(level) for level in range(LEVELS)]
    image_shapes = [(cases.IMAGE_HEIGHT, cases.IMAGE_WIDTH)] * IMAGES
    each = BOXES // IMAGES

    def inputs(device: torch.device) -> tuple[list[Tensor], list[Tensor]]:
        maps, _ = cases.pyramid(
            IMAGES, CHANNELS, levels=LEVELS, dtype=dtype, channels_last=channels_last
        )
        boxes = [cases.uniform_boxes(each, seed=i, **SIZES) for i in range(IMAGES)]
        return [m.to(device) for m in maps], [b.to(device) for b in boxes]

    def baseline(maps: list[Tensor], boxes: list[Tensor]) -> Tensor:
        pool = torchvision.ops.MultiScaleRoIAlign(names, BINS, SAMPLES)
        if dtype != torch.float32:
            maps = [m.float() for m in maps]
        pooled = pool(dict(zip(names, maps, strict=True)), boxes, image_shapes)
        return pooled.to(dtype)

    def run(maps: list[Tensor], boxes: list[Tensor], backend: str) -> Tensor:
        return fastvision.ops.multiscale_roi_align(
            maps, boxes, BINS, SCALES, SAMPLES, backend=backend
        )

    def least_work(tensors: tuple[list[Tensor], list[Tensor]], _: Tensor) -> work.Work:
        maps, boxes = tensors
        boxes = [b.cpu() for b in boxes]
        image = torch.arange(IMAGES).repeat_interleave(each)[:, None]
        level_of = torchvision.ops.poolers.LevelMapper(2, 5)(boxes)
        rois = torch.cat([image, torch.cat(boxes)], 1)
        return work.roi_align(maps, rois, level_of, SCALES, BINS, SAMPLES)

    layout = "channels_last" if channels_last else "contiguous"
    return Case(
        "multiscale_roi_align",
        f"{LEVELS} levels of {IMAGES}x{CHANNELS}, {BOXES} boxes, {BINS}x{BINS} bins, "
        f"{SAMPLES}x{SAMPLES} samples, "
        f"{str(dtype).removeprefix('torch.')}, {layout}",
        inputs=inputs,
        providers=lambda device: {BASELINE: baseline} | backends(run, device, reference=False),
        check=assert_matches,
        work=least_work,
        quick=False,
        note="torchvision through float32" if dtype != torch.float32 else "",
    )


CASES = [multiscale_case(*kind) for kind in KINDS]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_multiscale_roi_align(case: Case, compare) -> None:
    compare(case)
