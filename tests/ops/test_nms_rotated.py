"""NMS of rotated boxes: the greedy choice by the overlaps of box_iou_rotated, on every backend."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fastvision import _extension
from fastvision.ops import (
    batched_nms_rotated,
    box_iou_rotated,
    nms,
    nms_rotated,
)
from fastvision.testing import cases
from fastvision.testing.backends import LEVELS
from fastvision.testing.boxes import beyond_a_side, rotated_boxes
from fastvision.testing.marks import needs_library
from fastvision.testing.nms import (
    BOXES,
    ROTATED,
    expect,
    expect_greedy,
    scores_for,
    turned_boxes,
)
from fastvision.testing.numerics import DTYPES, TOLERANCES
from fastvision.testing.tensors import dtype_id
from fastvision.testing.threads import same_for_threads

# the numpy under Triton's interpreter warns of NaNs and infinities, which are meant here
pytestmark = [
    pytest.mark.filterwarnings("ignore:.*encountered in:RuntimeWarning"),
    pytest.mark.usefixtures("poisoned_memory"),
]
OP = torch.ops.fastvision.nms_rotated.default
THRESHOLDS = (-1.0, 0.1, 0.3, 0.5, 0.7, 1.5, math.nan)


def test_known_numbers(backend):
    """Areas by hand: a square and the same turned by 45 degrees share 2 (sqrt(2) - 1) of it."""
    boxes = torch.tensor(
        [
            [0.0, 0.0, 2.0, 2.0, 0.0],
            [0.0, 0.0, 2.0, 2.0, 45.0],  # overlap 0.7071 with the first
            [0.0, 0.0, 2.0, 2.0, 90.0],  # equals the first
            [1.0, 0.0, 2.0, 2.0, 180.0],  # 1 / 3 with the first
            [9.0, 9.0, 1.0, 8.0, 30.0],
        ],
        device=backend.device,
    )
    scores = torch.tensor([0.5, 0.9, 0.5, 0.7, 0.6], device=backend.device)
    kept = {
        t: nms_rotated(boxes, scores, t, backend=backend.name).tolist() for t in (0.2, 0.7, 0.72)
    }
    assert kept == {0.2: [1, 4], 0.7: [1, 3, 4], 0.72: [1, 3, 4, 0]}
    idxs = torch.tensor([0, 1, 1, 0, 0], device=backend.device)
    expected = torch.tensor([1, 3, 4])
    for labels in (idxs, idxs.int() - 9, idxs.double() / 7):
        expect(batched_nms_rotated(boxes, scores, labels, 0.3, backend=backend.name), expected)
        expect(nms_rotated(boxes, scores, 0.3, idxs=labels, backend=backend.name), expected)


def test_numbers_of_mmcv(backend):
    """Those of its own test, in radians and clockwise."""
    boxes = torch.tensor(
        [
            [6.0, 3.0, 8.0, 7.0, 0.5],
            [3.0, 6.0, 9.0, 11.0, 0.6],
            [3.0, 7.0, 10.0, 12.0, 0.3],
            [1.0, 4.0, 13.0, 7.0, 0.6],
        ],
        device=backend.device,
    )
    boxes[:, 4] *= -180 / math.pi
    scores = torch.tensor([0.7, 0.8, 0.5, 0.9], device=backend.device)
    assert nms_rotated(boxes, scores, 0.5, backend=backend.name).tolist() == [3, 1, 0]


@pytest.mark.parametrize("dtype", DTYPES, ids=dtype_id)
@pytest.mark.parametrize("with_classes", (False, True), ids=("one_class", "classes"))
@pytest.mark.parametrize("kind", ("uniform", "clustered"))
def test_is_greedy(backend, kind, with_classes, dtype):
    """By overlaps in float64, but for those within rounding of the threshold."""
    count = 50 if backend.interpreted else 330
    boxes = ROTATED[kind](count, 1).to(dtype)
    idxs = cases.classes(count, 3) if with_classes else None
    overlaps = box_iou_rotated(boxes.double(), boxes.double(), backend="reference")
    tolerance = TOLERANCES[torch.promote_types(dtype, torch.float32)]
    for seed, threshold in enumerate((0.3, 0.5) if backend.interpreted else THRESHOLDS):
        scores = scores_for(count, seed).to(dtype)
        kept = nms_rotated(
            boxes.to(backend.device),
            scores.to(backend.device),
            threshold,
            idxs=None if idxs is None else idxs.to(backend.device),
            backend=backend.name,
        )
        expect_greedy(kept.cpu(), overlaps, scores, idxs, threshold, tolerance=tolerance)


@pytest.mark.parametrize("kind", ROTATED)
def test_decides_by_box_iou_rotated(backend, kind):
    """Exactly: what is skipped before the geometry has too small an overlap."""
    count = 50 if backend.interpreted else 400
    boxes = ROTATED[kind](count, 2).to(backend.device)
    overlaps = box_iou_rotated(boxes, boxes, backend=backend.name)
    for seed, threshold in enumerate((-0.5, 0.4) if backend.interpreted else THRESHOLDS):
        scores = scores_for(count, seed)
        kept = nms_rotated(boxes, scores.to(backend.device), threshold, backend=backend.name)
        expect_greedy(kept.cpu(), overlaps, scores, None, threshold)


def test_matches_torchvision(backend, torchvision):
    """The greedy choice by its overlaps, which are in float32."""
    count = 40 if backend.interpreted else 300
    boxes, scores = ROTATED["clustered"](count, 3), cases.scores(count)
    overlaps = torchvision.ops.box_iou(boxes, boxes, "cxcywhr")
    kept = nms_rotated(
        boxes.to(backend.device), scores.to(backend.device), 0.4, backend=backend.name
    )
    expect_greedy(kept.cpu(), overlaps, scores, None, 0.4, tolerance=1e-4)


def test_boxes_that_are_apart_at_threshold_0(backend):
    """Suppress nothing, as in torchvision."""
    boxes = rotated_boxes(20 if backend.interpreted else 200, seed=2)
    for gap, count in ((1e-3, 2), (-1e-2, 1)):
        pairs = torch.stack([boxes, beyond_a_side(boxes, gap)], 1).flatten(0, 1)
        idxs = torch.arange(len(pairs)) // 2
        scores = torch.rand(len(pairs), generator=cases.generator(0))
        kept = nms_rotated(
            pairs.to(backend.device),
            scores.to(backend.device),
            0.0,
            idxs=idxs.to(backend.device),
            backend=backend.name,
        )
        assert idxs[kept.cpu()].bincount().eq(count).all()


@pytest.mark.parametrize("turn", (0, 90, 180, -270))
@pytest.mark.parametrize("kind", ("uniform", "clustered"))
def test_upright_boxes(backend, kind, turn):
    """As nms: turning by quarters swaps the sides or nothing."""
    count = 40 if backend.interpreted else 300
    corners, scores = BOXES[kind](count, 4), cases.scores(count)
    boxes = turned_boxes(corners, 0)
    boxes[:, 4] = turn
    if turn % 180:
        boxes[:, 2:4] = boxes[:, 2:4].flip(1)
    for threshold in (0.2, 0.5):
        kept = nms_rotated(
            boxes.to(backend.device), scores.to(backend.device), threshold, backend=backend.name
        )
        expect(kept, nms(corners, scores, threshold))


def test_classes_far_apart_and_equal_boxes(backend):
    """No coordinate is large enough to mix classes, and ties are in order of the index."""
    boxes = torch.tensor([[1e7, -1e7, 8.0, 4.0, 20.0]]).repeat(6, 1).to(backend.device)
    scores = torch.full((6,), 0.5, device=backend.device)
    idxs = torch.tensor([3, -(2**62), 3, 2**62, -(2**62), 0], device=backend.device)
    kept = batched_nms_rotated(boxes, scores, idxs, 0.5, backend=backend.name)
    assert kept.tolist() == [0, 1, 3, 5]


@pytest.mark.parametrize("dtype", DTYPES, ids=dtype_id)
@pytest.mark.parametrize("count", (0, 1))
def test_few(backend, dtype, count):
    boxes = torch.ones(count, 5, dtype=dtype, device=backend.device)
    scores = torch.ones(count, dtype=dtype, device=backend.device)
    for idxs in (None, torch.zeros(count, device=backend.device)):
        kept = nms_rotated(boxes, scores, 0.5, idxs=idxs, backend=backend.name)
        assert kept.dtype == torch.int64 and kept.device.type == backend.device
        assert kept.tolist() == list(range(count))


def test_non_contiguous(backend):
    boxes, scores = ROTATED["clustered"](40, 5).to(backend.device), cases.scores(40)
    scores = scores.to(backend.device)
    expected = nms_rotated(boxes, scores, 0.3, backend=backend.name)
    rows = torch.cat([scores[:, None], boxes, scores[:, None]], 1)
    expect(nms_rotated(rows[:, 1:6], rows[:, 6], 0.3, backend=backend.name), expected)
    column_major = boxes.t().contiguous().t()
    expect(nms_rotated(column_major, scores, 0.3, backend=backend.name), expected)


@needs_library
def test_threads_do_not_change_the_answer():
    boxes, scores = ROTATED["clustered"](4000, 6), cases.scores(4000)
    idxs = cases.classes(4000, 5)
    (kept,) = same_for_threads(lambda: nms_rotated(boxes, scores, 0.3, idxs=idxs), (1, 2, 5))
    assert len(kept) < 4000


@pytest.mark.parametrize(
    ("name", "boxes", "scores", "idxs"),
    (
        ("boxes", torch.rand(5), torch.rand(5), None),
        ("boxes", torch.rand(3, 4), torch.rand(3), None),
        ("boxes", torch.zeros(3, 5, dtype=torch.int64), torch.zeros(3, dtype=torch.int64), None),
        ("scores", torch.rand(3, 5), torch.rand(2), None),
        ("scores", torch.rand(3, 5), torch.rand(3).double(), None),
        ("idxs", torch.rand(3, 5), torch.rand(3), torch.zeros(2, dtype=torch.int64)),
    ),
)
def test_errors_name_the_argument(name, boxes, scores, idxs):
    calls = [lambda: nms_rotated(boxes, scores, 0.5, idxs=idxs)]
    if _extension.missing is None:
        calls += [lambda: OP(boxes, scores, idxs, 0.5)]
    for call in calls:
        with pytest.raises(RuntimeError, match=name):
            call()


def test_other_errors():
    boxes, scores = torch.rand(3, 5), torch.rand(3)
    with pytest.raises(ValueError, match="the Triton kernel serves GPUs|no CUDA|cuda"):
        nms_rotated(boxes, scores, 0.5, backend="cuda")
    with pytest.raises(TypeError, match="idxs must be a Tensor, got NoneType"):
        batched_nms_rotated(boxes, scores, None, 0.5)
    with pytest.raises(RuntimeError, match="scores must be on cpu as boxes, got meta"):
        nms_rotated(boxes, scores.to("meta"), 0.5)


class Keep(torch.nn.Module):
    def forward(self, boxes, scores, idxs):
        confident = torch.where(scores > 0.5)[0]
        boxes, scores, idxs = boxes[confident], scores[confident], idxs[confident]
        return boxes[nms_rotated(boxes, scores, 0.3)], boxes[
            batched_nms_rotated(boxes, scores, idxs, 0.3)
        ]


@needs_library
def test_programs():
    """torch.compile, torch.export, torch.jit.trace and opcheck; several, one and no kept box."""
    boxes, scores, idxs = ROTATED["uniform"](12, 0), cases.scores(12), cases.classes(12, 2)
    equal = boxes[:1].repeat(12, 1)
    inputs = [
        (boxes, scores, idxs),
        (equal, torch.full((12,), 0.9), 0 * idxs),
        (equal, torch.full((12,), 0.1), 0 * idxs),
    ]
    torch.compiler.reset()
    programs = (
        torch.compile(Keep(), fullgraph=True, backend="inductor"),
        torch.export.export(Keep(), inputs[0]).module(),
        torch.jit.trace(Keep(), inputs[0], check_trace=False),
    )
    for args in inputs:
        expected = Keep()(*args)
        for program in programs:
            assert all(map(torch.equal, program(*args), expected))
    for classes in (None, idxs):
        torch.library.opcheck(OP, (boxes, scores, classes, 0.3))


def test_boxes_that_require_grad_and_autocast():
    boxes, scores = ROTATED["uniform"](20, 1).requires_grad_(), cases.scores(20).requires_grad_()
    kept = nms_rotated(boxes, scores, 0.3)
    assert not kept.requires_grad
    low = boxes.detach().bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(nms_rotated(low, scores, 0.3), nms_rotated(low.float(), scores, 0.3))
    with pytest.raises(RuntimeError, match="scores"):
        nms_rotated(low, scores, 0.3)


numbers = st.one_of(
    st.integers(-8, 8).map(float),
    st.floats(-100, 100, width=32),
    st.sampled_from((0.0, -0.0, 1e-45, 1e-20, 1e10, 3e38, -3e38, math.nan, math.inf, -math.inf)),
)


@needs_library
@settings(deadline=None, max_examples=60)
@given(
    boxes=st.lists(st.tuples(*[numbers] * 5), min_size=1, max_size=12),
    copies=st.sampled_from((1, 3, 40)),
    threshold=st.one_of(st.sampled_from(THRESHOLDS), st.floats(0.02, 1)),
    dtype=st.sampled_from((torch.float32, torch.float64)),
    seed=st.integers(0, 2**31),
)
def test_fuzz(boxes, copies, threshold, dtype, seed):
    g = cases.generator(seed)
    boxes = torch.tensor(boxes, dtype=dtype).repeat(copies, 1)
    boxes = boxes * (1 + 0.1 * torch.rand(boxes.shape, generator=g, dtype=dtype) * (copies > 3))
    # of a needle's area, rounding is more than the area itself
    sides = boxes[:, 2:4].abs()
    ratio = sides.amax(1) / sides.amin(1)
    boxes = boxes[(ratio < 1e3) | ~(boxes[:, 2:4].prod(1) > 0)]
    scores = torch.randint(0, 2 * len(boxes) + 1, (len(boxes),), generator=g).to(dtype)
    idxs = torch.randint(0, 2, (len(boxes),), generator=g) * -(2**62)
    try:
        for level in LEVELS:
            _extension.set_cpu_level(level)
            overlaps = box_iou_rotated(boxes, boxes)
            for classes in (None, idxs):
                kept = OP(boxes, scores, classes, threshold)
                expect_greedy(kept, overlaps, scores, classes, threshold)
    finally:
        _extension.set_cpu_level(LEVELS[-1])
