"""RetinaNet, FCOS, SSD and SSDlite: start, detections, losses and gradients of torchvision's."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

import fastvision
from fastvision import models
from fastvision.models import detection
from fastvision.models.detection import _selection, retinanet, ssd, ssd_vgg
from fastvision.models.detection._selection import best_pairs, largest
from fastvision.ops import FrozenBatchNorm2d
from fastvision.testing import cases
from fastvision.testing.detectors import assert_same_losses, scenes, spread_scores
from fastvision.testing.models import randomize

theirs = pytest.importorskip("torchvision.models.detection")
from torchvision import models as their_models  # noqa: E402
from torchvision.models.detection import _utils, anchor_utils, image_list  # noqa: E402
from torchvision.models.detection import ssd as their_ssd  # noqa: E402

PYRAMID = {"min_size": 64, "max_size": 96, "score_thresh": 0.0, "detections_per_img": 20}
PREDICTORS = ("cls_logits.weight", "bbox_reg.weight", "bbox_ctrness.weight")
BUILDERS = {
    "retinanet_resnet50_fpn": (34_014_999 + 53_120, PYRAMID, PREDICTORS),
    "retinanet_resnet50_fpn_v2": (38_198_935, PYRAMID, PREDICTORS),
    "fcos_resnet50_fpn": (32_269_600 + 53_120, PYRAMID, PREDICTORS),
    "ssdlite320_mobilenet_v3_large": (
        3_440_060,
        {},
        tuple(f"module_list.{i}.1.weight" for i in range(6)),
    ),
    "ssd300_vgg16": (35_641_826, {}, tuple(f"module_list.{i}.weight" for i in range(6))),
}


def pair(name: str, **options) -> tuple[nn.Module, nn.Module]:
    """Ours and torchvision's, from the same start, which is checked."""
    options = {"weights": None, "weights_backbone": None, **options}
    torch.manual_seed(0)
    reference = getattr(theirs, name)(**options)
    torch.manual_seed(0)
    ours = models.get_model(name, **options)
    state = reference.state_dict()
    assert list(ours.state_dict()) == list(state)
    for key, value in ours.state_dict().items():
        assert torch.equal(value, state[key]), f"{key} starts with other values"
    return ours, reference


@pytest.mark.parametrize("name", BUILDERS)
def test_builder(name):
    count, options, predictors = BUILDERS[name]
    ours, reference = pair(name, **options)
    assert sum(p.numel() for p in ours.parameters()) == count
    spread_scores(randomize(ours), predictors)
    if name.startswith("ssdlite"):  # its random start makes all places of an image the same
        for layer in ours.backbone.modules():
            if isinstance(layer, nn.Conv2d):
                nn.init.kaiming_normal_(layer.weight)
    reference.load_state_dict(ours.state_dict())
    ours, reference = ours.double().eval(), reference.double().eval()
    images, targets = scenes()
    if name == "ssd300_vgg16":  # its training is compared on a narrow network
        images, targets = images[:1], None
    with torch.no_grad():
        expected = reference(images)
        actual = ours(images)
        fused = None if targets is None else fastvision.fuse(ours)(images)
    assert all(len(found["boxes"]) >= 20 for found in expected)
    for result in (actual, fused):
        if result is not None:
            assert [list(found) for found in result] == [list(found) for found in expected]
            torch.testing.assert_close(result, expected, rtol=1e-6, atol=1e-6)
    if targets is not None:
        assert_same_losses(ours, reference, images, targets)


class Narrow(nn.Sequential):
    """VGG's poolings with few convolutions between them."""

    def __init__(self) -> None:
        super().__init__()
        channels = 3
        for i, width in enumerate((8, 8, 16, 512, 512)):
            self.add_module(str(2 * i), nn.Conv2d(channels, width, 3, padding=1))
            self.add_module(str(2 * i + 1), nn.MaxPool2d(2))
            channels = width


def test_ssd_on_vgg():
    made = []
    for vgg, module, generator in (
        (ssd_vgg, ssd, detection),
        (their_ssd, their_ssd, anchor_utils),
    ):
        torch.manual_seed(0)
        boxes = generator.DefaultBoxGenerator([[2], [2, 3], [2, 3], [2, 3], [2], [2]])
        backbone = vgg.SSDFeatureExtractorVGG(nn.Sequential(*Narrow()), False)
        model = module.SSD(backbone, boxes, (300, 300), 4, score_thresh=0.2, nms_thresh=0.3)
        names = tuple(f"module_list.{i}.weight" for i in range(6))
        made.append(spread_scores(model, names).double())
    ours, reference = made
    assert list(ours.state_dict()) == list(reference.state_dict())
    images, targets = scenes()
    with torch.no_grad():
        expected = reference.eval()(images)
        torch.testing.assert_close(ours.eval()(images), expected, rtol=1e-6, atol=1e-6)
        fused = fastvision.fuse(ours)(images)
    torch.testing.assert_close(fused, expected, rtol=1e-6, atol=1e-6)
    assert_same_losses(ours, reference, images, targets)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    "arguments",
    [
        {"aspect_ratios": [[2], [2, 3]]},
        {"aspect_ratios": [[2]], "clip": False, "max_ratio": 1.4},
        {"aspect_ratios": [[], [3]], "scales": [0.1, 0.4, 1.3], "steps": [8, 16]},
    ],
    ids=["ratios", "one map", "scales"],
)
def test_default_boxes(arguments, dtype):
    ours = detection.DefaultBoxGenerator(**arguments)
    reference = anchor_utils.DefaultBoxGenerator(**arguments)
    assert ours.num_anchors_per_location() == reference.num_anchors_per_location()
    sizes = [(12, 17), (5, 8)][: len(arguments["aspect_ratios"])]
    maps = [torch.zeros(2, 1, *size, dtype=dtype) for size in sizes]
    batch = torch.zeros(2, 3, 97, 140), [(90, 140), (97, 100)]
    expected = reference(image_list.ImageList(*batch), maps)
    torch.testing.assert_close(ours(detection.ImageList(*batch), maps), expected, rtol=0, atol=0)


def test_default_boxes_of_other_maps():
    generator = detection.DefaultBoxGenerator([[2], [2]])
    with pytest.raises(AssertionError, match="2 feature maps, got 1"):
        generator(detection.ImageList(torch.zeros(1, 3, 8, 8), [(8, 8)]), [torch.zeros(1, 1, 2, 2)])
    with pytest.raises(ValueError, match="scales"):
        detection.DefaultBoxGenerator([[2], [2]], scales=[0.1, 0.2])
    with pytest.raises(ValueError, match="got 2 and 1"):
        detection.DefaultBoxGenerator([[2], [2]], steps=[8])


@pytest.mark.parametrize("normalized", [False, True])
def test_linear_coder(normalized):
    boxes = boxes_of(20, 60.0).view(2, 10, 4)
    anchors = boxes_of(20, 60.0, seed=1).view(2, 10, 4)
    ours, reference = detection.BoxLinearCoder(normalized), _utils.BoxLinearCoder(normalized)
    codes = ours.encode(anchors, boxes)
    torch.testing.assert_close(codes, reference.encode(anchors, boxes))
    torch.testing.assert_close(ours.decode(codes, anchors), reference.decode(codes, anchors))
    torch.testing.assert_close(ours.decode(codes, anchors), boxes)


def test_ssd_matcher():
    quality = torch.rand(5, 40, generator=cases.generator(0)).pow(2)
    quality[3] = quality[1]  # two objects with the same best box
    ours, reference = detection.SSDMatcher(0.6), _utils.SSDMatcher(0.6)
    expected = reference(quality.clone())
    assert torch.equal(ours(quality), expected)
    assert set(expected.tolist()) >= {-1, 0, 2, 3, 4}


def boxes_of(count: int, size: float, seed: int = 0) -> torch.Tensor:
    corners = torch.rand(count, 2, 2, generator=cases.generator(seed)) * (size - 2)
    corners = corners.sort(1).values
    corners[:, 1] += 2
    return corners.flatten(1)


def outputs_of(counts: list[int], columns: dict[str, int], batch: int, spread: float = 2.0):
    """Random results of a head for each level."""
    generator = cases.generator(4)
    return {
        name: [torch.randn(batch, n, c, generator=generator) * spread for n in counts]
        for name, c in columns.items()
    }


def small(name: str, module=detection, **options) -> nn.Module:
    """A detector of 6 classes without a network, for its post-processing."""
    backbone = nn.Conv2d(3, 32, 1)
    backbone.out_channels = [32] if name == "SSD" else 32
    if name == "SSD":
        boxes = detection if module is detection else anchor_utils
        generator = boxes.DefaultBoxGenerator([[2]])
        return module.SSD(backbone, generator, (64, 64), 6, **options).eval()
    return getattr(module, name)(backbone, 6, **options).eval()


@pytest.mark.parametrize("limits", [{}, {"topk_candidates": 12, "detections_per_img": 9}])
@pytest.mark.parametrize("own_anchors", [False, True], ids=["shared", "own"])
@pytest.mark.parametrize("name", ["RetinaNet", "FCOS", "SSD"])
def test_postprocessing(name, own_anchors, limits):
    modules = {"RetinaNet": theirs.retinanet, "FCOS": theirs.fcos, "SSD": their_ssd}
    ours, reference = small(name, **limits), small(name, modules[name], **limits)
    columns = {"cls_logits": 6, "bbox_regression": 4}
    if name == "FCOS":
        columns["bbox_ctrness"] = 1
    counts, shapes = [150, 40, 3], [(64, 64), (50, 64), (64, 33)]
    outputs = outputs_of(counts, columns, 3)
    if name == "FCOS":
        outputs["bbox_regression"] = [x.abs() for x in outputs["bbox_regression"]]
    anchors = [[boxes_of(n, 64.0, seed=n) for n in counts]] * 3
    if own_anchors:
        anchors = [[x + i for x in levels] for i, levels in enumerate(anchors)]
    if name == "SSD":
        outputs = {key: torch.cat(levels, 1) for key, levels in outputs.items()}
        anchors = [torch.cat(levels) for levels in anchors]
        anchors = anchors if own_anchors else anchors[:1] * 3
    expected = reference.postprocess_detections(outputs, anchors, shapes)
    actual = ours.postprocess_detections(outputs, anchors, shapes)
    assert min(len(found["boxes"]) for found in expected) > 8
    assert [list(found) for found in actual] == [list(found) for found in expected]
    torch.testing.assert_close(actual, expected)


@pytest.mark.parametrize("classes", [3, 8])
@pytest.mark.parametrize("places", [200, 201])
@pytest.mark.parametrize("kernel", [True, False])
def test_selection(places, classes, kernel, monkeypatch):
    """The same pairs as by sorting all of them."""
    if not kernel:
        monkeypatch.setattr(_selection, "has_kernel", lambda x: False)
    logits = torch.randn(2, places, classes, generator=cases.generator(0))
    logits[0, 7] = logits[0, 6] + 3  # good ones side by side
    scores, place, labels = best_pairs(logits, None, 5)
    expected, pair = logits.flatten(1).sigmoid().topk(5)
    torch.testing.assert_close(scores, expected)
    assert torch.equal(place * classes + labels, pair)
    wide = torch.randn(2, 400, generator=cases.generator(1))
    for actual, wanted in zip(largest(wide, 6), wide.topk(6), strict=True):
        assert torch.equal(actual, wanted)


def test_candidates_that_are_not_numbers():
    """They are no detections, and others are found beside them."""
    ours, reference = small("RetinaNet"), small("RetinaNet", theirs.retinanet)
    outputs = outputs_of([60], {"cls_logits": 6, "bbox_regression": 4}, 1)
    outputs["cls_logits"][0][0, 5, 2] = torch.nan
    outputs["cls_logits"][0][0, 9] = torch.nan
    anchors = [[boxes_of(60, 64.0)]]
    expected = reference.postprocess_detections(outputs, anchors, [(64, 64)])
    actual = ours.postprocess_detections(outputs, anchors, [(64, 64)])
    torch.testing.assert_close(actual, expected)
    limit = {"topk_candidates": 20}
    ours, reference = small("SSD", **limit), small("SSD", their_ssd, **limit)
    outputs = {key: value[0] for key, value in outputs.items()}
    outputs["cls_logits"][0, 10:40] = torch.nan
    arguments = outputs, anchors[0], [(64, 64)]
    expected = reference.postprocess_detections(*arguments)
    assert len(expected[0]["boxes"]) > 20
    torch.testing.assert_close(ours.postprocess_detections(*arguments), expected)


@pytest.mark.parametrize("kind", ["giou", "diou", "ciou"])
def test_box_losses(kind):
    targets = [{"boxes": boxes_of(3, 64.0).double()}, {"boxes": boxes_of(1, 64.0).double()}]
    anchors = [boxes_of(30, 64.0, seed=1).double()] * 2
    matched = [torch.arange(30) % 5 - 2, torch.arange(30) % 3 - 2]
    losses = []
    for module in (retinanet, theirs.retinanet):
        head = module.RetinaNetRegressionHead(8, 1)
        head._loss_type = kind
        offsets = torch.randn(2, 30, 4, generator=cases.generator(0)).double().requires_grad_()
        loss = head.compute_loss(targets, {"bbox_regression": offsets}, anchors, matched)
        loss.backward()
        losses.append((loss, offsets.grad))
    torch.testing.assert_close(*losses)


def test_hard_negatives():
    """Three background boxes for each box with an object: the ones of the highest loss."""
    model = small("SSD")
    losses = torch.tensor([[0.5, 9.0, 3.0, 1.0, 2.0, 4.0], [1.0, 2.0, 3.0, 4.0, 5.0, 6.0]])
    positive = torch.tensor([[False, True, False, False, False, False], [False] * 6])
    order, taken = model._hardest(losses, positive)
    assert order[0][taken[0]].tolist() == [5, 2, 4]
    assert not taken[1].any()


def test_stages_that_are_trained():
    def frozen(model: nn.Module) -> list[str]:
        return [name for name, p in model.named_parameters() if not p.requires_grad]

    with torch.device("meta"):  # names without values
        vgg, mobilenet = models.vgg16().state_dict(), models.mobilenet_v3_large().state_dict()
        for stages in (0, 3, 5):
            built = detection.ssd300_vgg16(
                weights_backbone=vgg, trainable_backbone_layers=stages, num_classes=2
            )
            reference = their_ssd._vgg_extractor(their_models.vgg16(), False, stages)
            assert frozen(built.backbone) == frozen(reference)
        built = detection.ssdlite320_mobilenet_v3_large(
            weights_backbone=mobilenet, trainable_backbone_layers=2, num_classes=2
        )
        backbone = their_models.mobilenet_v3_large()
        reference = theirs.ssdlite._mobilenet_extractor(backbone, 2, nn.BatchNorm2d)
    assert frozen(built.backbone) == frozen(reference)


def test_weights():
    """They decide over the classes, and freeze the normalizations; old keys are renamed."""
    state = models.get_model("retinanet_resnet50_fpn", weights_backbone=None, num_classes=3)
    state = state.state_dict()
    old = {k: v for k, v in state.items() if "num_batches" not in k}
    for head in ("classification_head", "regression_head"):
        for i in range(4):
            for name in ("weight", "bias"):
                value = old.pop(f"head.{head}.conv.{i}.0.{name}")
                old[f"head.{head}.conv.{2 * i}.{name}"] = value
    model = detection.retinanet_resnet50_fpn(weights=old)
    assert model.head.classification_head.num_classes == 3
    assert isinstance(model.backbone.body.bn1, FrozenBatchNorm2d)
    assert not model.backbone.body.conv1.weight.requires_grad
    for key, value in model.state_dict().items():
        assert torch.equal(value, state[key])
    with pytest.raises(ValueError, match="num_classes must be 3"):
        detection.retinanet_resnet50_fpn(weights=old, num_classes=4)


@pytest.mark.parametrize("name", ["fcos_resnet50_fpn", "ssdlite320_mobilenet_v3_large"])
def test_bfloat16(name):
    _, options, predictors = BUILDERS[name]
    model = models.get_model(name, weights_backbone=None, num_classes=4, **options).eval()
    spread_scores(model, predictors)
    images = scenes(torch.float32)[0]
    with torch.no_grad():
        expected = model(images)
        actual = copy.deepcopy(model).bfloat16()([x.bfloat16() for x in images])
        fused = fastvision.fuse(model, dtype=torch.bfloat16)([x.bfloat16() for x in images])
    for result in (actual, fused):
        for found, wanted in zip(result, expected, strict=True):
            assert found["boxes"].dtype == torch.float32
            assert len(found["boxes"]) > 0
            difference = found["scores"][:10].mean() - wanted["scores"][:10].mean()
            assert difference.abs() < 0.05


def test_errors():
    model = small("RetinaNet")
    image = torch.rand(3, 20, 20)
    with pytest.raises(TypeError, match="anchor_generator should be of type AnchorGenerator"):
        detection.RetinaNet(model.backbone, 2, anchor_generator=nn.Identity())
    with pytest.raises(ValueError, match="out_channels"):
        detection.FCOS(nn.Identity(), 2)
    with pytest.raises(ValueError, match="should be 1 instead of 2"):
        several = detection.AnchorGenerator(((8, 16),), ((1.0,),))
        detection.FCOS(model.backbone, 2, anchor_generator=several)
    with pytest.raises(ValueError, match=r"\(1\).*\n?.*\(2\)"):
        detection.SSD(small("SSD").backbone, detection.DefaultBoxGenerator([[2], [2]]), (64, 64), 2)
    with pytest.raises(ValueError, match="x must have 1 maps, got 2"):
        small("SSD").head([torch.zeros(1, 32, 2, 2)] * 2)
    model.head.regression_head._loss_type = "l3"
    with pytest.raises(ValueError, match="l3"):
        boxes = torch.tensor([[0.0, 0, 9, 9]])
        model.head.regression_head.compute_loss(
            [{"boxes": boxes}],
            {"bbox_regression": torch.zeros(1, 1, 4)},
            [boxes],
            [torch.zeros(1).long()],
        )
    lines = torch.tensor([[3.0, 3, 3, 9]])
    for targets, message in (
        (None, "targets should not be none"),
        ([], "one target per image"),
        ([{"boxes": torch.zeros(4), "labels": torch.zeros(1)}], r"shape \[N, 4\]"),
        ([{"boxes": lines, "labels": torch.zeros(1)}], "be int64"),
        ([{"boxes": lines, "labels": torch.zeros(2).long()}], r"shape \[1\], got"),
        ([{"boxes": lines, "labels": torch.tensor([-1])}], "negative"),
        ([{"boxes": lines, "labels": torch.tensor([1])}], "positive height"),
    ):
        with pytest.raises((AssertionError, ValueError), match=message):
            model.train()([image], targets)


def test_small_ssd():
    """Three maps of 256 channels, 21 default boxes, and a step that lowers the loss."""
    torch.manual_seed(0)
    model = detection.ssd224_small(num_classes=5)
    batch = model.transform.batch_of(torch.rand(1, 3, 100, 60))
    maps = list(model.backbone(batch.tensors).values())
    assert [list(x.shape[1:]) for x in maps] == [[256, 4, 4], [256, 2, 2], [256, 1, 1]]
    assert model.head.regression_head.module_list[0](maps[0]).shape == (1, 4, 4, 4)
    assert model.head.classification_head.module_list[1](maps[1]).shape == (1, 5, 2, 2)
    boxes = model.anchor_generator(batch, maps)[0]
    assert boxes.shape == (21, 4)
    assert boxes[[0, 5, 16, 20]].tolist() == [
        [0, 0, 56, 56], [56, 56, 112, 112], [0, 0, 112, 112], [0, 0, 224, 224]
    ]  # fmt: skip
    images, targets = scenes(torch.float32)
    optimizer = torch.optim.SGD(model.parameters(), 1e-3)
    losses = []
    for _ in range(3):
        optimizer.zero_grad()
        loss = sum(model(images[:1], targets[:1]).values())
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[2] < losses[1] < losses[0]
    loaded = detection.ssd224_small(weights=model.state_dict())
    assert loaded.head.classification_head.num_columns == 5
    with pytest.raises(ValueError, match="num_classes must be 5"):
        detection.ssd224_small(weights=model.state_dict(), num_classes=4)


@pytest.mark.parametrize("name", ["ssd224_small", "fcos_resnet50_fpn"])
def test_fixed_shape(name, tmp_path):
    """The same detections as of a list, padded; and an exported program with them."""
    options = {} if name == "ssd224_small" else {"weights_backbone": None, **PYRAMID}
    model = models.get_model(name, num_classes=4, **options).eval()
    spread_scores(model, (*PREDICTORS, "module_list.0.weight"))
    images = torch.rand(2, 3, 70, 90, generator=cases.generator(0))
    with torch.no_grad():
        expected = model(list(images))
        actual = model.detect(images)
        torch.export.save(
            torch.export.export(detection.FixedShape(model), (images,)), tmp_path / "detector.pt2"
        )
        exported = torch.export.load(tmp_path / "detector.pt2").module()(images)
    assert isinstance(actual, detection.Detections)
    assert actual.boxes.shape == (2, model.detections_per_img, 4)
    assert min(actual.counts) > 0
    torch.testing.assert_close(actual.unpadded(), expected, rtol=1e-4, atol=1e-3)
    torch.testing.assert_close(tuple(exported), tuple(actual), rtol=1e-4, atol=1e-3)
    with pytest.raises(ValueError, match="images must have shape"):
        model.detect(images[0])
    with pytest.raises(RuntimeError, match="training"):
        model.train().detect(images)
