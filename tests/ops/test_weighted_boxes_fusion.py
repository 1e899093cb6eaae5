"""Weighted boxes fusion: every backend against golden numbers, the reference and ensemble-boxes."""

from __future__ import annotations

import importlib.util
import math

import pytest
import torch

from fastvision import _extension
from fastvision.ops import weighted_boxes_fusion
from fastvision.testing import cases
from fastvision.testing.backends import LEVELS
from fastvision.testing.marks import needs_library
from fastvision.testing.numerics import DTYPES, assert_matches
from fastvision.testing.tensors import dtype_id
from fastvision.testing.threads import same_for_threads

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*encountered in:RuntimeWarning"),
    pytest.mark.usefixtures("poisoned_memory"),
]
OP = torch.ops.fastvision.weighted_boxes_fusion.default
HAS_PEER = importlib.util.find_spec("ensemble_boxes") is not None


def detections(models, count, classes, *, seed=0, dtype=torch.float32, device="cpu"):
    """Jittered copies of the same objects for each model, in [0, 1]."""
    g = cases.generator(seed)
    objects = max(count // 3, 1)
    center, size = torch.rand(objects, 2, generator=g), 0.05 + torch.rand(objects, 2, generator=g)
    of_class = torch.randint(0, classes, (objects,), generator=g)
    boxes, scores, labels = [], [], []
    for _ in range(models):
        which = torch.randint(0, objects, (count,), generator=g)
        middle = center[which] + 0.05 * torch.randn(count, 2, generator=g) * size[which]
        half = size[which] * (0.9 + 0.2 * torch.rand(count, 2, generator=g)) / 6
        boxes.append(torch.cat([middle - half, middle + half], 1).clamp(0, 1).to(device, dtype))
        scores.append(torch.rand(count, generator=g).to(device, dtype))
        labels.append(of_class[which].to(device))
    return boxes, scores, labels


def expect(actual, expected):
    assert actual[2].tolist() == expected[2].tolist()
    for one, other in zip(actual[:2], expected[:2], strict=True):
        assert_matches(one.cpu(), other.cpu())


# two models, of which the second has twice the weight; from ensemble-boxes 1.0.9
GOLDEN_INPUT = (
    [
        [[0.0, 0.51, 0.81, 0.91], [0.1, 0.31, 0.71, 0.61], [0.01, 0.32, 0.83, 0.93]],
        [[0.04, 0.56, 0.84, 0.92], [0.12, 0.33, 0.72, 0.64], [0.38, 0.66, 0.79, 0.95]],
    ],
    [[0.9, 0.8, 0.2], [0.5, 0.8, 0.65]],
    [[0, 1, 0], [0, 1, 1]],
)


GOLDEN = {
    "avg": (
        [
            [0.113333, 0.323333, 0.716667, 0.63],
            [0.02, 0.515714, 0.82619, 0.916667],
            [0.38, 0.66, 0.79, 0.95],
        ],
        [0.8, 0.466667, 0.433333],
        [1, 0, 1],
    ),
    "max": (
        [
            [0.113333, 0.323333, 0.716667, 0.63],
            [0.38, 0.66, 0.79, 0.95],
            [0.02, 0.515714, 0.82619, 0.916667],
        ],
        [0.8, 0.65, 0.5],
        [1, 1, 0],
    ),
    "overflow": (
        [
            [0.113333, 0.323333, 0.716667, 0.63],
            [0.02, 0.515714, 0.82619, 0.916667],
            [0.38, 0.66, 0.79, 0.95],
        ],
        [0.8, 0.7, 0.433333],
        [1, 0, 1],
    ),
}


def golden(kind):
    boxes, scores, labels = GOLDEN[kind]
    return torch.tensor(boxes), torch.tensor(scores), torch.tensor(labels)


@pytest.mark.parametrize("kind", GOLDEN)
def test_numbers_of_ensemble_boxes(backend, kind):
    boxes, scores, labels = ([torch.tensor(x, device=backend.device) for x in part]
                             for part in GOLDEN_INPUT)  # fmt: skip
    options = {"avg": {}, "max": {"conf_type": "max"}, "overflow": {"allows_overflow": True}}
    fused = weighted_boxes_fusion(
        boxes, scores, labels, weights=torch.tensor([1, 2]), iou_threshold=0.5,
        backend=backend.name, **options[kind],
    )  # fmt: skip
    expect(fused, golden(kind))


@pytest.mark.only(lambda: HAS_PEER)
@pytest.mark.filterwarnings("ignore")
def test_matches_ensemble_boxes(backend):
    import ensemble_boxes

    for seed in range(2 if backend.interpreted else 12):
        boxes, scores, labels = detections(3, 5 if backend.interpreted else 60, 4, seed=seed)
        options = {"weights": [2.0, 1.0, 0.5] if seed % 2 else None}
        options["conf_type"] = "max" if seed % 3 == 0 else "avg"
        options["allows_overflow"] = seed % 3 == 2
        threshold, skip = (0.55, 0.0) if seed % 4 else (0.3, 0.2)
        fused = weighted_boxes_fusion(
            *([t.to(backend.device) for t in part] for part in (boxes, scores, labels)),
            iou_threshold=threshold,
            skip_box_threshold=skip,
            backend=backend.name,
            **options,
        )
        expected = ensemble_boxes.weighted_boxes_fusion(
            *([t.tolist() for t in part] for part in (boxes, scores, labels)),
            iou_thr=threshold,
            skip_box_thr=skip,
            **options,
        )
        expect(fused, [torch.tensor(x) for x in expected])


@pytest.mark.parametrize("dtype", DTYPES, ids=dtype_id)
@pytest.mark.parametrize("conf_type", ("avg", "max"))
# the others are compared with the reference
@pytest.mark.only(lambda backend: backend.name != "reference")
def test_matches_reference(backend, conf_type, dtype):
    count = 12 if backend.interpreted else 200
    for classes in (1, 7):
        inputs = detections(3, count, classes, seed=classes, dtype=dtype)
        options = {"weights": [0.5, 2, 1], "conf_type": conf_type, "iou_threshold": 0.45}
        expected = weighted_boxes_fusion(*inputs, **options, backend="reference")
        on_device = ([t.to(backend.device) for t in part] for part in inputs)
        fused = weighted_boxes_fusion(*on_device, **options, backend=backend.name)
        assert 0 < len(expected[0]) < 3 * count
        assert fused[0].dtype == fused[1].dtype == dtype and fused[2].dtype == torch.int64
        expect(fused, expected)


def test_by_hand(backend):
    """A mean by scores, the share of models, ties by model, and classes apart."""
    boxes = [[[0.0, 0, 10, 10], [50, 50, 60, 60]], [[0.0, 0, 10, 12], [0, 0, 10, 10]]]
    scores = [[0.6, 0.5], [0.3, 0.6]]
    labels = [[-1.5, 7], [-1.5, 2]]
    fused = weighted_boxes_fusion(
        *(
            [torch.tensor(x, device=backend.device) for x in part]
            for part in (boxes, scores, labels)
        ),
        backend=backend.name,
    )
    # of the class -1.5: (0.6 * 10 + 0.3 * 12) / 0.9, and 0.45 of both models
    expected = (
        torch.tensor([[0, 0, 10, 32 / 3], [0, 0, 10, 10], [50, 50, 60, 60]]),
        torch.tensor([0.45, 0.3, 0.25]),
        torch.tensor([-1.5, 2, 7]),
    )
    expect(fused, expected)
    assert fused[2].dtype == torch.float32


def test_boxes_that_take_no_part(backend):
    inf, nan = math.inf, math.nan
    boxes = torch.tensor(
        [
            [0.0, 0.0, 2.0, 2.0],
            [2.0, 2.0, 0.0, 0.0],  # the first, reversed
            [0.0, 0.0, 0.0, 2.0],
            [nan, 0.0, 2.0, 2.0],
            [0.0, 0.0, inf, 2.0],
            [0.0, 0.0, 1e30, 1e30],
            [0.0, 0.0, 2.0, 2.0],
            [0.0, 0.0, 2.0, 2.0],
            [0.0, 0.0, 2.0, 2.0],
        ]
    )
    scores = torch.tensor([0.5, 0.25, 1, 1, 1, 1, nan, inf, 0.05])
    fused = weighted_boxes_fusion(
        [boxes.to(backend.device)],
        [scores.to(backend.device)],
        [torch.zeros(9, device=backend.device)],
        skip_box_threshold=0.1,
        allows_overflow=True,
        backend=backend.name,
    )
    expect(fused, (boxes[:1], torch.tensor([0.75]), torch.zeros(1)))


@pytest.mark.parametrize("scores", ([0.0, 0.0], [0.5, -0.5], [-0.25, -1.0]))
def test_scores_without_a_positive_sum(backend, scores):
    boxes = torch.tensor([[0.0, 0, 4, 4], [0, 0, 4, 5]], device=backend.device)
    fused, confidence, _ = weighted_boxes_fusion(
        [boxes],
        [torch.tensor(scores, device=backend.device)],
        [torch.zeros(2, device=backend.device)],
        skip_box_threshold=-2,
        allows_overflow=True,
        backend=backend.name,
    )
    assert fused.tolist() == [[0, 0, 4, 4]]
    assert confidence.tolist() == [sum(scores)]


@pytest.mark.parametrize("threshold", (-1.0, 0.0, 1.0, math.nan))
def test_thresholds(backend, threshold):
    inputs = detections(2, 10, 2, seed=3)
    fused = weighted_boxes_fusion(
        *([t.to(backend.device) for t in part] for part in inputs),
        iou_threshold=threshold,
        backend=backend.name,
    )
    if threshold < 0:  # everything joins the first box of its class
        assert sorted(fused[2].tolist()) == torch.cat(inputs[2]).unique().tolist()
    elif threshold != 0:
        assert len(fused[0]) == 20
    expect(fused, weighted_boxes_fusion(*inputs, iou_threshold=threshold, backend="reference"))


@pytest.mark.parametrize("dtype", DTYPES, ids=dtype_id)
def test_empty(backend, dtype):
    inputs = detections(2, 0, 1, dtype=dtype, device=backend.device)
    boxes, scores, labels = weighted_boxes_fusion(*inputs, backend=backend.name)
    assert boxes.shape == (0, 4) and scores.shape == labels.shape == (0,)
    assert boxes.dtype == scores.dtype == dtype and labels.dtype == torch.int64


@needs_library
def test_threads_and_levels_do_not_change_the_answer(cpu_level):
    inputs = detections(4, 1500, 9, seed=5)
    results = []
    for level in LEVELS:
        _extension.set_cpu_level(level)
        results.append(same_for_threads(lambda: weighted_boxes_fusion(*inputs), (1, 3)))
    for other in results[1:]:
        assert all(map(torch.equal, results[0], other))


class Fuse(torch.nn.Module):
    def forward(self, b1, s1, l1, b2, s2, l2):
        return weighted_boxes_fusion([b1, b2], [s1, s2], [l1, l2], weights=[1, 2])


@needs_library
def test_programs():
    """torch.compile, torch.export, torch.jit.trace and opcheck."""
    torch.compiler.reset()
    inputs = [
        tuple(x[i] for i in range(2) for x in detections(2, count, 3, seed=count))
        for count in (20, 7)
    ]
    programs = (
        torch.compile(Fuse(), fullgraph=True, backend="aot_eager", dynamic=True),
        torch.export.export(
            Fuse(),
            inputs[0],
            dynamic_shapes=[{0: torch.export.Dim.AUTO}] * 6,
        ).module(),
        torch.jit.trace(Fuse(), inputs[0], check_trace=False),
    )
    for args in inputs:
        expected = Fuse()(*args)
        for program in programs:
            assert all(map(torch.equal, program(*args), expected))
    boxes, scores, labels = inputs[0][:3]
    for maximum in (False, True):
        torch.library.opcheck(OP, (boxes, scores, labels.sort()[0], 0.5, maximum))


def test_is_not_differentiable():
    boxes, scores, labels = detections(2, 5, 1)
    fused, confidence, _ = weighted_boxes_fusion(
        [b.requires_grad_() for b in boxes], [s.requires_grad_() for s in scores], labels
    )
    assert not fused.requires_grad and not confidence.requires_grad


B, S, L = torch.rand(3, 4), torch.rand(3), torch.zeros(3)


@pytest.mark.parametrize(
    ("error", "message", "args", "options"),
    (
        (TypeError, "boxes must be a list of tensors, got Tensor", (B, [S], [L]), {}),
        (ValueError, "boxes must have at least one tensor, got 0", ([], [], []), {}),
        (ValueError, "scores must have 1 as boxes, got 2", ([B], [S, S], [L]), {}),
        (TypeError, r"labels\[0\] must be a Tensor, got NoneType", ([B], [S], [None]), {}),
        (ValueError, r"boxes\[1\] must have shape \[N, 4\], got \[3, 5\]",
         ([B, torch.rand(3, 5)], [S, S], [L, L]), {}),
        (ValueError, r"scores\[0\] must have shape \[3\] to match", ([B], [S[:2]], [L]), {}),
        (ValueError, r"labels\[0\] must have shape \[3\] to match", ([B], [S], [L[:2]]), {}),
        (ValueError, r"scores\[0\] must be of torch.float32 on cpu", ([B], [S.double()], [L]), {}),
        (ValueError, r"labels\[1\] must be of torch.float32", ([B, B], [S, S], [L, L.int()]), {}),
        (TypeError, r"boxes\[0\] must be float16, .*, got torch.int64", ([B.long()], [S], [L]), {}),
        (ValueError, "weights must have 1 numbers, one per model, got 2", ([B], [S], [L]),
         {"weights": [1, 2]}),
        (ValueError, r"weights\[0\] must be finite and at least 0, got -1", ([B], [S], [L]),
         {"weights": [-1]}),
        (ValueError, "weights must not all be 0", ([B], [S], [L]), {"weights": [0]}),
        (TypeError, r"weights\[0\] must be a number", ([B], [S], [L]), {"weights": ["1"]}),
        (TypeError, r"weights must be a list of numbers, got 1\.0", ([B], [S], [L]),
         {"weights": 1.0}),
        (TypeError, r"weights must be a list of numbers, got 1\.0", ([B], [S], [L]),
         {"weights": torch.tensor(1.0)}),
        (TypeError, r"weights\[0\] must be a number", ([B], [S], [L]),
         {"weights": torch.ones(1, 1)}),
        (ValueError, r"conf_type must be one of \('avg', 'max'\), got 'mean'", ([B], [S], [L]),
         {"conf_type": "mean"}),
        (TypeError, "iou_threshold must be a number", ([B], [S], [L]), {"iou_threshold": None}),
    ),
)  # fmt: skip
def test_errors(error, message, args, options):
    with pytest.raises(error, match=message):
        weighted_boxes_fusion(*args, **options)


@needs_library
def test_operators_check_shapes():
    for args in ((B[:, :3], S, L.long()), (B, S[:2], L.long()), (B, S, L), (B.half(), S, L.long())):
        with pytest.raises(RuntimeError, match="boxes|scores|labels"):
            OP(*args, 0.5, False)
