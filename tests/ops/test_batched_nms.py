"""NMS of several classes and images at once, with results of any and of one size."""

from __future__ import annotations

import math
import time

import pytest
import torch

from fastvision import reference
from fastvision.ops import batched_nms, batched_nms_padded, nms
from fastvision.testing import cases
from fastvision.testing.marks import needs_library
from fastvision.testing.nms import BOXES, expect, scores_for
from fastvision.testing.numerics import DTYPES

# the numpy under Triton's interpreter warns of NaNs and infinities, which are meant here
pytestmark = pytest.mark.filterwarnings("ignore:.*encountered in:RuntimeWarning")


def test_options_are_checked_without_boxes():
    none = torch.zeros(0, 4)
    with pytest.raises(ValueError, match="max_output must not be negative"):
        batched_nms(none, none[:, 0], none[:, 0], 0.5, max_output=-1)
    with pytest.raises(ValueError, match="backend"):
        batched_nms(none, none[:, 0], none[:, 0], 0.5, backend="unknown")
    assert batched_nms(none, none[:, 0], none[:, 0], 0.5, max_output=3).shape == (0,)


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


@pytest.mark.parametrize("score_threshold", (None, 0.3, math.nan))
@pytest.mark.parametrize("max_output", (None, 0, 1, 7, 2**62))
def test_limits(backend, max_output, score_threshold):
    count = 40 if backend.interpreted else 300
    boxes, scores = BOXES["special"](count, 3), scores_for(count, 5)
    idxs = cases.classes(count, 3)
    tensors = [t.to(backend.device) for t in (boxes, scores, idxs)]
    limits = {"score_threshold": score_threshold, "max_output": max_output}
    for kept, classes in (
        (nms(*tensors[:2], 0.4, **limits, backend=backend.name), None),
        (batched_nms(*tensors, 0.4, **limits, backend=backend.name), idxs),
    ):
        every = reference.nms(boxes, scores, classes, 0.4)
        if score_threshold is not None:
            above = scores > score_threshold
            index = torch.arange(count)[above]
            classes = None if classes is None else classes[above]
            every = index[reference.nms(boxes[above], scores[above], classes, 0.4)]
        expect(kept, every[:max_output])


@needs_library
def test_the_search_ends_with_the_last_box_kept():
    boxes, scores = cases.uniform_boxes(100_000, min_size=1, max_size=2), cases.scores(100_000)
    times, kept = [], []
    for max_output in (10, None):
        start = time.perf_counter()
        kept.append(nms(boxes, scores, 0.5, max_output=max_output))
        times.append(time.perf_counter() - start)
    expect(kept[0], kept[1][:10])
    # otherwise tens of thousands of boxes would still be compared
    assert times[0] < times[1] and len(kept[1]) > 90_000


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
