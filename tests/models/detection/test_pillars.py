"""PointPillars: pillars against loops, losses by hand, and what must not matter."""

from __future__ import annotations

import copy
import math
import pickle

import pytest
import torch

import fastvision
from fastvision import models
from fastvision.data import LidarScenes
from fastvision.models.detection import PillarFeatures, PointPillars
from fastvision.models.detection.solid_anchors import encode
from fastvision.ops import sigmoid_focal_loss
from fastvision.testing.models import randomize
from fastvision.testing.pillars import EXTENT, objects


def small(**options) -> PointPillars:
    torch.manual_seed(0)
    sizes = {"pillar_channels": 8, "widths": (8, 8, 16), "depths": (1, 1, 1), "up_channels": 8}
    return PointPillars(**{"extent": EXTENT, **sizes, **options})


def cloud(count: int, seed: int = 0) -> torch.Tensor:
    """Points in and around the extent, as many in the first pillar as in all others."""
    generator = torch.Generator().manual_seed(seed)
    spread = torch.tensor((22.0, 15.0, 6.0, 1.0))
    points = (torch.rand(count, 4, generator=generator) - 0.5) * spread
    points[: count // 2, :3] *= 0.005
    points[: count // 2, :2] += torch.tensor(EXTENT[:2]) + 0.2
    return points


def answer_of(model: PointPillars, boxes, labels, score: float = 5.0) -> torch.Tensor:
    """Outputs [1, A, 9] of a network that finds these boxes, each by all of its anchors."""
    answers, owner = model.anchors.match(boxes[None], labels[None])
    anchor = (answers[0] == 0).nonzero()[:, 0]
    anchors = model.anchors.on(boxes.device)[0]
    outputs = boxes.new_zeros(1, len(anchors), 9)
    outputs[..., 0] = -20
    codes, forward = encode(boxes[owner[0, anchor]], anchors[anchor].to(boxes.dtype))
    outputs[0, anchor, 0], outputs[0, anchor, 1:8] = score, codes
    outputs[0, anchor, 8] = torch.where(forward, 20.0, -20.0).to(boxes.dtype)
    return outputs


def test_parameters():
    with torch.device("meta"):
        model = models.get_model("point_pillars")
    assert sum(p.numel() for p in model.parameters()) == 753_284
    assert models.list_models("detection_3d") == ["point_pillars"]


@torch.no_grad()
def test_features_of_pillars_by_a_loop():
    module = randomize(PillarFeatures(6, EXTENT, 0.4)).double().eval()
    clouds = [cloud(300).double(), cloud(0).double(), cloud(80, 1).double()]
    rows, columns = module.shape
    assert (rows, columns) == (32, 48)
    expected = torch.zeros(3, 6, rows, columns, dtype=torch.double)
    low, high = (torch.tensor(part, dtype=torch.double) for part in (EXTENT[:3], EXTENT[3:]))
    for scene, points in enumerate(clouds):
        pillars: dict[tuple[int, int], list[torch.Tensor]] = {}
        for point in points:
            if (point[:3] >= low).all() and (point[:3] < high).all():
                column, row = ((point[:2] - low[:2]) / 0.4).floor().long().tolist()
                pillars.setdefault((row, column), []).append(point)
        for (row, column), inside in pillars.items():
            points = torch.stack(inside)
            center = low[:2] + (torch.tensor((column, row)) + 0.5) * 0.4
            values = torch.cat(
                (
                    2 * (points[:, :3] - low) / (high - low) - 1,
                    points[:, 3:],
                    (points[:, :3] - points[:, :3].mean(0)) / 0.4,
                    (points[:, :2] - center) / 0.4,
                ),
                1,
            )
            features = torch.nn.Sequential(*module.layers)(values.T[None, :, :, None])
            expected[scene, :, row, column] = features[0, :, :, 0].amax(1)
    assert (expected[0].amax(0) > 0).sum() > 50
    torch.testing.assert_close(module(clouds), expected)


def test_losses_term_by_term():
    model, target = small(), objects()
    boxes, labels = target["boxes"].double(), target["labels"]
    perfect = answer_of(model, boxes, labels, score=20.0)
    found = perfect[0, :, 0] > 0
    losses = model.losses(perfect, boxes[None], labels[None])
    assert losses.keys() == {"classification", "bbox_regression", "direction"}
    assert all(value < 1e-6 for value in losses.values())

    count, off = int(found.sum()), perfect.clone()
    off[0, found, 1] += 1.0  # beyond beta: the difference less half of it
    off[0, found, 7] += 0.05  # within: half of the square over beta, of the sine
    off[0, found, 8] = 0.0
    off[0, :, 0] = 0.0
    losses = model.losses(off, boxes[None], labels[None])
    beta = 1 / 9
    each = 1 - beta / 2 + math.sin(0.05) ** 2 / 2 / beta
    assert losses["bbox_regression"] == pytest.approx(2 * each)
    assert losses["direction"] == pytest.approx(0.2 * math.log(2))
    answers, _ = model.anchors.match(boxes[None], labels[None])
    expected = sigmoid_focal_loss(off[0, :, :1], answers[0], reduction="sum") / count
    assert losses["classification"] == pytest.approx(expected.item())
    # half a turn off is an error of the direction alone
    around = perfect.clone()
    around[0, found, 8] *= -1
    losses = model.losses(around, boxes[None], labels[None])
    assert losses["bbox_regression"] < 1e-6 and losses["direction"] == pytest.approx(0.2 * 20)


def test_losses_are_means_over_scenes():
    model, target = small(), objects()
    generator = torch.Generator().manual_seed(0)
    anchors = len(model.anchors.on(torch.device("cpu"))[0])
    outputs = torch.randn(2, anchors, 9, generator=generator, dtype=torch.double)
    boxes, labels = target["boxes"].double(), target["labels"]
    whole = model.losses(
        outputs, torch.stack((boxes, boxes)), torch.stack((labels, labels * (labels == 2)))
    )
    first = model.losses(outputs[:1], boxes[None], labels[None])
    second = model.losses(outputs[1:], boxes[None, 2:], labels[None, 2:])
    for name, value in whole.items():
        torch.testing.assert_close(value, (first[name] + second[name]) / 2)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_detections_are_the_boxes(dtype):
    model, target = small(), objects()
    boxes, labels = target["boxes"].to(dtype), target["labels"]
    one = answer_of(model, boxes, labels)
    empty = torch.full_like(one, -20)
    result = model.detections(torch.cat((one, empty, one)))
    assert [len(part["boxes"]) for part in result] == [3, 0, 3], "one for all anchors of an object"
    for part in result[::2]:
        order = [(part["labels"] == label).nonzero()[:, 0] for label in (1, 2)]
        order = torch.cat((order[0][part["boxes"][order[0], 0].argsort()], order[1]))
        torch.testing.assert_close(part["boxes"][order], boxes)
        assert part["labels"][order].equal(labels) and part["boxes"].dtype == dtype
    assert result[1]["boxes"].shape == (0, 7) and result[1]["labels"].dtype == torch.int64

    one[0, :, 0] += torch.linspace(0, 1, one.shape[1], dtype=dtype)
    (part,) = model.detections(one)
    assert (part["scores"].diff() <= 0).all() and len(part["scores"]) == 3
    model.detections_per_scene = 2
    (fewer,) = model.detections(one)
    assert fewer["boxes"].equal(part["boxes"][:2])
    model.score_thresh = 1.0
    assert len(model.detections(one)[0]["boxes"]) == 0


@pytest.fixture(scope="module")
def trained():
    """A model that finds things, and scenes to find them in."""
    model = small(score_thresh=0.005, nms_thresh=0.5)
    scenes = LidarScenes("train", length=3, reach=9)
    clouds = [points for points, _ in scenes]
    randomize(model)
    torch.nn.init.normal_(model.head.weight, std=0.3)
    with torch.no_grad():
        assert all(len(part["boxes"]) > 3 for part in model.eval()(clouds))
    return model, clouds


def assert_same_boxes(actual, expected, tolerance: float = 1e-4):
    assert len(actual) == len(expected)
    for one, other in zip(actual, expected, strict=True):
        assert one["labels"].equal(other["labels"])
        for key in ("boxes", "scores"):
            torch.testing.assert_close(one[key], other[key], rtol=tolerance, atol=tolerance)


@torch.no_grad()
def test_what_does_not_matter(trained):
    model, clouds = copy.deepcopy(trained[0]).double(), [points.double() for points in trained[1]]
    expected = model(clouds)
    assert expected[0]["boxes"].dtype == torch.float64
    order = torch.randperm(len(clouds[0]), generator=torch.Generator().manual_seed(0))
    assert_same_boxes(model([clouds[0][order]]), expected[:1])
    first, nothing, last = model([clouds[2], clouds[1][:0], clouds[0]])
    assert_same_boxes([first, last], [expected[2], expected[0]])
    assert_same_boxes([nothing], model([clouds[1][:0]]))
    nowhere = torch.tensor(
        [
            [math.nan, 0, 0, 0],
            [0, math.inf, 0, 0],
            [0, 0, 0, math.nan],
            [50, 0, 0, 0],
            [0, -6.41, 0, 0],
            [9.6, 0, 0, 0],
            [0, 0, 1e30, 0],
        ],
        dtype=torch.double,
    )
    assert_same_boxes(model([torch.cat((nowhere, clouds[1]))]), expected[1:2])
    twice = torch.cat((clouds[1], clouds[1]))
    assert_same_boxes(model([twice]), expected[1:2])


def test_empty_clouds():
    model, target = small(), objects()
    nothing = {"boxes": torch.zeros(0, 7), "labels": torch.zeros(0, dtype=torch.int64)}
    empty = torch.zeros(0, 4)
    for clouds, targets in (([empty, cloud(50)], [target, nothing]), ([empty], [nothing])):
        losses = model.train()(clouds, targets)
        sum(losses.values()).backward()
        assert all(value.isfinite() for value in losses.values())
        with torch.no_grad():
            result = model.eval()(clouds)
        assert [part["boxes"].shape[1] for part in result] == [7] * len(clouds)
    outside = torch.tensor([[100.0, 0, 0, 0]])
    assert len(model([outside])) == 1


def test_gradients(trained):
    model, clouds = copy.deepcopy(trained[0]).train(), trained[1]
    losses = model(clouds, [objects()] * 3)
    sum(losses.values()).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), name
        assert parameter.grad.abs().max() > 0, name


def test_learns_a_scene():
    from fastvision.training._average_precision import AveragePrecision, overlap_from_above

    scenes = LidarScenes("train", length=1, reach=8, cars=3, pedestrians=2, clutter=2, seed=1)
    points, target = scenes[0]
    model = small(extent=(-9.6, -9.6, -1, 9.6, 9.6, 4))
    optimizer = torch.optim.AdamW(model.parameters(), 1e-2)

    def found():
        with torch.no_grad():
            return model.eval()([points])

    def precision():
        metric = AveragePrecision(overlap_from_above)
        metric.update(found(), [target])
        return metric.compute()

    assert precision() < 0.1
    for _ in range(80):
        sum(model.train()([points], [target]).values()).backward()
        optimizer.step()
        optimizer.zero_grad()
    assert precision() == 1
    (part,) = found()
    shared = overlap_from_above(part["boxes"], target["boxes"]).max(1)
    turn = part["boxes"][:, 6] - target["boxes"][shared.indices, 6]
    is_car = (part["labels"] == 1) & (part["scores"] > 0.5)
    assert is_car.sum() == 3 and (turn[is_car].cos() > 0.9).all(), "the front is at the front"


@torch.no_grad()
def test_fuse_and_copies(trained):
    model, clouds = trained
    expected = model(clouds)
    assert_same_boxes(fastvision.fuse(model)(clouds), expected, 1e-3)
    for other in (pickle.loads(pickle.dumps(model)), copy.deepcopy(model)):
        assert_same_boxes(other(clouds), expected)
    fresh = small(score_thresh=0.005, nms_thresh=0.5).eval()
    fresh.load_state_dict(model.state_dict())
    assert_same_boxes(fresh(clouds), expected)


@torch.no_grad()
def test_types(trained):
    model, clouds = trained
    narrow = copy.deepcopy(model).bfloat16()
    assert narrow.pillars(clouds).dtype == torch.bfloat16
    (part,) = narrow(clouds[:1])
    assert part["boxes"].dtype == torch.float32 and part["boxes"].isfinite().all()
    # positions are not rounded with the weights
    assert narrow.anchors.on(torch.device("cpu"))[0].dtype == torch.float32
    wide = copy.deepcopy(model).double()
    torch.testing.assert_close(
        narrow.pillars(clouds).double(), wide.pillars(clouds), rtol=0.03, atol=0.03
    )
    with torch.autocast("cpu", torch.bfloat16):
        (part,) = model(clouds[:1])
    assert part["boxes"].dtype == torch.float32 and part["boxes"].isfinite().all()


@torch.no_grad()
def test_export(trained):
    """Up to the outputs, for clouds of these sizes, whatever is in them."""

    class Network(torch.nn.Module):
        def __init__(self, model):
            super().__init__()
            self.model = model

        def forward(self, clouds):
            return self.model.outputs(clouds)

    model, clouds = trained
    exported = torch.export.export(Network(model), (clouds,)).module()
    others = [points.flip(0) + 3.0 for points in clouds]
    others[1][5] = math.nan
    for given in (clouds, others):
        torch.testing.assert_close(exported(given), model.outputs(given), rtol=1e-4, atol=1e-4)


def test_training_after_inference_mode(trained):
    model = small()
    with torch.inference_mode():
        model.eval()(trained[1])
    sum(model.train()(trained[1], [objects()] * 3).values()).backward()


POINTS = torch.zeros(5, 4)
TARGET = {"boxes": torch.ones(1, 7), "labels": torch.tensor([1])}


@pytest.mark.parametrize(
    ("clouds", "targets", "error", "message"),
    [
        (POINTS, None, ValueError, "clouds must be a list of tensors, got Tensor"),
        ([], None, ValueError, "clouds must be a list of tensors, got list of 0"),
        ([POINTS, None], None, TypeError, r"clouds\[1\] must be a Tensor, got NoneType"),
        ([POINTS.long()], None, TypeError, r"clouds\[0\] must be float16, .*, got torch\.int64"),
        ([POINTS[:, :3]], None, ValueError, r"clouds\[0\] must be \[n, 4\], got \[5, 3\]"),
        ([POINTS], None, ValueError, "targets must be a list of one .*, 1, got NoneType"),
        ([POINTS], [TARGET] * 2, ValueError, "targets must be a list of one .*, 1, got list of 2"),
        ([POINTS], [{"boxes": 1}], ValueError, r"targets\[0\] must have .* a dictionary of \['bo"),
        ([POINTS], [{**TARGET, "boxes": None}], TypeError, r"targets\[0\]\['boxes'\] must be a T"),
        (
            [POINTS],
            [{**TARGET, "labels": torch.ones(1)}],
            TypeError,
            r"targets\[0\]\['labels'\] must be int64, got torch\.float32",
        ),
        (
            [POINTS],
            [{**TARGET, "labels": torch.tensor([1, 1])}],
            ValueError,
            r"targets\[0\] must have boxes \[m, 7\] and labels \[m\], got \[1, 7\] and \[2\]",
        ),
        (
            [POINTS],
            [{**TARGET, "labels": torch.tensor([0])}],
            ValueError,
            r"targets\[0\]\['labels'\] must be from 1 to 2, got \[0\]",
        ),
        (
            [POINTS],
            [{**TARGET, "boxes": torch.tensor([[0.0, 0, 0, 1, 0, 1, 0]])}],
            ValueError,
            r"targets\[0\]\['boxes'\] must be finite, with positive sides, got \[0\.0, ",
        ),
        (
            [POINTS],
            [{**TARGET, "boxes": torch.full((1, 7), math.nan)}],
            ValueError,
            r"targets\[0\]\['boxes'\] must be finite, with positive sides, got \[nan, ",
        ),
    ],
)
def test_bad_input(clouds, targets, error, message):
    model = small()
    with pytest.raises(error, match=message):
        model.train()(clouds, targets)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"anchors": ()}, r"anchors must be .* of each class, .*, got \(\)"),
        ({"anchors": [(4, 2, 0, 1)]}, "with positive sides"),
        ({"extent": (0, 0, 0, 0, 8, 1)}, r"extent must be \(x1, .* in order, got \(0, 0, 0, 0"),
        ({"pillar_size": 0.0}, r"pillar_size must be positive, got 0\.0"),
        ({"extent": (0, 0, 0, 8.1, 8, 1)}, r"whole number of pillars of 0\.4 in x and y"),
        ({"extent": (0, 0, 0, 4, 8, 1)}, "multiple of 8 pillars in x and y, got 10 x 20 pillars"),
        ({"depths": (1, 1)}, r"widths and depths must be one per stage, got \[8, 8, 16\] and \[1"),
    ],
)
def test_bad_options(options, message):
    with pytest.raises(ValueError, match=message):
        small(**options)
