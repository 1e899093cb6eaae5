"""Soft-NMS: decayed scores against the reference, the reference against published numbers."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from fastvision import reference
from fastvision._device import triton_missing
from fastvision.ops import matrix_nms, nms, soft_nms
from fastvision.testing import cases
from fastvision.testing.marks import needs_library
from fastvision.testing.nms import BOXES, expect, scores_for
from fastvision.testing.numerics import DTYPES, assert_matches
from fastvision.testing.tensors import dtype_id
from fastvision.testing.threads import same_for_threads

# the numpy under Triton's interpreter warns of NaNs and infinities, which are meant here
pytestmark = [
    pytest.mark.filterwarnings("ignore:.*encountered in:RuntimeWarning"),
    pytest.mark.usefixtures("poisoned_memory"),
]
METHODS = ("linear", "gaussian")
OP = torch.ops.fastvision.soft_nms.default


def check(
    backend,
    boxes: Tensor,
    scores: Tensor,
    idxs: Tensor | None = None,
    iou_threshold: float = 0.3,
    method: str = "linear",
    sigma: float = 0.5,
    min_score: float = 1e-3,
) -> None:
    keep, decayed = soft_nms(
        boxes.to(backend.device),
        scores.to(backend.device),
        iou_threshold,
        method=method,
        sigma=sigma,
        min_score=min_score,
        idxs=None if idxs is None else idxs.to(backend.device),
        backend=backend.name,
    )
    expected, expected_scores = reference.soft_nms(
        boxes, scores, idxs, iou_threshold, method == "gaussian", sigma, min_score
    )
    expect(keep.cpu(), expected)
    assert decayed.dtype == scores.dtype
    # an exponential of another make may round differently, and so may the result
    assert_matches(decayed.cpu(), expected_scores)
    if method == "linear":
        assert torch.equal(decayed.cpu().nan_to_num(-1), expected_scores.nan_to_num(-1))


@pytest.mark.parametrize(
    ("method", "expected"),
    [
        ("linear", [0.9, 0.6, 0.29024392, 0.2]),
        ("gaussian", [0.9, 0.59630775, 0.35275510, 0.18650459]),
    ],
)
def test_numbers_of_mmcv(backend, method, expected):
    boxes = torch.tensor([[6.0, 3, 8, 7], [3, 6, 9, 11], [3, 7, 10, 12], [1, 4, 13, 7]])
    scores = torch.tensor([0.6, 0.9, 0.7, 0.2])
    keep, decayed = soft_nms(
        boxes.to(backend.device),
        scores.to(backend.device),
        0.3,
        method=method,
        min_score=0,
        backend=backend.name,
    )
    assert keep.tolist() == [1, 0, 2, 3]
    assert_matches(decayed.cpu(), torch.tensor(expected))


def test_overlap_equal_to_the_threshold_does_not_decay(backend):
    boxes = torch.tensor([[0.0, 0, 2, 1], [0, 0, 1, 1]], device=backend.device)  # IoU 1/2
    scores = torch.tensor([0.9, 0.8], device=backend.device)
    for threshold, expected in ((0.5, 0.8), (0.49, 0.4)):
        decayed = soft_nms(boxes, scores, threshold, backend=backend.name)[1]
        assert_matches(decayed.cpu(), torch.tensor([0.9, expected]))


def test_quantized_tensors_are_refused():
    boxes, scores = cases.uniform_boxes(4), cases.scores(4)
    quantized = torch.quantize_per_tensor(boxes, 0.1, 0, torch.qint8)
    for function in (soft_nms, matrix_nms):
        with pytest.raises(RuntimeError, match="floating-point type"):
            function(quantized, scores)


@pytest.mark.parametrize("dtype", DTYPES, ids=dtype_id)
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("kind", BOXES)
# the reference itself is compared with mmcv's numbers
@pytest.mark.only(lambda backend: backend.name != "reference")
def test_matches_reference(backend, kind, method, dtype):
    count = 30 if backend.interpreted else 301
    for seed in range(2):
        boxes, scores = BOXES[kind](count, seed).to(dtype), scores_for(count, seed).to(dtype)
        check(backend, boxes, scores, method=method)
        check(backend, boxes, scores, cases.classes(count, 4), method=method)


@pytest.mark.parametrize("count", [1, 2, 15, 16, 17, 33, 100])
@pytest.mark.only(lambda backend, count: not backend.interpreted or count < 20)
def test_sizes(backend, count):
    boxes, scores = cases.clustered_boxes(count, objects=3), cases.scores(count)
    check(backend, boxes, scores)
    check(backend, boxes, scores, torch.arange(count) % 5 * 2**40 - 2**62)


@pytest.mark.parametrize("iou_threshold", [-1.0, 0.0, 1 / 3, 0.5, 0.95, 1.0, math.nan, math.inf])
def test_thresholds(backend, iou_threshold):
    count = 24 if backend.interpreted else 200
    check(backend, BOXES["grid"](count, 1), cases.scores(count), None, iou_threshold)


@pytest.mark.parametrize("min_score", [0.0, 1e-3, 0.5, 1e300, math.inf])
@pytest.mark.parametrize("method", METHODS)
def test_minimum_scores(backend, method, min_score):
    count = 24 if backend.interpreted else 200
    boxes, scores = cases.clustered_boxes(count, objects=4), scores_for(count, 1)
    check(backend, boxes, scores, method=method, min_score=min_score)


@pytest.mark.parametrize("sigma", [5e-324, 1e-3, 0.1, 10.0, 1e300, math.inf])
def test_sigmas(backend, sigma):
    count = 24 if backend.interpreted else 200
    boxes, scores = BOXES["special"](count, 2), cases.scores(count)
    check(backend, boxes, scores, method="gaussian", sigma=sigma)


def test_equal_scores_are_in_the_order_of_their_index(backend):
    boxes = torch.tensor([[20.0, 0, 30, 10], [0, 0, 10, 10], [0, 0, 10, 10], [0, 0, 10, 10]])
    scores = torch.full((4,), 0.5)
    boxes, scores = boxes.to(backend.device), scores.to(backend.device)
    keep, decayed = soft_nms(boxes, scores, min_score=0, backend=backend.name)
    assert keep.tolist() == [0, 1, 2, 3] and decayed.tolist() == [0.5, 0.5, 0, 0]


@pytest.mark.parametrize("dtype", DTYPES, ids=dtype_id)
def test_empty(backend, dtype):
    options = {"dtype": dtype, "device": backend.device}
    for count, most in ((0, 1.0), (3, 0.0)):  # no box, and none with a score that is high enough
        keep, decayed = soft_nms(
            torch.rand(count, 4, **options),
            torch.rand(count, **options) * most,
            backend=backend.name,
        )
        assert keep.shape == decayed.shape == (0,)
        assert keep.dtype == torch.int64 and decayed.dtype == dtype


def test_non_contiguous(backend):
    count = 20
    rows = torch.cat([cases.clustered_boxes(count, objects=3), cases.scores(count)[:, None]], 1)
    check(backend, rows[:, :4], rows[:, 4], cases.classes(2 * count, 2)[::2])


def test_a_threshold_that_nms_keeps_all_boxes_of_decays_nothing(backend):
    boxes = cases.uniform_boxes(30, max_size=40)
    scores = cases.scores(30)
    kept = nms(boxes, scores, 0.2)
    boxes, scores = boxes[kept].to(backend.device), scores[kept].to(backend.device)
    keep, decayed = soft_nms(boxes, scores, 0.2, min_score=0, backend=backend.name)
    assert keep.tolist() == list(range(len(kept))) and torch.equal(decayed, scores)


@needs_library
def test_threads_do_not_change_the_answer():
    boxes, scores = cases.clustered_boxes(4000), cases.scores(4000)
    idxs = cases.classes(4000, 7)
    same_for_threads(lambda: soft_nms(boxes, scores, idxs=idxs), (1, 2, 5))


def test_errors():
    boxes, scores = torch.rand(3, 4), torch.rand(3)
    with pytest.raises(ValueError, match=r"method must be one of .*, got 'hard'"):
        soft_nms(boxes, scores, method="hard")
    for sigma in (0.0, -1.0, math.nan):
        with pytest.raises(ValueError, match="sigma must be above 0, got"):
            soft_nms(boxes, scores, sigma=sigma)
    for min_score in (-1e-3, math.nan):
        with pytest.raises(ValueError, match="min_score must be 0 or more, got"):
            soft_nms(boxes, scores, min_score=min_score)
    for option in ("iou_threshold", "sigma", "min_score"):
        with pytest.raises(TypeError, match=f"{option} must be a number, got"):
            soft_nms(boxes, scores, **{option: "high"})
    with pytest.raises(RuntimeError, match="scores must have shape"):
        soft_nms(boxes, scores[:2])
    with pytest.raises(RuntimeError, match="idxs must have shape"):
        soft_nms(boxes, scores, idxs=torch.zeros(2))
    with pytest.raises(ValueError, match="cuda"):
        soft_nms(boxes, scores, backend="cuda")


@needs_library
def test_errors_of_the_op():
    boxes, scores = torch.rand(3, 4), torch.rand(3)
    with pytest.raises(RuntimeError, match="sigma"):
        OP(boxes, scores, None, 0.5, True, 0.0, 0.1)
    with pytest.raises(RuntimeError, match="min_score"):
        OP(boxes, scores, None, 0.5, True, 0.5, -1.0)
    with pytest.raises(RuntimeError, match="boxes"):
        OP(boxes[:, :3], scores, None, 0.5, True, 0.5, 0.1)


def decay(boxes: Tensor, scores: Tensor, idxs: Tensor) -> tuple[Tensor, ...]:
    return *soft_nms(boxes, scores, method="gaussian"), *soft_nms(boxes, scores, idxs=idxs)


@needs_library
@pytest.mark.parametrize("how", ["eager", "inductor", "export"])
def test_compile_and_export(how):
    class Module(torch.nn.Module):
        def forward(self, boxes, scores, idxs):
            return decay(boxes, scores, idxs)

    torch.compiler.reset()
    inputs = cases.clustered_boxes(20, objects=2), cases.scores(20), cases.classes(20, 3)
    if how == "export":
        program = torch.export.export(Module(), inputs).module()
    else:
        program = torch.compile(Module(), fullgraph=True, backend=how)
    for factor in (1, 0):  # some boxes, and none
        given = inputs[0], inputs[1] * factor, inputs[2]
        assert all(map(torch.equal, program(*given), decay(*given)))


@needs_library
@pytest.mark.parametrize("op", [OP, torch.ops.fastvision.soft_nms_triton.default], ids=str)
@pytest.mark.only(lambda op: op is OP or triton_missing() is None)
def test_opcheck(op):
    boxes, scores = cases.clustered_boxes(12, objects=2), cases.scores(12)
    if op is not OP and torch.cuda.is_available():
        boxes, scores = boxes.cuda(), scores.cuda()
    for idxs in (None, cases.classes(12, 3).to(boxes.device)):
        torch.library.opcheck(op, (boxes, scores, idxs, 0.3, True, 0.5, 0.01))


def test_boxes_that_require_grad(backend):
    boxes = cases.uniform_boxes(9).to(backend.device).requires_grad_()
    scores = cases.scores(9).to(backend.device).requires_grad_()
    keep, decayed = soft_nms(boxes, scores, backend=backend.name)
    assert not keep.requires_grad and not decayed.requires_grad


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=dtype_id)
def test_scores_decay_in_float32(backend, dtype):
    """Many small decays, of which each would be rounded."""
    corner = torch.linspace(0, 90, 10)
    small = torch.stack([corner, 0 * corner, corner + 8, 0 * corner + 8], 1)  # apart
    boxes = torch.cat([small, torch.tensor([[0.0, 0, 100, 64]])]).to(dtype)
    scores = torch.tensor([1.0] * 10 + [0.5]).to(dtype)
    options = {"iou_threshold": 0.0, "min_score": 0.0, "backend": backend.name}
    _, decayed = soft_nms(boxes.to(backend.device), scores.to(backend.device), **options)
    exact = soft_nms(boxes.double(), scores.double(), **options | {"backend": "reference"})[1]
    assert 0.4 < exact[-1] < 0.46
    assert torch.equal(decayed.cpu(), exact.to(dtype))
