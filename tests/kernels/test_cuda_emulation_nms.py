"""The CUDA NMS kernels, run on the CPU (tests/cuda_emulation), against the reference."""

from __future__ import annotations

import math
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

from fastvision import reference
from fastvision.testing import cases
from fastvision.testing.nms import chain_boxes, grid_boxes
from fastvision.testing.numerics import DTYPES
from fastvision.testing.tensors import dtype_id

sys.path.append(str(Path(__file__).parents[1]))
import cuda_emulation

pytestmark = pytest.mark.skipif(cuda_emulation.COMPILER is None, reason="needs a C++ compiler")


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return cuda_emulation.build(
        tmp_path_factory.mktemp("nms") / "nms",
        cuda_emulation.HERE / "driver_nms.cpp",
        cuda_emulation.ROOT / "csrc/cuda/nms.cu",
    )


@pytest.fixture
def check(program: Path, tmp_path: Path):
    """Compares one call with the reference, blocks and threads running in either order."""

    def check(
        boxes: Tensor,
        scores: Tensor,
        idxs: Tensor | None = None,
        iou_threshold: float = 0.5,
        *,
        score_threshold: float | None = None,
        max_output: int | None = None,
        chunk: int = 0,
        orders: tuple[bool, ...] = (False, True),
        expected: tuple[Tensor, Tensor] | None = None,
    ) -> None:
        if boxes.dim() == 2:
            boxes, scores = boxes[None], scores[None]
            idxs = None if idxs is None else idxs[None]
        images, count = scores.shape
        max_output = count if max_output is None else max_output
        inputs = {
            "boxes": boxes.contiguous().view(torch.uint8).numpy(),
            "scores": scores.contiguous().view(torch.uint8).numpy(),
        }
        (tmp_path / "idxs").unlink(missing_ok=True)
        if idxs is not None:
            inputs["idxs"] = idxs.numpy()
        if expected is None:
            expected = reference.nms_padded(
                boxes, scores, idxs, iou_threshold, score_threshold, max_output
            )
        for reverse in orders:
            result = cuda_emulation.run(
                program,
                tmp_path,
                str(boxes.dtype).removeprefix("torch."),
                images,
                count,
                repr(iou_threshold),
                "none" if score_threshold is None else repr(score_threshold),
                max_output,
                chunk,
                inputs=inputs,
                reverse=reverse,
            )
            assert result.returncode == 0, result.stderr
            indices = cuda_emulation.read(tmp_path / "indices", "int64").reshape(images, max_output)
            counts = cuda_emulation.read(tmp_path / "counts", "int64")
            assert torch.from_numpy(counts).equal(expected[1])
            assert torch.from_numpy(indices).equal(expected[0])

    return check


def scene(
    count: int, dtype: torch.dtype = torch.float32, classes: int = 1, seed: int = 0
) -> tuple[Tensor, Tensor, Tensor]:
    """Overlapping boxes, scores with many ties, and class labels."""
    boxes = cases.clustered_boxes(count, seed=seed, objects=max(1, count // 25))
    scores = (cases.scores(count, seed=seed + 1) * 50).round() / 50
    return boxes.to(dtype), scores.to(dtype), cases.classes(count, classes, seed=seed + 2)


@pytest.mark.parametrize("count", [1, 2, 63, 64, 65, 200, 1100])
@pytest.mark.parametrize("dtype", DTYPES, ids=dtype_id)
def test_one_class(check, count: int, dtype: torch.dtype) -> None:
    boxes, scores, _ = scene(count, dtype)
    check(boxes, scores)


@pytest.mark.parametrize("dtype", DTYPES, ids=dtype_id)
def test_classes_and_images(check, dtype: torch.dtype) -> None:
    parts = [scene(200, dtype, classes=7, seed=seed) for seed in range(3)]
    check(*(torch.stack(tensors) for tensors in zip(*parts, strict=True)), 0.3, max_output=60)


@pytest.mark.parametrize("chunk", [64, 128, 256])
@pytest.mark.parametrize("classes", [1, 3])
def test_chunks(check, chunk: int, classes: int) -> None:
    boxes, scores, idxs = scene(700, classes=classes)
    check(boxes, scores, idxs, 0.4, chunk=chunk)


def test_chunks_of_many_kept_boxes(check) -> None:
    # more kept boxes than all blocks of a tile compare in one go, and copies of some at the end
    row, column = torch.arange(8800.0) // 100, torch.arange(8800.0) % 100
    boxes = torch.stack([column, row, column + 1, row + 1], 1)
    boxes = torch.cat([boxes, boxes[torch.arange(20, 8700, 90)]])
    check(
        boxes,
        torch.linspace(1, 0, len(boxes)),
        max_output=9000,
        chunk=512,
        orders=(False,),
        expected=(
            torch.cat([torch.arange(8800), torch.full((200,), -1)])[None],
            torch.tensor([8800]),
        ),
    )


@pytest.mark.parametrize("max_output", [1, 40, 150])
@pytest.mark.parametrize("classes", [1, 3])
def test_later_chunks_are_skipped(check, classes: int, max_output: int) -> None:
    boxes, scores = cases.uniform_boxes(700, max_size=60), cases.scores(700)
    check(boxes, scores, cases.classes(700, classes), 0.3, max_output=max_output, chunk=64)


def test_sizes_mixed_in_one_call(check) -> None:
    boxes, scores, idxs = scene(400, classes=40)
    idxs[torch.arange(400) % 3 > 0] = 5  # one class of several chunks among classes of a few boxes
    check(boxes, scores, idxs, chunk=64)


@pytest.mark.parametrize("chunk", [0, 64])
def test_arbitrary_labels(check, chunk: int) -> None:
    # equal in their low bits, or under the hash; negative and extreme ones
    labels = [0, 1 << 16, 1 << 32, -1, -(1 << 63), (1 << 63) - 1, 0xFFFF, 0xFFFF << 16, 0x10001]
    boxes, scores, idxs = scene(300, classes=len(labels))
    check(boxes, scores, torch.tensor(labels)[idxs], chunk=chunk)


@pytest.mark.parametrize("dtype", DTYPES, ids=dtype_id)
def test_score_threshold(check, dtype: torch.dtype) -> None:
    boxes, scores, idxs = (t.reshape(2, 150, *t.shape[1:]) for t in scene(300, dtype, classes=2))
    scores[0, ::7] = math.nan
    check(boxes, scores, idxs, score_threshold=0.3)
    check(boxes, scores, None, score_threshold=0.3, max_output=11)
    check(boxes, scores, idxs, score_threshold=2.0)


@pytest.mark.parametrize("dtype", DTYPES, ids=dtype_id)
def test_special_values(check, dtype: torch.dtype) -> None:
    boxes, scores, idxs = scene(200, dtype, classes=2)
    for row, value in enumerate([math.nan, math.inf, -math.inf]):
        for column in range(4):
            boxes[4 * row + column, column] = value
    boxes[20, :] = math.nan
    boxes[21, 2:] = math.inf
    boxes[22, :2] = -math.inf
    boxes[23] = boxes[24, [2, 3, 0, 1]]  # corners exchanged
    boxes[25, 2] = boxes[25, 0]  # no area
    boxes[26:28] = 3.0  # twice the same point
    boxes[28:30] = boxes[30]
    scores[::9] = math.nan
    scores[1::17] = math.inf
    scores[2::17] = -math.inf
    scores[3::17] = -0.0
    scores[4::17] = 0.0
    check(boxes, scores, idxs)
    check(boxes, scores, idxs, 0.0)
    check(boxes, scores, idxs, -0.5)
    check(boxes, scores, idxs, math.nan)


@pytest.mark.parametrize("threshold", [1 / 3, 0.1, 0.5, 0.7, 1.0, 1.5])
@pytest.mark.parametrize("dtype", DTYPES, ids=dtype_id)
def test_iou_at_the_threshold(check, threshold: float, dtype: torch.dtype) -> None:
    check(grid_boxes(120).to(dtype), cases.scores(120).to(dtype), None, threshold)


@pytest.mark.parametrize(("part", "whole"), [(13, 22), (7, 23), (3, 37), (1, 41)])
def test_iou_that_rounds_to_the_threshold(check, part: int, whole: int) -> None:
    # one box inside the other: the IoU is a little more than the threshold, and equal once rounded
    threshold = torch.tensor(part / whole).item()
    assert threshold * whole < part
    boxes = torch.tensor([[0.0, 0, whole, 1], [0, 0, part, 1]])
    check(boxes, torch.tensor([0.9, 0.8]), None, threshold)
    check(boxes, torch.tensor([0.9, 0.8]), None, math.nextafter(threshold, 0))


def test_tiny_and_huge_boxes(check) -> None:
    # areas that are subnormal, zero by underflow, and infinite by overflow
    for scale in (1e-19, 1e-22, 1e-30, 1e18, 1e20):
        boxes, scores, _ = scene(80)
        check(boxes * scale, scores)


def test_chain(check) -> None:
    boxes = chain_boxes(150)
    check(boxes, torch.linspace(1, 0, 150), None, 0.3)
    check(boxes, torch.linspace(1, 0, 150), None, 0.3, chunk=64)


@pytest.mark.parametrize(("images", "count", "max_output"), [(2, 0, 3), (0, 5, 3), (2, 5, 0)])
def test_empty(check, images: int, count: int, max_output: int) -> None:
    check(torch.rand(images, count, 4), torch.rand(images, count), max_output=max_output)
