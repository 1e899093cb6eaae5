"""NMS under torch's machinery, and what it takes of memory and threads."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from torch import Tensor

from fastvision.ops import batched_nms, batched_nms_padded, nms
from fastvision.testing import cases
from fastvision.testing.marks import needs_library
from fastvision.testing.threads import same_for_threads

# the numpy under Triton's interpreter warns of NaNs and infinities, which are meant here
pytestmark = pytest.mark.filterwarnings("ignore:.*encountered in:RuntimeWarning")
OP = torch.ops.fastvision.nms.default
PADDED_OP = torch.ops.fastvision.nms_padded.default


@needs_library
def test_threads_do_not_change_the_answer():
    boxes, scores = cases.uniform_boxes(9000).view(3, 3000, 4), cases.scores(9000).view(3, 3000)
    idxs = cases.classes(9000, 5).view(3, 3000)
    same_for_threads(lambda: PADDED_OP(boxes, scores, idxs, 0.3, 0.1, 2000), (1, 2, 5))


MEMORY_SCRIPT = """
import torch, fastvision
from fastvision.testing import cases
from fastvision.testing.numerics import DTYPES
from fastvision.testing.marks import needs_library

def kilobytes(name):
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith(name))

boxes, scores = cases.uniform_boxes(100_000), cases.scores(100_000)
idxs = cases.classes(100_000, 80)
fastvision.ops.nms(boxes[:10], scores[:10], 0.5)
with open("/proc/self/clear_refs", "w") as clear:
    clear.write("5")  # the peak starts again from here
before = kilobytes("VmRSS")
kept = fastvision.ops.nms(boxes, scores, 0.5), fastvision.ops.batched_nms(boxes, scores, idxs, 0.5)
assert all(len(k) > 10_000 for k in kept)
print((kilobytes("VmHWM") - before) / 1024)
"""


@needs_library
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_memory_is_linear():
    run = subprocess.run(
        [sys.executable, "-c", MEMORY_SCRIPT], capture_output=True, text=True, check=True
    )
    assert 1 < float(run.stdout) < 100  # MB, where a bit per pair would be 1250


def detect(boxes: Tensor, scores: Tensor, idxs: Tensor) -> tuple[Tensor, Tensor]:
    confident = torch.where(scores > 0.5)[0]
    boxes, scores, idxs = boxes[confident], scores[confident], idxs[confident]
    best = batched_nms(boxes, scores, idxs, 0.5, score_threshold=0.6, max_output=3)
    return boxes[nms(boxes, scores, 0.5)], boxes[best]


def detect_padded(boxes: Tensor, scores: Tensor, idxs: Tensor) -> tuple[Tensor, Tensor]:
    return batched_nms_padded(
        boxes[None], scores[None], idxs[None], 0.5, score_threshold=0.5, max_output=5
    )


def inputs_keeping(kept: int) -> tuple[Tensor, Tensor, Tensor]:
    """Twelve boxes, of which detect keeps 0, 1 or several."""
    boxes = cases.uniform_boxes(12) if kept > 1 else cases.uniform_boxes(1).repeat(12, 1)
    scores = torch.full((12,), 0.1 if kept == 0 else 0.9)
    return boxes, scores, torch.zeros(12, dtype=torch.int64)


@needs_library
@pytest.mark.parametrize("function", (detect, detect_padded))
@pytest.mark.parametrize("compiler", ("eager", "inductor"))
def test_compile(function, compiler):
    torch.compiler.reset()
    compiled = torch.compile(function, fullgraph=True, backend=compiler)
    for kept in (12, 1, 0):
        inputs = inputs_keeping(kept)
        for actual, expected in zip(compiled(*inputs), function(*inputs), strict=True):
            assert torch.equal(actual, expected)


@needs_library
@pytest.mark.parametrize("function", (detect, detect_padded))
def test_export(function):
    class Module(torch.nn.Module):
        def forward(self, boxes, scores, idxs):
            return function(boxes, scores, idxs)

    exported = torch.export.export(Module(), inputs_keeping(12)).module()
    for kept in (12, 1, 0):
        inputs = inputs_keeping(kept)
        for actual, expected in zip(exported(*inputs), function(*inputs), strict=True):
            assert torch.equal(actual, expected)


def test_torchvision_does_not_compile_with_few_kept_boxes(torchvision):
    """What test_compile guards against: torchvision's fake nms claims at least two boxes."""
    if torchvision.__version__ >= "0.30":
        pytest.skip("known of torchvision up to 0.29")
    torch.compiler.reset()
    compiled = torch.compile(
        lambda boxes, scores: boxes[torchvision.ops.nms(boxes, scores, 0.5)],
        fullgraph=True,
        backend="eager",
    )
    for kept in (0, 1):
        boxes, scores, _ = inputs_keeping(kept)
        boxes, scores = boxes[:kept], scores[:kept]
        with pytest.raises(RuntimeError, match=">= 2"):
            compiled(boxes, scores)


@needs_library
def test_opcheck():
    boxes, scores, idxs = cases.uniform_boxes(20), cases.scores(20), cases.classes(20, 3)
    for classes in (None, idxs):
        torch.library.opcheck(OP, (boxes, scores, classes, 0.3))
        torch.library.opcheck(OP, (boxes, scores, classes, 0.3, 0.2, 8))
        batch = (boxes[None], scores[None], None if classes is None else classes[None])
        torch.library.opcheck(PADDED_OP, (*batch, 0.3, 0.2, 8))


@needs_library
def test_boxes_that_require_grad():
    boxes, scores = cases.uniform_boxes(20).requires_grad_(), cases.scores(20).requires_grad_()
    kept = nms(boxes, scores, 0.5)
    assert not kept.requires_grad
    boxes[kept].sum().backward()
    assert boxes.grad[kept].eq(1).all()


@pytest.mark.parametrize("low", ["boxes", "scores"])
def test_autocast_may_mix_dtypes(low):
    """Layers under autocast may give boxes and scores of different precision."""
    boxes, scores = cases.uniform_boxes(60).round(), cases.scores(60)
    inputs = {"boxes": boxes, "scores": scores}
    inputs[low] = inputs[low].bfloat16()
    expected = nms(inputs["boxes"].float(), inputs["scores"].float(), 0.3)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(nms(**inputs, iou_threshold=0.3), expected)
    with pytest.raises(RuntimeError, match="scores"):
        nms(**inputs, iou_threshold=0.3)
