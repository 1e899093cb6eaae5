"""Matrix NMS: factors of scores against the reference, the reference against a loop over boxes."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from fastvision import reference
from fastvision._device import triton_missing
from fastvision.ops import box_iou, matrix_nms
from fastvision.testing import cases
from fastvision.testing.marks import needs_library
from fastvision.testing.nms import BOXES, scores_for
from fastvision.testing.numerics import DTYPES, assert_matches
from fastvision.testing.tensors import dtype_id
from fastvision.testing.threads import same_for_threads

# the numpy under Triton's interpreter warns of NaNs and infinities, which are meant here
pytestmark = [
    pytest.mark.filterwarnings("ignore:.*encountered in:RuntimeWarning"),
    pytest.mark.usefixtures("poisoned_memory"),
]
KERNELS = ("gaussian", "linear")
OP = torch.ops.fastvision.matrix_nms.default


def check(backend, boxes, scores, idxs=None, kernel="gaussian", sigma=2.0) -> None:
    decayed = matrix_nms(
        boxes.to(backend.device),
        scores.to(backend.device),
        idxs=None if idxs is None else idxs.to(backend.device),
        kernel=kernel,
        sigma=sigma,
        backend=backend.name,
    ).cpu()
    expected = reference.matrix_nms(boxes, scores, idxs, kernel == "gaussian", sigma)
    assert decayed.dtype == scores.dtype
    assert_matches(decayed, expected)
    if kernel == "linear":
        assert torch.equal(decayed.nan_to_num(-1), expected.nan_to_num(-1))


def test_known_numbers(backend):
    boxes = torch.tensor([[0.0, 0, 10, 6], [0, 0, 10, 10], [0, 0, 10, 3], [50, 0, 60, 10]])
    scores = torch.tensor([0.8, 0.9, 0.5, 0.7])
    # IoU 0.6 of the first two; the third has 0.3 with the best, and 0.5 with one that has 0.6
    decayed = [
        matrix_nms(
            boxes.to(backend.device), scores.to(backend.device), kernel=k, backend=backend.name
        ).cpu()
        for k in KERNELS
    ]
    third = min(math.exp(-2 * 0.09), math.exp(-2 * (0.25 - 0.36)))
    assert_matches(decayed[0], torch.tensor([0.8 * math.exp(-0.72), 0.9, 0.5 * third, 0.7]))
    third = min(0.7, 0.5 / 0.4)
    assert_matches(decayed[1], torch.tensor([0.8 * 0.4, 0.9, 0.5 * third, 0.7]))


@pytest.mark.parametrize("kernel", KERNELS)
def test_reference_against_a_loop(kernel):
    boxes, scores = cases.clustered_boxes(40, objects=4).double(), cases.scores(40).double()
    idxs = cases.classes(40, 2)
    iou = box_iou(boxes, boxes)

    def f(x: float) -> float:
        return math.exp(-2 * x * x) if kernel == "gaussian" else 1 - x

    better = [
        [i for i in range(40) if scores[i] > scores[j] and idxs[i] == idxs[j]] for j in range(40)
    ]
    largest = [max((iou[k, i].item() for k in better[i]), default=0) for i in range(40)]
    expected = [
        scores[j] * min([1.0, *(f(iou[i, j].item()) / f(largest[i]) for i in better[j])])
        for j in range(40)
    ]
    decayed = reference.matrix_nms(boxes, scores, idxs, kernel == "gaussian", 2.0)
    assert_matches(decayed, torch.stack(expected))
    assert (decayed < scores).any()


@pytest.mark.parametrize("dtype", DTYPES, ids=dtype_id)
@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("kind", BOXES)
@pytest.mark.only(lambda backend: backend.name != "reference")
def test_matches_reference(backend, kind, kernel, dtype):
    count = 70 if backend.interpreted else 301
    for seed in range(2):
        boxes, scores = BOXES[kind](count, seed).to(dtype), scores_for(count, seed).to(dtype)
        check(backend, boxes, scores, None, kernel)
        check(backend, boxes, scores, cases.classes(count, 4) * 2**40 - 2**62, kernel)


@pytest.mark.parametrize("count", [0, 1, 2, 15, 16, 17, 33, 100])
@pytest.mark.parametrize("kernel", KERNELS)
def test_sizes(backend, kernel, count):
    boxes, scores = cases.clustered_boxes(count, objects=3), cases.scores(count)
    check(backend, boxes, scores, None, kernel)
    check(backend, boxes, scores, torch.arange(count) % 5, kernel)


@pytest.mark.parametrize("kernel", KERNELS)
def test_equal_boxes(backend, kernel):
    """A copy decays as far as it can, and no longer decays others, even by 0 divided by 0."""
    boxes = torch.tensor([[0.0, 0, 10, 10]]).repeat(4, 1)
    check(backend, boxes, torch.full((4,), 0.5), None, kernel)


@pytest.mark.parametrize("sigma", [5e-324, 1e-3, 10.0, 1e300, math.inf])
def test_sigmas(backend, sigma):
    count = 50 if backend.interpreted else 200
    check(backend, BOXES["grid"](count, 2), cases.scores(count), sigma=sigma)


def test_non_contiguous(backend):
    rows = torch.cat([cases.clustered_boxes(30, objects=3), cases.scores(30)[:, None]], 1)
    check(backend, rows[:, :4], rows[:, 4], cases.classes(60, 2)[::2])


@needs_library
def test_threads_do_not_change_the_answer():
    boxes, scores = cases.clustered_boxes(3000), cases.scores(3000)
    idxs = cases.classes(3000, 3)
    same_for_threads(lambda: matrix_nms(boxes, scores, idxs=idxs), (1, 2, 5))


def test_errors():
    boxes, scores = torch.rand(3, 4), torch.rand(3)
    with pytest.raises(ValueError, match=r"kernel must be one of .*, got 'cosine'"):
        matrix_nms(boxes, scores, kernel="cosine")
    for sigma in (0.0, -1.0, math.nan):
        with pytest.raises(ValueError, match="sigma must be above 0, got"):
            matrix_nms(boxes, scores, sigma=sigma)
    with pytest.raises(TypeError, match="sigma must be a number, got"):
        matrix_nms(boxes, scores, sigma="wide")
    with pytest.raises(RuntimeError, match="scores must have shape"):
        matrix_nms(boxes, scores[:2])
    with pytest.raises(ValueError, match="cuda"):
        matrix_nms(boxes, scores, backend="cuda")


@needs_library
def test_errors_of_the_op():
    with pytest.raises(RuntimeError, match="sigma"):
        OP(torch.rand(3, 4), torch.rand(3), None, True, 0.0)


@needs_library
@pytest.mark.parametrize("how", ["eager", "inductor", "export"])
def test_compile_and_export(how):
    class Module(torch.nn.Module):
        def forward(self, boxes, scores, idxs):
            return matrix_nms(boxes, scores), matrix_nms(boxes, scores, idxs=idxs)

    torch.compiler.reset()
    inputs = cases.clustered_boxes(20, objects=2), cases.scores(20), cases.classes(20, 3)
    if how == "export":
        program = torch.export.export(Module(), inputs).module()
    else:
        program = torch.compile(Module(), fullgraph=True, backend=how)
    assert all(map(torch.equal, program(*inputs), Module()(*inputs)))


@needs_library
@pytest.mark.parametrize("op", [OP, torch.ops.fastvision.matrix_nms_triton.default], ids=str)
@pytest.mark.only(lambda op: op is OP or triton_missing() is None)
def test_opcheck(op):
    boxes, scores = cases.clustered_boxes(12, objects=2), cases.scores(12)
    if op is not OP and torch.cuda.is_available():
        boxes, scores = boxes.cuda(), scores.cuda()
    for idxs in (None, cases.classes(12, 3).to(boxes.device)):
        torch.library.opcheck(op, (boxes, scores, idxs, True, 2.0))


def test_boxes_that_require_grad(backend):
    boxes = cases.uniform_boxes(9).to(backend.device)
    scores: Tensor = cases.scores(9).to(backend.device).requires_grad_()
    assert not matrix_nms(boxes, scores, backend=backend.name).requires_grad
