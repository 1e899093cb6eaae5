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

# (dtype, channels_last)
KINDS = [(torch.float32, False), (torch.float32, True), (torch.bfloat16, True)]


def multiscale_case(dtype: torch.dtype, channels_last: bool, images: int = 2) -> Case:
    names = ["0", "1", "2", "3"]
    image_shapes = [(cases.IMAGE_HEIGHT, cases.IMAGE_WIDTH)] * images

    def inputs(device: torch.device) -> tuple[list[Tensor], list[Tensor]]:
        maps, _ = cases.pyramid(images, 256, dtype=dtype, channels_last=channels_last)
        sizes = {"min_size": 16, "max_size": 640}  # boxes of every level
        boxes = [cases.uniform_boxes(1000 // images, seed=i, **sizes) for i in range(images)]
        return [m.to(device) for m in maps], [b.to(device) for b in boxes]

    def baseline(maps: list[Tensor], boxes: list[Tensor]) -> Tensor:
        pool = torchvision.ops.MultiScaleRoIAlign(names, 7, 2)
        if dtype != torch.float32:
            maps = [m.float() for m in maps]
        pooled = pool(dict(zip(names, maps, strict=True)), boxes, image_shapes)
        return pooled.to(dtype)

    def run(maps: list[Tensor], boxes: list[Tensor], backend: str) -> Tensor:
        scales = [1 / (4 << level) for level in range(4)]
        return fastvision.ops.multiscale_roi_align(maps, boxes, 7, scales, 2, backend=backend)

    def least_work(tensors: tuple[list[Tensor], list[Tensor]], _: Tensor) -> work.Work:
        maps, boxes = tensors
        boxes = [b.cpu() for b in boxes]
        image = torch.arange(images).repeat_interleave(1000 // images)[:, None]
        level_of = torchvision.ops.poolers.LevelMapper(2, 5)(boxes)
        rois = torch.cat([image, torch.cat(boxes)], 1)
        return work.roi_align(maps, rois, level_of, [1 / (4 << k) for k in range(4)], 7, 2)

    layout = "channels_last" if channels_last else "contiguous"
    return Case(
        "multiscale_roi_align",
        f"4 levels of {images}x256, 1000 boxes, 7x7 bins, 2x2 samples, "
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
