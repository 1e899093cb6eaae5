"""NMS: the answer is a list of indices, so every comparison here is exact."""

from __future__ import annotations

import math
import subprocess
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fastvision import _extension, reference
from fastvision.ops import batched_nms, batched_nms_padded, nms
from fastvision.testing import cases

# the numpy under Triton's interpreter warns of NaNs and infinities, which are meant here
pytestmark = pytest.mark.filterwarnings("ignore:.*encountered in:RuntimeWarning")

DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
THRESHOLDS = (-1.0, -0.0, 0.0, 1e-6, 0.3, 0.5, 0.7, 1.0, 1.5, math.nan)
OP = torch.ops.fastvision.nms.default
PADDED_OP = torch.ops.fastvision.nms_padded.default

needs_library = pytest.mark.skipif(_extension.missing is not None, reason=str(_extension.missing))


def special_boxes(count: int, seed: int) -> Tensor:
    """Uniform boxes, some of them reversed, empty, denormal, huge, infinite or NaN."""
    g = cases.generator(seed)
    boxes = cases.uniform_boxes(count, seed=seed) - 200
    values = torch.tensor([math.nan, math.inf, -math.inf, 3e38, -3e38, 1e20, 0.0, -0.0, 1e-40, 50])
    rows = torch.randint(0, count, (count // 3,), generator=g)
    columns = torch.randint(0, 4, rows.shape, generator=g)
    boxes[rows, columns] = values[torch.randint(0, len(values), rows.shape, generator=g)]
    reversed_rows = torch.randint(0, count, (count // 8,), generator=g)
    boxes[reversed_rows] = boxes[reversed_rows].flip(1)
    tiny = torch.randint(0, count, (count // 8,), generator=g)
    boxes[tiny] = boxes[tiny] * torch.tensor([1e-10, 1e-22, 1e-30, 1e-42])[tiny % 4, None]
    return boxes


def grid_boxes(count: int, seed: int) -> Tensor:
    """Boxes on a coarse grid of integers: many equal ones, many IoUs exactly at a threshold."""
    g = cases.generator(seed)
    corner = torch.randint(-6, 6, (count, 2), generator=g)
    return torch.cat([corner, corner + torch.randint(1, 5, (count, 2), generator=g)], 1).float()


def mixed_scale_boxes(count: int, seed: int) -> Tensor:
    """Sides over six orders of magnitude, at offsets where a pixel is a few float32 ulps."""
    g = cases.generator(seed)
    size = torch.exp(torch.rand(count, 2, generator=g) * 14 - 4)
    corner = torch.randn(count, 2, generator=g) * size * 0.3 + 1e5 * (seed % 2)
    return torch.cat([corner, corner + size], 1)


BOXES = {
    "uniform": lambda count, seed: cases.uniform_boxes(count, seed=seed),
    "clustered": lambda count, seed: cases.clustered_boxes(count, seed=seed),
    "special": special_boxes,
    "grid": grid_boxes,
    "mixed_scale": mixed_scale_boxes,
}


def tied_scores(count: int, seed: int) -> Tensor:
    """Many equal scores, with NaN, infinities and both zeros among them."""
    values = torch.tensor([math.nan, math.inf, -math.inf, -0.0, 0.0, -1.0, 0.25, 0.5, 1.0])
    return values[torch.randint(0, len(values), (count,), generator=cases.generator(seed))]


def scores_for(count: int, seed: int) -> Tensor:
    return tied_scores(count, seed) if seed % 2 else cases.scores(count, seed=seed)


def expect(actual: Tensor, expected: Tensor) -> None:
    assert actual.dtype == torch.int64
    assert actual.tolist() == expected.tolist()


# --- the answer


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
def test_matches_reference(backend, kind, dtype):
    if backend.name == "reference":
        pytest.skip("compared with torchvision")
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
def test_matches_torchvision(backend, torchvision, kind):
    if backend.name not in ("cpp", "reference"):
        pytest.skip("compared with the reference, which is compared with torchvision")
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


# --- classes


@pytest.mark.parametrize("dtype", (torch.int64, torch.int32, torch.uint8, torch.float32), ids=str)
@pytest.mark.parametrize("kind", ("uniform", "clustered", "special"))
def test_batched(backend, kind, dtype):
    count = 40 if backend.interpreted else 300
    boxes, scores = BOXES[kind](count, 2), cases.scores(count)
    idxs = cases.classes(count, 3).to(dtype)
    device = backend.device
    kept = batched_nms(
        boxes.to(device), scores.to(device), idxs.to(device), 0.4, backend=backend.name
    )
    expect(kept, reference.nms(boxes, scores, idxs, 0.4))


@pytest.mark.parametrize(
    "labels",
    ((-5, 0, 5), (-(2**63), 2**63 - 1, 0), (2**40, 2**40 + 1, 1), (0.25, 0.75, -1e30)),
    ids=("negative", "extreme", "large", "fractions"),
)
def test_batched_with_any_labels(backend, labels):
    count = 40
    boxes, scores = cases.clustered_boxes(count, objects=3), cases.scores(count)
    idxs = torch.tensor(labels)[cases.classes(count, len(labels))]
    device = backend.device
    kept = batched_nms(
        boxes.to(device), scores.to(device), idxs.to(device), 0.4, backend=backend.name
    )
    expect(kept, reference.nms(boxes, scores, idxs, 0.4))


@needs_library
@pytest.mark.parametrize("kind", BOXES)
@pytest.mark.parametrize(("count", "classes"), ((50, 4), (900, 80), (3000, 2), (500, 500)))
def test_batched_matches_torchvision(torchvision, kind, count, classes):
    boxes = BOXES[kind](count, 4)
    # all different: torchvision sorts the kept boxes of all classes by an unstable sort
    scores = torch.randperm(count, generator=cases.generator(0)) / count
    idxs = cases.classes(count, classes)
    exact = torchvision.ops.boxes._batched_nms_vanilla
    expect(batched_nms(boxes, scores, idxs, 0.5), exact(boxes, scores, idxs, 0.5))


# --- padded


@pytest.mark.parametrize("with_classes", (True, False), ids=("classes", "one_class"))
@pytest.mark.parametrize("score_threshold", (None, 0.3, math.nan))
@pytest.mark.parametrize("max_output", (0, 1, 7, 60))
def test_padded(backend, with_classes, score_threshold, max_output):
    images, count = 3, 50
    boxes = torch.stack([BOXES[k](count, 5) for k in ("uniform", "clustered", "special")])
    scores = torch.stack([scores_for(count, seed) for seed in range(images)])
    idxs = cases.classes(images * count, 4).view(images, count) if with_classes else None
    device = backend.device
    indices, counts = batched_nms_padded(
        boxes.to(device),
        scores.to(device),
        None if idxs is None else idxs.to(device),
        0.4,
        score_threshold=score_threshold,
        max_output=max_output,
        backend=backend.name,
    )
    assert indices.shape == (images, max_output)
    expected = reference.nms_padded(boxes, scores, idxs, 0.4, score_threshold, max_output)
    expect(indices, expected[0])
    expect(counts, expected[1])
    for image in range(images):
        taking_part = torch.arange(count)
        if score_threshold is not None:
            taking_part = taking_part[scores[image] > score_threshold]
        classes = torch.zeros(count) if idxs is None else idxs[image]
        kept = batched_nms(
            boxes[image, taking_part], scores[image, taking_part], classes[taking_part], 0.4
        )
        expect(indices[image, : counts[image]], taking_part[kept][:max_output])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_padded_compares_scores_in_their_type(backend, dtype):
    boxes = torch.tensor([[[0, 0, 1, 1], [5, 5, 6, 6]]], dtype=dtype, device=backend.device)
    scores = torch.tensor([[0.3, 0.5]], device=backend.device).to(dtype)
    indices, counts = batched_nms_padded(
        boxes, scores, None, 0.5, score_threshold=0.3, max_output=2, backend=backend.name
    )
    # for float64 the score is float32(0.3), which is above 0.3
    expected = torch.tensor(0.3).to(dtype) > 0.3
    assert counts.item() == 1 + int(expected)
    assert indices.tolist() == ([[1, 0]] if expected else [[1, -1]])


# --- shapes and strides


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
        with pytest.raises(RuntimeError, match="idxs"):
            OP(boxes[0], scores[0], torch.zeros(3, dtype=torch.int32), 0.5)


# --- fuzz

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
    supported = _extension._C.cpu_capability_supported()
    levels = _extension._C.cpu_levels()
    try:
        for level in levels[: levels.index(supported) + 1]:
            _extension._C.set_cpu_capability(level)
            for classes in (None, idxs):
                expect(
                    OP(boxes, scores, classes, threshold),
                    reference.nms(boxes, scores, classes, threshold),
                )
    finally:
        _extension._C.set_cpu_capability(supported)


# --- resources


@needs_library
def test_threads_do_not_change_the_answer():
    threads = torch.get_num_threads()
    boxes, scores = cases.uniform_boxes(9000).view(3, 3000, 4), cases.scores(9000).view(3, 3000)
    idxs = cases.classes(9000, 5).view(3, 3000)
    try:
        results = []
        for count in (1, 2, 5):
            torch.set_num_threads(count)
            results.append(PADDED_OP(boxes, scores, idxs, 0.3, 0.1, 2000))
    finally:
        torch.set_num_threads(threads)
    for indices, counts in results[1:]:
        expect(indices, results[0][0])
        expect(counts, results[0][1])


MEMORY_SCRIPT = """
import torch, fastvision
from fastvision.testing import cases

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


# --- torch.compile, torch.export, opcheck


def detect(boxes: Tensor, scores: Tensor, idxs: Tensor) -> tuple[Tensor, Tensor]:
    confident = torch.where(scores > 0.5)[0]
    boxes, scores, idxs = boxes[confident], scores[confident], idxs[confident]
    return boxes[nms(boxes, scores, 0.5)], boxes[batched_nms(boxes, scores, idxs, 0.5)]


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
