"""YOLO: parameters, detections, training, and detectors of Darknet's files."""

from __future__ import annotations

import math

import pytest
import torch

import fastvision
from fastvision import ops
from fastvision.models import get_model
from fastvision.models.darknet import (
    ConfigError,
    load_darknet_weights,
    parse_config,
    save_darknet_weights,
)
from fastvision.models.detection import YOLO, FixedShape, kmeans_anchors
from fastvision.models.detection.yolo.letterbox import letterbox
from fastvision.testing.models import randomize

# parameters, and bytes of Darknet's file less its header
SIZES = {
    ("yolov1", 21): (271_703_550, 1_086_814_200),
    ("yolov1_tiny", 21): (45_089_374, 180_357_496),
    ("yolov2", 81): (50_962_889, 203_934_244),
    ("yolov2", 21): (50_655_389, 202_704_244),
    ("yolov2_tiny", 81): (11_232_057, 44_948_580),
    ("yolov3", 81): (61_949_149, 248_007_028),
    ("yolov3", 21): (61_626_049, 246_714_628),
    ("yolov3_tiny", 81): (8_852_366, 35_434_936),
}
SMALL = {"num_classes": 4, "size": 64, "width_mult": 1 / 8}
NAMES = ["yolov1", "yolov1_tiny", "yolov2", "yolov2_tiny", "yolov3", "yolov3_tiny"]


def small(name, **options):
    """A narrow model whose results depend on the images and have scores far from equal."""
    torch.manual_seed(0)
    if name.startswith("yolov1"):  # a grid of 2x2
        options = {"batch_norm": True, "size": 128, **options}
    model = randomize(get_model(name, **{**SMALL, **options}))
    with torch.no_grad():
        for i in model.network.head_layers:
            layer = model.network.layers[i - 1][0]
            layer.weight.mul_(3 if name.startswith("yolov1") else 30)
            layer.bias.normal_(0.2, 0.5)
    return model.double().eval()


def pictures(*sizes):
    generator = torch.Generator().manual_seed(0)
    return [torch.rand(3, *size, generator=generator, dtype=torch.double) for size in sizes]


def targets_of(*objects):
    """Targets of (label, x1, y1, x2, y2) lists."""
    return [
        {
            "boxes": torch.tensor([box[1:] for box in boxes], dtype=torch.float).reshape(-1, 4),
            "labels": torch.tensor([box[0] for box in boxes], dtype=torch.int64),
        }
        for boxes in objects
    ]


@pytest.mark.parametrize(("name", "num_classes"), SIZES)
def test_parameters_and_size_of_the_file(name, num_classes):
    with torch.device("meta"):
        model = get_model(name, num_classes=num_classes)
    parameters = sum(p.numel() for p in model.parameters())
    statistics = sum(
        b.numel() for name, b in model.named_buffers() if name.endswith(("_mean", "_var"))
    )
    assert (parameters, 4 * (parameters + statistics)) == SIZES[name, num_classes]


def naive(model, image):
    """All predictions and classes of one image, one class after the other."""
    frame = letterbox([image], model.size)
    boxes, scores = model.head.predict(model._outputs(frame.images), model.size, 10**6)
    boxes, scores, inside = boxes[0], scores[0], frame.leave(boxes)[0]
    found = []
    for label in range(scores.shape[1]):
        kept = (scores[:, label] > model.score_thresh).nonzero()[:, 0]
        kept = kept[ops.nms(boxes[kept], scores[kept, label], model.nms_thresh)]
        found += [(scores[i, label].item(), label + 1, *inside[i].tolist()) for i in kept.tolist()]
    return torch.tensor(sorted(found, reverse=True)[: model.detections_per_img]).double()


@pytest.mark.parametrize("name", NAMES)
@torch.no_grad()
def test_detections_are_those_of_a_loop(name):
    model = small(name, topk_candidates=10_000, detections_per_img=30, score_thresh=1e-3)
    images = pictures((64, 64), (90, 40), (33, 70))
    # the network once per image: rounding depends on the size of a batch
    for image in images:
        expected = naive(model, image)
        (found,) = model([image])
        assert 5 < len(found["scores"]) <= 30
        assert found["boxes"].dtype == torch.double and found["labels"].dtype == torch.int64
        columns = (found["scores"][:, None], found["labels"][:, None], found["boxes"])
        actual = torch.cat([column.double() for column in columns], 1)
        torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-4)
    for one, image in zip(model(images), images, strict=True):
        (alone,) = model([image])
        torch.testing.assert_close(one, alone)
        assert (one["boxes"] >= 0).all()
        assert (one["boxes"][:, 2:] <= torch.tensor([image.shape[2], image.shape[1]])).all()


@torch.no_grad()
def test_few_candidates_are_the_best():
    model = small("yolov3_tiny")
    everything = model(pictures((64, 64)))[0]
    model.topk_candidates = 20
    few = model(pictures((64, 64)))[0]
    assert 0 < len(few["scores"]) <= 20
    assert few["scores"][0] == everything["scores"][0]
    model.score_thresh = 2.0
    assert [len(part) for part in model(pictures((64, 64)))[0].values()] == [0, 0, 0]


@pytest.mark.parametrize("name", ["yolov1_tiny", "yolov2", "yolov3_tiny"])
@torch.no_grad()
def test_fuse_and_export(name):
    model = small(name, score_thresh=1e-3)
    images = pictures((64, 64), (50, 70))
    expected = model(images)
    assert all(len(found["scores"]) > 3 for found in expected)
    torch.testing.assert_close(fastvision.fuse(model)(images), expected)

    batch = torch.stack(pictures(model.size, model.size))
    exported = torch.export.export(FixedShape(model), (batch,)).module()
    for actual, value in zip(exported(batch), model.detect(batch), strict=True):
        torch.testing.assert_close(actual, value)


@torch.no_grad()
def test_half_precision_keeps_coordinates():
    model = get_model("yolov3_tiny", **SMALL, score_thresh=0.0).eval().bfloat16()
    (found,) = model([image.bfloat16() for image in pictures((200, 100))])
    assert found["boxes"].dtype == torch.float32 and len(found["boxes"]) == 100
    assert torch.isfinite(found["boxes"]).all()


@pytest.mark.parametrize("name", NAMES)
def test_every_parameter_learns(name):
    model = small(name).train()
    losses = model(
        pictures((64, 64), (50, 70)), targets_of([(1, 5, 5, 30, 40), (3, 30, 20, 60, 50)], [])
    )
    assert all(loss.dim() == 0 and torch.isfinite(loss) for loss in losses.values())
    sum(losses.values()).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().max() > 0, name


@pytest.mark.parametrize("name", ["yolov1_tiny", "yolov2_tiny", "yolov3_tiny"])
def test_learns_two_scenes(name):
    """Squares of two brightnesses on grey."""
    torch.manual_seed(0)
    dropout = {"dropout": 0.0} if name.startswith("yolov1") else {}
    model = get_model(name, **{**_options(name), **dropout, "num_classes": 3}).train()
    targets = targets_of([(1, 4, 8, 28, 36), (2, 34, 30, 60, 58)], [(2, 12, 16, 44, 50)])
    images = [torch.full((3, 64, 64), 0.4) for _ in targets]
    for image, target in zip(images, targets, strict=True):
        for (x1, y1, x2, y2), label in zip(target["boxes"].int(), target["labels"], strict=True):
            image[:, y1:y2, x1:x2] = label - 1
    optimizer = torch.optim.Adam(model.parameters(), 2e-3)
    for _ in range(100 if name == "yolov1_tiny" else 50):
        # with two images, the statistics of the last maps differ between training and evaluation
        loss = sum(model(images * 4, targets * 4).values())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    with torch.no_grad():
        for found, target in zip(model.eval()(images), targets, strict=True):
            best = [part[: len(target["labels"])] for part in found.values()]
            assert best[1].min() > 0.3 and sorted(best[2].tolist()) == target["labels"].tolist()
            order = best[2].argsort()
            assert ops.box_iou(best[0][order], target["boxes"]).diagonal().min() > 0.5


@pytest.mark.parametrize("name", ["yolov1", "yolov1_tiny"])
def test_dropout_of_version_1(name):
    batch = [x.float() for x in pictures((64, 64), (50, 70))], targets_of([(1, 5, 5, 30, 40)], [])
    for options, is_random in (({}, True), ({"dropout": 0.0}, False)):
        model = get_model(name, **_options(name), **options).train()
        first, second = (sum(model(*batch).values()).item() for _ in range(2))
        assert (first != second) == is_random


def test_images_without_objects_and_of_several_sizes():
    model = get_model("yolov2_tiny", **SMALL, sizes=(64, 96, 128)).train()
    seen = set()
    model.network.register_forward_pre_hook(lambda _, args: seen.add(tuple(args[0].shape)))
    for _ in range(12):
        losses = model([x.float() for x in pictures((50, 60))], targets_of([]))
        assert losses["loss_box_reg"] == losses["loss_classifier"] == 0 < losses["loss_objectness"]
    assert seen == {(1, 3, n, n) for n in (64, 96, 128)}
    seen.clear()
    model.eval()
    model.size = (96, 160)
    with torch.no_grad():
        model([x.float() for x in pictures((50, 60))])
    assert seen == {(1, 3, 96, 160)}


def test_letterbox():
    wide, tall, fits = pictures((30, 60), (64, 16), (64, 64))
    frame = letterbox([wide, tall, fits], (64, 64))
    assert torch.equal(frame.images[2], fits)
    assert torch.equal(frame.images[1, :, :, 24:40], tall)
    for i, bars in ((0, (slice(0, 16), slice(48, 64))), (1, (slice(0, 24), slice(40, 64)))):
        for bar in bars:
            part = frame.images[i, :, bar] if i == 0 else frame.images[i, :, :, bar]
            assert torch.equal(part, torch.full_like(part, 0.5))
    boxes = torch.tensor([[0, 0, 60, 30], [4, 8, 16, 20]], dtype=torch.double)
    inside = frame.enter(boxes, torch.tensor([0, 1]))
    assert torch.allclose(inside[0], torch.tensor([0, 16, 64, 48], dtype=torch.double))
    assert torch.allclose(inside[1], torch.tensor([28, 8, 40, 20], dtype=torch.double))
    back = frame.leave(inside[[0, 1, 1], None])
    assert torch.allclose(back[:2, 0], boxes)
    same = letterbox([wide, wide], (64, 64))
    assert torch.equal(same.images[0], frame.images[0]) and torch.equal(*same.images)


@pytest.mark.parametrize("name", NAMES)
def test_files_of_darknet(name, tmp_path):
    """The configuration that a model writes builds it, and its weights come back bit by bit."""
    model = small(name).float()
    (tmp_path / "a.cfg").write_text(model.network.config)
    save_darknet_weights(model.network, tmp_path / "a.weights")
    other = YOLO(tmp_path / "a.cfg").eval()
    load_darknet_weights(other.network, tmp_path / "a.weights")
    loaded = get_model(name, weights=tmp_path / "a.weights", **_options(name)).eval()
    for again in (other, loaded):
        state = again.state_dict()
        for key, value in model.state_dict().items():
            assert torch.equal(value, state[key]), key
    images = [x.float() for x in pictures((50, 70))]
    with torch.no_grad():
        torch.testing.assert_close(other(images), model(images), rtol=0, atol=0)


def _options(name):
    return {**SMALL, "batch_norm": True, "size": 128} if name.startswith("yolov1") else SMALL


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("classes=3", "classes=4"), r"line \d+: \[yolo\] needs 3 x \(5 \+ 4\) channels"),
        (("mask=3,4,5", "mask=3,4,6"), r"line \d+: \[yolo\] mask must be numbers from 0 to 5"),
        (("num=6", "num=7"), r"line \d+: \[yolo\] anchors must be 7 pairs"),
        (("[yolo]\nmask=3", "[region]\nmask=3"), r"line \d+: \[yolo\] cannot be mixed"),
        (("size=1\nstride=1\npad=1\nactivation=linear", "size=2\nactivation=linear"), "divide"),
    ],
)
def test_configurations_of_no_detector(change, message):
    text = get_model("yolov3_tiny", **SMALL).network.config
    assert change[0] in text
    with pytest.raises(ConfigError, match=message):
        YOLO(parse_config(text.replace(*change)))
    with pytest.raises(ConfigError, match="a detector ends in a head"):
        YOLO(parse_config(text.split("[yolo]")[0]))


@pytest.mark.parametrize(
    ("targets", "error", "message"),
    [
        (None, AssertionError, "targets should not be none"),
        (targets_of([], []), AssertionError, "one target per image, 1, got 2"),
        (targets_of([(1, 5, 5, 5, 9)]), AssertionError, "positive height and width"),
        (targets_of([(0, 5, 5, 9, 9)]), ValueError, r"targets\[0\] must have .* to 3, got 0"),
        (targets_of([(4, 5, 5, 9, 9)]), ValueError, "labels from 1 to 3"),
        (targets_of([(1, 5, 5, 9, math.inf)]), AssertionError, "be finite"),
        ([{"boxes": torch.ones(0, 4), "labels": torch.ones(1)}], ValueError, r"shape \[0\], got"),
        (
            [{**targets_of([(1, 5, 5, 9, 9)])[0], "labels": torch.ones(1)}],
            ValueError,
            "labels to be int64 .* for target at index 0",
        ),
    ],
)
def test_targets_that_are_wrong(targets, error, message):
    model = get_model("yolov3_tiny", **SMALL).train()
    with pytest.raises(error, match=message):
        model([torch.rand(3, 64, 64)], targets)


def test_other_arguments_that_are_wrong():
    model = get_model("yolov3_tiny", **SMALL).eval()
    with pytest.raises(ValueError, match="at least one image"):
        model([])
    with pytest.raises(TypeError, match=r"images\[1\] must be .* got torch.uint8"):
        model([torch.rand(3, 64, 64), torch.ones(3, 64, 64, dtype=torch.uint8)])
    with pytest.raises(ValueError, match=r"images\[0\] must have .* got \[64, 64\]"):
        model([torch.rand(64, 64)])
    with pytest.raises(RuntimeError, match="for evaluation"):
        get_model("yolov3_tiny", **SMALL).detect(torch.rand(1, 3, 64, 64))
    for images, error, message in (
        (torch.rand(3, 64, 64), ValueError, r"\[N, 3, H, W\] and not be empty, got \[3, 64, 64\]"),
        (torch.rand(0, 3, 64, 64), ValueError, "not be empty"),
        (torch.ones(1, 3, 64, 64, dtype=torch.uint8), TypeError, "images must be float16"),
        (torch.rand(1, 3, 64, 80), ValueError, "size must be two multiples of 32, got"),
    ):
        with pytest.raises(error, match=message):
            model.detect(images)
    model.size = (64, 80)
    with pytest.raises(ValueError, match="size must be two multiples of 32, got"):
        model([torch.rand(3, 64, 64)])
    with pytest.raises(ValueError, match="size must be two multiples of 32"):
        get_model("yolov2", **SMALL, sizes=(64, 100))
    with pytest.raises(ValueError, match="as the network has it"):
        get_model("yolov1_tiny", **SMALL, sizes=(128,))
    with pytest.raises(ValueError, match="size must be one multiple of 64, got 100"):
        get_model("yolov1", **{**SMALL, "size": 100})
    with pytest.raises(ValueError, match=r"\[dropout\] probability must be between 0 and 1, got 2"):
        get_model("yolov1", **SMALL, dropout=2)
    with pytest.raises(ValueError, match="anchors must be as many for each of 3 maps, got 2"):
        get_model("yolov3", **SMALL, anchors=[(3, 4), (5, 6)])
    with pytest.raises(ValueError, match="anchors must be pairs of positive numbers"):
        get_model("yolov2", **SMALL, anchors=[(3, 0)])


def test_anchors_by_k_means():
    generator = torch.Generator().manual_seed(0)
    centers = torch.tensor([[10.0, 20.0], [40.0, 30.0], [90.0, 100.0]])
    noise = 1 + 0.1 * torch.rand(50, 3, 2, generator=generator)
    sizes = (centers * noise).flatten(0, 1)
    anchors, overlap = kmeans_anchors(sizes, 3, seed=3)
    assert torch.allclose(anchors, (centers * noise).mean(0), rtol=1e-5)
    pairs = torch.minimum(sizes[:, None], anchors).prod(2)
    unions = sizes.prod(1)[:, None] + anchors.prod(1) - pairs
    assert torch.allclose(overlap, (pairs / unions).amax(1).mean())
    assert overlap > 0.9 > kmeans_anchors(sizes, 1)[1]
    model = get_model("yolov2", **SMALL, anchors=anchors)
    assert torch.allclose(model.head.anchors[0], anchors)
    with pytest.raises(ValueError, match="k must be from 1 to the number of sizes, 150, got 151"):
        kmeans_anchors(sizes, 151)
    with pytest.raises(ValueError, match="positive"):
        kmeans_anchors(-sizes, 2)
    with pytest.raises(ValueError, match=r"\[n, 2\]"):
        kmeans_anchors(sizes[0], 1)
