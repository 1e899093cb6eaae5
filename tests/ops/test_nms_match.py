"""Which kept box suppressed each of the others; every comparison is exact."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from fastvision import reference
from fastvision._device import triton_missing
from fastvision.ops import box_iou, nms, nms_match
from fastvision.testing import cases
from fastvision.testing.marks import needs_library
from fastvision.testing.nms import BOXES, expect, scores_for
from fastvision.testing.numerics import DTYPES
from fastvision.testing.tensors import dtype_id

# the numpy under Triton's interpreter warns of NaNs and infinities, which are meant here
pytestmark = [
    pytest.mark.filterwarnings("ignore:.*encountered in:RuntimeWarning"),
    pytest.mark.usefixtures("poisoned_memory"),
]
OP = torch.ops.fastvision.nms_match.default


def check(
    backend, boxes: Tensor, scores: Tensor, idxs: Tensor | None = None, iou_threshold: float = 0.3
) -> tuple[Tensor, Tensor]:
    on_device = [None if t is None else t.to(backend.device) for t in (boxes, scores, idxs)]
    keep, match = nms_match(*on_device[:2], iou_threshold, idxs=on_device[2], backend=backend.name)
    expected = reference.nms_match(boxes, scores, idxs, iou_threshold)
    expect(keep, expected[0])
    expect(match, expected[1])
    return keep, match


def test_known_numbers(backend):
    boxes = torch.tensor(
        [
            [0.0, 0, 10, 10],
            [0, 0, 10, 6],  # IoU 0.6 with the first
            [0, 0, 10, 4],  # IoU 0.4 with the first, 2/3 with the second, which is not kept
            [20, 0, 30, 10],
            [0, 4, 10, 10],  # IoU 0.6 with the first
            [18, 0, 28, 10],  # IoU 2/3 with the fourth
        ]
    )
    scores = torch.tensor([0.9, 0.8, 0.7, 0.6, 0.5, 0.4])
    keep, match = check(backend, boxes, scores, None, 0.5)
    assert keep.tolist() == [0, 2, 3] and match.tolist() == [0, 0, 2, 3, 0, 3]
    groups = [(match == i).nonzero()[:, 0].tolist() for i in keep]
    assert groups == [[0, 1, 4], [2], [3, 5]]
    _, match = check(backend, boxes, scores, torch.tensor([0, 1, 1, 0, 0, 1]), 0.5)
    assert match.tolist() == [0, 1, 1, 3, 0, 5]


def test_the_box_with_the_highest_score_counts(backend):
    # the last overlaps more with the second
    boxes = torch.tensor([[0.0, 0, 10, 10], [6, 0, 16, 10], [4, 0, 14, 10]])
    _, match = check(backend, boxes, torch.tensor([0.9, 0.8, 0.7]), None, 0.3)
    assert match.tolist() == [0, 1, 0]


@pytest.mark.parametrize("dtype", DTYPES, ids=dtype_id)
@pytest.mark.parametrize("kind", BOXES)
@pytest.mark.only(lambda backend: backend.name != "reference")
def test_matches_reference(backend, kind, dtype):
    counts = (40, 70) if backend.interpreted else (40, 330, 1500)
    for seed, count in enumerate(counts):
        boxes, scores = BOXES[kind](count, seed).to(dtype), scores_for(count, seed).to(dtype)
        for iou_threshold in (0.1, 0.5) if backend.interpreted else (0.05, 0.3, 0.7):
            check(backend, boxes, scores, None, iou_threshold)
            check(backend, boxes, scores, cases.classes(count, 3) * 2**40 - 2**62, iou_threshold)


@pytest.mark.parametrize("iou_threshold", [-1.0, -0.0, 0.0, 1 / 3, 0.5, 1.0, 1.5, math.nan])
def test_thresholds(backend, iou_threshold):
    count = 40 if backend.interpreted else 400
    for kind in ("grid", "special"):
        check(backend, BOXES[kind](count, 1), cases.scores(count), None, iou_threshold)


def test_more_kept_boxes_than_a_tile(backend):
    boxes = cases.uniform_boxes(70, min_size=1, max_size=2)
    boxes = torch.cat([boxes, boxes.flip(0)])
    keep, match = check(backend, boxes, torch.linspace(1, 0, 140), None, 0.5)
    assert len(keep) == 70 and match[70:].tolist() == list(range(69, -1, -1))


def test_agrees_with_overlaps(backend):
    boxes, scores = cases.clustered_boxes(60, objects=5), cases.scores(60)
    keep, match = check(backend, boxes, scores)
    keep, match = keep.cpu(), match.cpu()
    expect(keep, nms(boxes, scores, 0.3))
    covers = box_iou(boxes[keep], boxes) > 0.3
    expect(match, keep[covers.int().argmax(0)])


@pytest.mark.parametrize("dtype", DTYPES, ids=dtype_id)
def test_empty(backend, dtype):
    options = {"dtype": dtype, "device": backend.device}
    for tensor in nms_match(
        torch.empty(0, 4, **options), torch.empty(0, **options), 0.5, backend=backend.name
    ):
        assert tensor.shape == (0,) and tensor.dtype == torch.int64


def test_non_contiguous(backend):
    rows = torch.cat([cases.clustered_boxes(30, objects=3), cases.scores(30)[:, None]], 1)
    check(backend, rows[:, :4], rows[:, 4], cases.classes(60, 2)[::2])


def test_errors():
    boxes, scores = torch.rand(3, 4), torch.rand(3)
    with pytest.raises(RuntimeError, match="boxes must have shape"):
        nms_match(boxes[:, :3], scores, 0.5)
    with pytest.raises(RuntimeError, match="idxs must have shape"):
        nms_match(boxes, scores, 0.5, idxs=torch.zeros(2))
    with pytest.raises(TypeError, match="idxs must be a Tensor, got list"):
        nms_match(boxes, scores, 0.5, idxs=[0, 1, 2])
    with pytest.raises(ValueError, match="cuda"):
        nms_match(boxes, scores, 0.5, backend="cuda")


def groups(boxes: Tensor, scores: Tensor, idxs: Tensor) -> tuple[Tensor, ...]:
    return *nms_match(boxes, scores, 0.3), *nms_match(boxes, scores, 0.3, idxs=idxs)


@needs_library
@pytest.mark.parametrize("how", ["eager", "inductor", "export"])
def test_compile_and_export(how):
    class Module(torch.nn.Module):
        def forward(self, boxes, scores, idxs):
            return groups(boxes, scores, idxs)

    torch.compiler.reset()
    inputs = cases.clustered_boxes(20, objects=2), cases.scores(20), cases.classes(20, 3)
    if how == "export":
        program = torch.export.export(Module(), inputs).module()
    else:
        program = torch.compile(Module(), fullgraph=True, backend=how)
    for boxes in (inputs[0], inputs[0][:1].repeat(20, 1)):  # several kept boxes, and one
        given = boxes, *inputs[1:]
        assert all(map(torch.equal, program(*given), groups(*given)))


@needs_library
@pytest.mark.parametrize("op", [OP, torch.ops.fastvision.nms_match_triton.default], ids=str)
@pytest.mark.only(lambda op: op is OP or triton_missing() is None)
def test_opcheck(op):
    boxes, scores = cases.clustered_boxes(12, objects=2), cases.scores(12)
    if op is not OP and torch.cuda.is_available():
        boxes, scores = boxes.cuda(), scores.cuda()
    for idxs in (None, cases.classes(12, 3).to(boxes.device)):
        torch.library.opcheck(op, (boxes, scores, idxs, 0.3))
