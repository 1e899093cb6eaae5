"""NMS of solid boxes: the greedy choice by the overlaps of box_iou_3d, on every backend."""

from __future__ import annotations

import math

import pytest
import torch

from fastvision import _extension
from fastvision.ops import box_iou_3d, nms, nms_3d, nms_rotated
from fastvision.testing import cases
from fastvision.testing.backends import LEVELS
from fastvision.testing.boxes import solid_boxes
from fastvision.testing.marks import needs_library
from fastvision.testing.nms import expect, expect_greedy, scores_for, special_solid_boxes
from fastvision.testing.numerics import DTYPES, TOLERANCES
from fastvision.testing.tensors import dtype_id
from fastvision.testing.threads import same_for_threads

# the numpy under Triton's interpreter warns of NaNs and infinities, which are meant here
pytestmark = [
    pytest.mark.filterwarnings("ignore:.*encountered in:RuntimeWarning"),
    pytest.mark.usefixtures("poisoned_memory"),
]
OP = torch.ops.fastvision.nms_3d.default
THRESHOLDS = (-1.0, 0.05, 0.1, 0.3, 0.7, 1.5, math.nan)
SOLID = {
    "uniform": lambda count, seed: solid_boxes(count, seed=seed, extent=40),
    "special": special_solid_boxes,
}


def test_known_numbers(backend):
    boxes = torch.tensor(
        [
            [0.0, 0.0, 0.0, 2.0, 2.0, 2.0, 0.0],
            [0.0, 0.0, 1.0, 2.0, 2.0, 2.0, math.pi / 2],  # 1 / 3 with the first
            [0.0, 0.0, 0.0, 2.0, 2.0, 2.0, math.pi],  # equals the first
            [0.0, 0.0, 2.5, 2.0, 2.0, 2.0, 0.0],  # above the first, 1 / 7 with the second
            [0.0, 0.0, 0.0, 2.0, 2.0, 1.0, 0.0],  # half of the first
        ],
        device=backend.device,
    )
    scores = torch.tensor([0.9, 0.8, 0.7, 0.6, 0.5], device=backend.device)
    kept = {
        t: nms_3d(boxes, scores, t, backend=backend.name).tolist() for t in (0.1, 0.3, 0.4, 0.6)
    }
    assert kept == {0.1: [0, 3], 0.3: [0, 3], 0.4: [0, 1, 3], 0.6: [0, 1, 3, 4]}
    assert nms_3d(boxes, scores, 0.6, bev=True, backend=backend.name).tolist() == [0]
    idxs = torch.tensor([0, 1, 1, 0, 0.5], device=backend.device)
    expect(nms_3d(boxes, scores, 0.3, idxs=idxs, backend=backend.name), torch.tensor([0, 1, 3, 4]))


@pytest.mark.parametrize("dtype", DTYPES, ids=dtype_id)
@pytest.mark.parametrize("with_classes", (False, True), ids=("one_class", "classes"))
def test_is_greedy(backend, with_classes, dtype):
    """By overlaps in float64, but for those within rounding of the threshold."""
    count = 50 if backend.interpreted else 330
    boxes = SOLID["uniform"](count, 1).to(dtype)
    idxs = cases.classes(count, 3) if with_classes else None
    overlaps = box_iou_3d(boxes.double(), boxes.double(), backend="reference")
    tolerance = TOLERANCES[torch.promote_types(dtype, torch.float32)]
    for seed, threshold in enumerate((0.05, 0.3) if backend.interpreted else THRESHOLDS):
        scores = scores_for(count, seed).to(dtype)
        kept = nms_3d(
            boxes.to(backend.device),
            scores.to(backend.device),
            threshold,
            idxs=None if idxs is None else idxs.to(backend.device),
            backend=backend.name,
        )
        expect_greedy(kept.cpu(), overlaps, scores, idxs, threshold, tolerance=tolerance)


@pytest.mark.parametrize("kind", SOLID)
def test_decides_by_box_iou_3d(backend, kind):
    """Exactly: what is skipped before the geometry has too small an overlap."""
    count = 50 if backend.interpreted else 400
    boxes = SOLID[kind](count, 2).to(backend.device)
    overlaps = box_iou_3d(boxes, boxes, backend=backend.name)
    for seed, threshold in enumerate((-0.5, 0.1) if backend.interpreted else THRESHOLDS):
        scores = scores_for(count, seed)
        kept = nms_3d(boxes, scores.to(backend.device), threshold, backend=backend.name)
        expect_greedy(kept.cpu(), overlaps, scores, None, threshold)


@pytest.mark.parametrize("dtype", DTYPES, ids=dtype_id)
def test_corners(backend, dtype):
    """Of equal heights, as nms."""
    flat, scores = cases.uniform_boxes(40).to(dtype) / 4, cases.scores(40).to(dtype)
    low, high = flat[:, :2], flat[:, 2:]
    one = torch.ones_like(low[:, :1])
    boxes = torch.cat([low, -one, high, one], 1)
    expected = nms(flat, scores, 0.2)
    assert len(expected) < 40
    for bev in (False, True):
        kept = nms_3d(
            boxes.to(backend.device),
            scores.to(backend.device),
            0.2,
            fmt="xyzxyz",
            bev=bev,
            backend=backend.name,
        )
        expect(kept, expected)


@pytest.mark.parametrize("dtype", DTYPES, ids=dtype_id)
def test_seen_from_above(backend, dtype):
    boxes, scores = SOLID["uniform"](40, 3).to(dtype), cases.scores(40).to(dtype)
    flat = boxes[:, [0, 1, 3, 4, 6]].double()
    flat[:, 4] *= -180 / math.pi
    for idxs in (None, cases.classes(40, 2)):
        kept = nms_3d(
            boxes.to(backend.device),
            scores.to(backend.device),
            0.2,
            bev=True,
            idxs=None if idxs is None else idxs.to(backend.device),
            backend=backend.name,
        )
        expect(kept, nms_rotated(flat, scores.double(), 0.2, idxs=idxs))


@pytest.mark.parametrize("dtype", DTYPES, ids=dtype_id)
@pytest.mark.parametrize("count", (0, 1))
def test_few(backend, dtype, count):
    boxes = torch.ones(count, 7, dtype=dtype, device=backend.device)
    scores = torch.ones(count, dtype=dtype, device=backend.device)
    for options in ({}, {"idxs": torch.zeros(count, device=backend.device)}, {"bev": True}):
        kept = nms_3d(boxes, scores, 0.5, backend=backend.name, **options)
        assert kept.dtype == torch.int64 and kept.device.type == backend.device
        assert kept.tolist() == list(range(count))


def test_non_contiguous(backend):
    boxes, scores = SOLID["uniform"](40, 5).to(backend.device), cases.scores(40)
    scores = scores.to(backend.device)
    expected = nms_3d(boxes, scores, 0.1, backend=backend.name)
    rows = torch.cat([scores[:, None], boxes, scores[:, None]], 1)
    expect(nms_3d(rows[:, 1:8], rows[:, 8], 0.1, backend=backend.name), expected)


@pytest.mark.parametrize(
    ("error", "message", "boxes", "options"),
    (
        (RuntimeError, r"boxes must have shape \[N, 7\], got \[7\]", torch.rand(7), {}),
        (RuntimeError, r"boxes must have shape \[N, 7\], got \[3, 6\]", torch.rand(3, 6), {}),
        (
            RuntimeError,
            r"boxes must have shape \[N, 6\], got \[3, 7\]",
            torch.rand(3, 7),
            {"fmt": "xyzxyz"},
        ),
        (RuntimeError, "boxes must be of a floating-point type", torch.ones(3, 7).int(), {}),
        (RuntimeError, "scores must have the type of boxes", torch.rand(3, 7).double(), {}),
        (RuntimeError, "idxs must have shape", torch.rand(3, 7), {"idxs": torch.zeros(2)}),
        (TypeError, "idxs must be a Tensor", torch.rand(3, 7), {"idxs": [0, 1, 2]}),
        (ValueError, "fmt must be one of .*, got 'xyz'", torch.rand(3, 7), {"fmt": "xyz"}),
        (TypeError, "fmt must be one of .*, got None", torch.rand(3, 7), {"fmt": None}),
    ),
)
def test_errors(error, message, boxes, options):
    with pytest.raises(error, match=message):
        nms_3d(boxes, torch.rand(3), 0.5, **options)


@needs_library
def test_operators_check_shapes():
    with pytest.raises(RuntimeError, match="boxes must have 7 columns, got 5"):
        OP(torch.rand(3, 5), torch.rand(3), None, 0.5)


class Keep(torch.nn.Module):
    def forward(self, boxes, scores, idxs):
        confident = torch.where(scores > 0.5)[0]
        boxes, scores, idxs = boxes[confident], scores[confident], idxs[confident]
        corners = torch.cat([boxes[:, :3], boxes[:, :3] + boxes[:, 3:6]], 1)
        return (
            boxes[nms_3d(boxes, scores, 0.1, idxs=idxs)],
            boxes[nms_3d(boxes, scores, 0.1, bev=True)],
            boxes[nms_3d(corners, scores, 0.1, fmt="xyzxyz")],
        )


@needs_library
def test_programs():
    """torch.compile, torch.export, torch.jit.trace and opcheck; several, one and no kept box."""
    boxes, scores, idxs = SOLID["uniform"](12, 0), cases.scores(12), cases.classes(12, 2)
    equal = boxes[:1].repeat(12, 1)
    inputs = [
        (boxes, scores, idxs),
        (equal, torch.full((12,), 0.9), 0 * idxs),
        (equal, torch.full((12,), 0.1), 0 * idxs),
    ]
    torch.compiler.reset()
    programs = (
        torch.compile(Keep(), fullgraph=True, backend="aot_eager"),
        torch.export.export(Keep(), inputs[0]).module(),
        torch.jit.trace(Keep(), inputs[0], check_trace=False),
    )
    for args in inputs:
        expected = Keep()(*args)
        for program in programs:
            assert all(map(torch.equal, program(*args), expected))
    for classes in (None, idxs):
        torch.library.opcheck(OP, (boxes, scores, classes, 0.3))


@needs_library
def test_levels_and_threads_do_not_change_the_answer(cpu_level):
    boxes, scores = SOLID["uniform"](3000, 6), cases.scores(3000)
    boxes[:, :2] *= 10
    idxs = cases.classes(3000, 5)
    results = []
    for level in LEVELS:
        _extension.set_cpu_level(level)
        results.append(same_for_threads(lambda: nms_3d(boxes, scores, 0.05, idxs=idxs), (1, 3)))
    for (kept,) in results:
        assert len(kept) < 3000
        expect(kept, results[0][0])
