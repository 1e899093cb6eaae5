"""NMS: the answer is a list of indices, so every comparison here is exact."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fastvision import _extension, reference
from fastvision.ops import batched_nms, batched_nms_padded, nms
from fastvision.testing import cases
from fastvision.testing.backends import LEVELS
from fastvision.testing.marks import needs_library
from fastvision.testing.nms import BOXES, expect, scores_for
from fastvision.testing.numerics import DTYPES

# the numpy under Triton's interpreter warns of NaNs and infinities, which are meant here
pytestmark = pytest.mark.filterwarnings("ignore:.*encountered in:RuntimeWarning")
THRESHOLDS = (-1.0, -0.0, 0.0, 1e-6, 0.3, 0.5, 0.7, 1.0, 1.5, math.nan)
OP = torch.ops.fastvision.nms.default
PADDED_OP = torch.ops.fastvision.nms_padded.default


def test_known_numbers(backend):
    boxes = torch.tensor(
        [
            [0.0, 0.0, 10.0, 10.0],
            [0.0, 0.0, 10.0, 5.0],  # IoU 0.5 with the first
            [-10.0, 0.0, 0.0, 10.0],  # touches the first
            [0.0, 0.0, 10.0, 10.0],  # equals the first, its score too
            [2.0, 0.0, 12.0, 10.0],  # IoU 2/3 with the first
        ],
        device=backend.device,
    )
    scores = torch.tensor([0.9, 0.8, 0.3, 0.9, 0.5], device=backend.device)
    kept = {t: nms(boxes, scores, t, backend=backend.name).tolist() for t in (0.4, 0.5, 0.7)}
    assert kept == {0.4: [0, 2], 0.5: [0, 1, 2], 0.7: [0, 1, 4, 2]}
    idxs = torch.tensor([7, -1, 7, 7, -1], device=backend.device)
    expect(
        batched_nms(boxes, scores, idxs, 0.3, backend=backend.name),
        torch.tensor([0, 1, 2]),
    )


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("kind", BOXES)
# the reference itself is compared with torchvision
@pytest.mark.only(lambda backend: backend.name != "reference")
def test_matches_reference(backend, kind, dtype):
    count = 40 if backend.interpreted else 330
    thresholds = (0.3, 0.5) if backend.interpreted else THRESHOLDS
    boxes = BOXES[kind](count, 1).to(dtype)
    for seed, threshold in enumerate(thresholds):
        scores = scores_for(count, seed).to(dtype)
        kept = nms(
            boxes.to(backend.device), scores.to(backend.device), threshold, backend=backend.name
        )
        expect(kept, reference.nms(boxes, scores, None, threshold))


@pytest.mark.parametrize("kind", BOXES)
# the others are compared with the reference
@pytest.mark.only(lambda backend: backend.name in ("cpp", "reference"))
def test_matches_torchvision(backend, torchvision, kind):
    fast = backend.name == "cpp"
    for seed in range(6 if fast else 2):
        for count in (1, 2, 3, 17, 100, 257, 700) if fast else (1, 2, 40):
            boxes, scores = BOXES[kind](count, seed), scores_for(count, seed)
            for dtype in (torch.float32, torch.float64):
                b, s = boxes.to(dtype), scores.to(dtype)
                for threshold in THRESHOLDS:
                    kept = nms(b, s, threshold, backend=backend.name)
                    expect(kept, torchvision.ops.nms(b, s, threshold))


@needs_library
@pytest.mark.parametrize("threshold", (0.05, 0.5, 0.95))
@pytest.mark.parametrize("kind", BOXES)
def test_matches_torchvision_many_boxes(torchvision, kind, threshold):
    boxes, scores = BOXES[kind](4000, 3), scores_for(4000, 2)
    expect(nms(boxes, scores, threshold), torchvision.ops.nms(boxes, scores, threshold))


@needs_library
def test_matches_torchvision_at_the_threshold(torchvision):
    # an IoU of float32(0.2) is above 0.2 and below the next float32, one of 0.5 is not above 0.5
    boxes = torch.tensor([[0.0, 0.0, 10.0, 10.0], [0.0, 0.0, 10.0, 2.0], [0.0, 0.0, 5.0, 10.0]])
    scores = torch.tensor([0.9, 0.8, 0.7])
    for value in (0.2, 0.5):
        rounded = torch.tensor(value)
        for threshold in (
            value,
            rounded,
            rounded.nextafter(rounded + 1),
            rounded.nextafter(-rounded),
        ):
            expect(
                nms(boxes, scores, float(threshold)),
                torchvision.ops.nms(boxes, scores, float(threshold)),
            )
    assert nms(boxes[:2], scores[:2], 0.2).tolist() == [0]
    assert nms(boxes[[0, 2]], scores[[0, 2]], 0.5).tolist() == [0, 1]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_empty(backend, dtype):
    options = {"dtype": dtype, "device": backend.device}
    boxes, scores = torch.empty(0, 4, **options), torch.empty(0, **options)
    idxs = torch.empty(0, dtype=torch.int64, device=backend.device)
    for kept in (
        nms(boxes, scores, 0.5, backend=backend.name),
        batched_nms(boxes, scores, idxs, 0.5, backend=backend.name),
        batched_nms(boxes, None, None, 0.5, backend=backend.name),  # as torchvision
    ):
        assert kept.shape == (0,)
        assert kept.dtype == torch.int64
        assert kept.device.type == backend.device
    for images, count in ((2, 0), (0, 5)):
        indices, counts = batched_nms_padded(
            torch.empty(images, count, 4, **options),
            torch.empty(images, count, **options),
            None,
            0.5,
            max_output=3,
            backend=backend.name,
        )
        assert indices.tolist() == [[-1] * 3] * images
        assert counts.tolist() == [0] * images


def test_non_contiguous(backend):
    boxes, scores = cases.uniform_boxes(40), cases.scores(40)
    idxs = cases.classes(40, 2)
    rows = torch.cat([torch.full((40, 1), 9.0), boxes, scores[:, None]], 1).to(backend.device)
    kept = batched_nms(
        rows[:, 1:5],
        rows[:, 5],
        idxs.repeat_interleave(2).to(backend.device)[::2],
        0.2,
        backend=backend.name,
    )
    expect(kept, reference.nms(boxes, scores, idxs, 0.2))
    column_major = boxes.t().contiguous().t().to(backend.device)
    kept = nms(column_major, scores.to(backend.device), 0.2, backend=backend.name)
    expect(kept, reference.nms(boxes, scores, None, 0.2))


@pytest.mark.parametrize(
    ("name", "boxes", "scores", "idxs"),
    (
        ("boxes", torch.rand(4), torch.rand(4), None),
        ("boxes", torch.rand(3, 5), torch.rand(3), None),
        ("boxes", torch.zeros(3, 4, dtype=torch.int64), torch.zeros(3, dtype=torch.int64), None),
        ("scores", torch.rand(3, 4), torch.rand(2), None),
        ("scores", torch.rand(3, 4), torch.rand(3, 1), None),
        ("scores", torch.rand(3, 4), torch.rand(3).double(), None),
        ("idxs", torch.rand(3, 4), torch.rand(3), torch.zeros(2, dtype=torch.int64)),
    ),
)
def test_errors_name_the_argument(name, boxes, scores, idxs):
    def public():
        if idxs is None:
            return nms(boxes, scores, 0.5)
        return batched_nms(boxes, scores, idxs, 0.5)

    def padded_op():
        batch = [None if t is None else t[None] for t in (boxes, scores, idxs)]
        return PADDED_OP(*batch, 0.5, None, 3)

    calls = [public]
    if _extension.missing is None:
        calls += [lambda: OP(boxes, scores, idxs, 0.5), padded_op]
    for call in calls:
        with pytest.raises(RuntimeError, match=name):
            call()


def test_other_errors():
    boxes, scores = torch.rand(1, 3, 4), torch.rand(1, 3)
    with pytest.raises(ValueError, match="max_output"):
        batched_nms_padded(boxes, scores, None, 0.5, max_output=-1)
    with pytest.raises(ValueError, match="cuda"):
        nms(boxes[0], scores[0], 0.5, backend="cuda")
    with pytest.raises(ValueError, match="no_such"):
        nms(boxes[0], scores[0], 0.5, backend="no_such")
    if _extension.missing is None:
        with pytest.raises(RuntimeError, match="max_output"):
            PADDED_OP(boxes, scores, None, 0.5, None, -1)
        with pytest.raises(RuntimeError, match="max_output"):
            OP(boxes[0], scores[0], None, 0.5, None, -1)
        with pytest.raises(RuntimeError, match="idxs"):
            OP(boxes[0], scores[0], torch.zeros(3, dtype=torch.int32), 0.5)


coordinates = st.one_of(
    st.integers(-8, 8).map(float),
    st.floats(width=32),
    st.sampled_from((0.0, -0.0, 1e-45, 1e-38, 1e-20, 1e10, 3e38, -3e38)),
)


@needs_library
@settings(deadline=None, max_examples=100)
@given(
    boxes=st.lists(st.tuples(*[coordinates] * 4), min_size=1, max_size=12),
    copies=st.sampled_from((1, 3, 40)),
    threshold=st.one_of(st.sampled_from(THRESHOLDS), st.floats(0, 1)),
    dtype=st.sampled_from((torch.float32, torch.float64)),
    seed=st.integers(0, 2**31),
)
def test_fuzz(boxes, copies, threshold, dtype, seed):
    g = cases.generator(seed)
    boxes = torch.tensor(boxes, dtype=dtype).repeat(copies, 1)
    boxes = boxes * (1 + 0.1 * torch.rand(boxes.shape, generator=g, dtype=dtype) * (copies > 3))
    count = len(boxes)
    scores = torch.randint(0, 2 * count, (count,), generator=g).to(dtype)
    idxs = torch.randint(0, 2, (count,), generator=g) * -(2**62)
    try:
        for level in LEVELS:
            _extension.set_cpu_level(level)
            for classes in (None, idxs):
                expect(
                    OP(boxes, scores, classes, threshold),
                    reference.nms(boxes, scores, classes, threshold),
                )
    finally:
        _extension.set_cpu_level(LEVELS[-1])
