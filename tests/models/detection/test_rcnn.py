"""Faster, Mask and Keypoint R-CNN: start, detections, losses and gradients of torchvision's."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

import fastvision
from fastvision import models
from fastvision.models import detection
from fastvision.ops import FrozenBatchNorm2d, MultiScaleRoIAlign
from fastvision.testing import cases
from fastvision.testing.models import randomize

theirs = pytest.importorskip("torchvision.models.detection")
from torchvision import ops as their_ops  # noqa: E402
from torchvision.models.detection import (  # noqa: E402
    backbone_utils,
    faster_rcnn,
    keypoint_rcnn,
    mask_rcnn,
)

SMALL = {
    "min_size": 48,
    "max_size": 70,
    "rpn_pre_nms_top_n_test": 100,
    "rpn_post_nms_top_n_train": 60,
    "rpn_post_nms_top_n_test": 40,
    "box_score_thresh": 0.0,
    "box_detections_per_img": 6,
    "box_batch_size_per_image": 12,
}
COUNTS = {  # with normalizations that are trained, where weights would freeze them
    "fasterrcnn_resnet50_fpn": 41_755_286 + 53_120,
    "fasterrcnn_resnet50_fpn_v2": 43_712_278,
    "fasterrcnn_mobilenet_v3_large_fpn": 19_386_354 + 24_400,
    "fasterrcnn_mobilenet_v3_large_320_fpn": 19_386_354 + 24_400,
    "maskrcnn_resnet50_fpn": 44_401_393 + 53_120,
    "maskrcnn_resnet50_fpn_v2": 46_359_409,
    "keypointrcnn_resnet50_fpn": 59_137_258 + 53_120,
}


def scenes(dtype: torch.dtype = torch.double) -> tuple[list[Tensor], list[dict[str, Tensor]]]:
    """Images of two sizes, and their targets; float32 keypoints, as torchvision wants them."""
    images = [cases.feature_map(3, 70, 90, seed=1), cases.feature_map(3, 66, 60, seed=2)]
    images = [x.to(dtype).sigmoid() for x in images]
    boxes = torch.tensor([[5.0, 6, 50, 61], [20, 11, 57, 64], [30, 30, 58, 62]], dtype=dtype)
    generator, targets = cases.generator(3), []
    for image, own in zip(images, (boxes, boxes[1:]), strict=True):
        masks = torch.rand(len(own), *image.shape[1:], generator=generator) > 0.5
        places = own[:, None, :2] + 0.4 * (own[:, None, 2:] - own[:, None, :2])
        keypoints = torch.cat((places, torch.ones_like(places[..., :1])), -1).expand(-1, 17, -1)
        keypoints = keypoints.float().clone()
        keypoints[:, 3] = torch.cat((own[:, 2:], torch.ones_like(own[:, :1])), 1)  # at a corner
        keypoints[:, 4, 2] = 0
        labels = torch.arange(len(own)) % 2 + 1 if len(own) > 2 else torch.ones(len(own)).long()
        targets.append(
            {"boxes": own, "labels": labels, "masks": masks.byte(), "keypoints": keypoints}
        )
    return images, targets


def of(targets: list[dict[str, Tensor]], model: nn.Module) -> list[dict[str, Tensor]]:
    """With labels that the model has."""
    classes = model.roi_heads.box_predictor.cls_score.out_features
    return [{**t, "labels": t["labels"].clamp(max=classes - 1)} for t in targets]


def assert_same_results(ours: nn.Module, reference: nn.Module) -> None:
    images, targets = scenes()
    with torch.no_grad():
        expected = reference.eval()(images)
        actual = ours.eval()(images)
    assert all(len(found["boxes"]) >= 2 for found in expected)
    assert [list(found) for found in actual] == [list(found) for found in expected]
    torch.testing.assert_close(actual, expected, rtol=1e-6, atol=1e-6)
    assert_same_training(ours, reference, images, of(targets, ours))


def assert_same_training(ours, reference, images, targets) -> None:
    results = []
    for model in (ours, reference):
        torch.manual_seed(7)  # of the sampling
        model.train().zero_grad()
        losses = model(images, targets)
        sum(losses.values()).backward()
        results.append((losses, {n: p.grad for n, p in model.named_parameters()}))
    (losses, gradients), (their_losses, their_gradients) = results
    assert list(losses) == list(their_losses)
    # torchvision has float32 labels of anchors, and so rounds their loss
    torch.testing.assert_close(losses, their_losses, rtol=1e-6, atol=1e-9, check_dtype=False)
    floor = 1e-9 * max(g.abs().max() for g in their_gradients.values() if g is not None)
    for name, expected in their_gradients.items():
        assert (gradients[name] is None) == (expected is None), name
        if expected is not None:
            off = (gradients[name] - expected).abs().max()
            assert off <= 1e-5 * expected.abs().max() + floor, name


@pytest.mark.parametrize("name", COUNTS)
def test_builder(name):
    options = {"weights": None, "weights_backbone": None, **SMALL}
    if not name.startswith("faster"):  # their heads are slow
        options |= {"box_detections_per_img": 2, "box_batch_size_per_image": 4}
    torch.manual_seed(0)
    reference = getattr(theirs, name)(**options)
    torch.manual_seed(0)
    ours = models.get_model(name, **options)
    state = reference.state_dict()
    assert list(ours.state_dict()) == list(state)
    for key, value in ours.state_dict().items():
        assert torch.equal(value, state[key]), f"{key} starts with other values"
    assert sum(p.numel() for p in ours.parameters()) == COUNTS[name]
    reference.load_state_dict(randomize(ours).state_dict())
    assert_same_results(ours.double(), reference.double())


def _backbone(module, **options):
    return module.resnet_fpn_backbone(
        backbone_name="resnet18", weights=None, **{"trainable_layers": 5, **options}
    )


def _narrow_heads(name: str, modules, classes: int) -> dict[str, nn.Module]:
    faster, mask, keypoint = modules
    heads = {
        "box_head": faster.TwoMLPHead(256 * 49, 32),
        "box_predictor": faster.FastRCNNPredictor(32, classes),
    }
    if name == "MaskRCNN":
        heads["mask_head"] = mask.MaskRCNNHeads(256, [16, 16], 1)
        heads["mask_predictor"] = mask.MaskRCNNPredictor(16, 8, classes)
    if name == "KeypointRCNN":
        heads["keypoint_head"] = keypoint.KeypointRCNNHeads(256, [16])
        heads["keypoint_predictor"] = keypoint.KeypointRCNNPredictor(16, 17)
    return heads


def pair(name: str, classes: int, **options) -> tuple[nn.Module, nn.Module]:
    """A detector on ResNet-18 and torchvision's, with narrow heads and the same weights, in double
    precision."""
    torch.manual_seed(0)
    heads = _narrow_heads(name, [detection] * 3, classes)
    ours = getattr(detection, name)(_backbone(detection), **{**SMALL, **heads, **options})
    heads = _narrow_heads(name, (faster_rcnn, mask_rcnn, keypoint_rcnn), classes)
    reference = getattr(theirs, name)(_backbone(backbone_utils), **{**SMALL, **heads, **options})
    reference.load_state_dict(randomize(ours, frozen=True).state_dict())
    return ours.double(), reference.double()


@pytest.mark.parametrize("name", ["MaskRCNN", "KeypointRCNN"])
def test_fused(name):
    ours, reference = pair(name, 3)
    images, _ = scenes()
    with torch.no_grad():
        expected = reference.eval()(images)
        torch.testing.assert_close(fastvision.fuse(ours.eval())(images), expected)


@pytest.mark.parametrize("kind", ["TwoMLPHead", "FastRCNNConvFCHead"])
def test_box_head_of_channels_last_maps(kind):
    """Without a copy the same result, also after a change of the weights."""
    torch.manual_seed(0)
    if kind == "TwoMLPHead":
        head = detection.TwoMLPHead(8 * 9, 16)
    else:
        head = detection.FastRCNNConvFCHead((8, 3, 3), [8], [16, 8], nn.BatchNorm2d)
    x = cases.feature_map(50, 8, 3, 3)
    last = x.contiguous(memory_format=torch.channels_last)
    head.eval()
    for _ in range(2):
        with torch.no_grad():
            result = head(last)
            torch.testing.assert_close(result, head(x), rtol=1e-4, atol=1e-4)
            wide = copy.deepcopy(head).double()(x.double()).float()
            torch.testing.assert_close(result, wide, rtol=1e-4, atol=1e-4)
            assert (head(last[:0]).shape == (0, result.shape[1])) and result.abs().max() > 0
            for parameter in head.parameters():
                parameter.add_(0.01)
    assert head(last).requires_grad


def test_images_without_objects():
    for name, classes in (("MaskRCNN", 3), ("KeypointRCNN", 2)):
        ours, reference = pair(name, classes)
        images, targets = scenes()
        targets = of(targets, ours)
        targets[1] = {key: value[:0] for key, value in targets[1].items()}
        assert_same_training(ours, reference, images, targets)


def test_no_object_in_a_batch():
    ours, reference = pair("MaskRCNN", 3)
    images, targets = scenes()
    targets = [{key: value[:0] for key, value in target.items()} for target in targets]
    assert_same_training(ours, reference, images, targets)


@pytest.mark.parametrize("name", ["FasterRCNN", "MaskRCNN", "KeypointRCNN"])
def test_nothing_is_found(name):
    ours, reference = pair(name, 3, box_score_thresh=1.0)
    images, _ = scenes()
    with torch.no_grad():
        expected, actual = reference.eval()(images), ours.eval()(images)
    assert all(len(found["boxes"]) == 0 for found in expected)
    torch.testing.assert_close(actual, expected)


def test_no_proposals():
    ours, reference = pair("FasterRCNN", 3, rpn_score_thresh=1.0)
    images, _ = scenes()
    with torch.no_grad():
        torch.testing.assert_close(ours.eval()(images), reference.eval()(images))


def test_batch_and_single_images():
    """Of images of one size, since padding of others reaches into the features."""
    ours, _ = pair("MaskRCNN", 3)
    images = list(torch.rand(3, 3, 64, 72, dtype=torch.double, generator=cases.generator(0)))
    with torch.no_grad():
        together = ours.eval()(images)
        alone = [ours([image])[0] for image in images]
    torch.testing.assert_close(together, alone, rtol=1e-8, atol=1e-8)


class Single(nn.Module):
    """A backbone of one map."""

    out_channels = 8

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, stride=8)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x).relu()


def test_own_parts():
    made = []
    for module, heads, pool in (
        (detection, detection, MultiScaleRoIAlign),
        (theirs, faster_rcnn, their_ops.MultiScaleRoIAlign),
    ):
        torch.manual_seed(0)
        anchors = (detection if module is detection else theirs.rpn).AnchorGenerator(
            ((16, 32),), ((0.5, 1.0),)
        )
        made.append(
            module.FasterRCNN(
                Single(),
                rpn_anchor_generator=anchors,
                box_roi_pool=pool(["0"], output_size=3, sampling_ratio=2),
                box_head=heads.TwoMLPHead(8 * 9, 20),
                box_predictor=heads.FastRCNNPredictor(20, 4),
                bbox_reg_weights=(1.0, 2.0, 3.0, 4.0),
                **SMALL,
            ).double()
        )
    assert_same_results(*made)


def test_parts_of_the_wrong_kind():
    backbone = Single()
    for name in ("rpn_anchor_generator", "box_roi_pool"):
        with pytest.raises(TypeError, match=name):
            detection.FasterRCNN(backbone, 2, **{name: nn.Identity()})
    with pytest.raises(TypeError, match="mask_roi_pool"):
        detection.MaskRCNN(backbone, 2, mask_roi_pool=nn.Identity())
    with pytest.raises(TypeError, match="keypoint_roi_pool"):
        detection.KeypointRCNN(backbone, 2, keypoint_roi_pool=nn.Identity())
    with pytest.raises(ValueError, match="num_classes should not be None"):
        detection.FasterRCNN(backbone)
    for part, cls in (
        ("box_predictor", detection.FasterRCNN),
        ("mask_predictor", detection.MaskRCNN),
    ):
        with pytest.raises(ValueError, match=f"num_classes should be None when {part}"):
            cls(backbone, 2, **{part: nn.Identity()})
    with pytest.raises(ValueError, match="num_keypoints should be None"):
        detection.KeypointRCNN(backbone, 2, keypoint_predictor=nn.Identity(), num_keypoints=3)
    for cls in (detection.FasterRCNN, detection.MaskRCNN, detection.KeypointRCNN):
        with pytest.raises(ValueError, match="out_channels"):
            cls(nn.Identity(), 2)


def narrow() -> nn.Module:
    """A Faster R-CNN that is made quickly."""
    anchors = detection.AnchorGenerator(((16,),), (1.0,))
    pool = MultiScaleRoIAlign(["0"], 2, 2)
    return detection.FasterRCNN(Single(), 3, rpn_anchor_generator=anchors, box_roi_pool=pool)


def test_bad_targets():
    model = narrow()
    images, targets = scenes(torch.float32)
    targets = [{"boxes": t["boxes"], "labels": t["labels"]} for t in targets]

    def fails(error, match, **entries):
        changed = [{**targets[0], **entries}, targets[1]]
        with pytest.raises(error, match=match):
            model(images, changed)

    with pytest.raises(AssertionError, match="targets should not be none"):
        model(images)
    with pytest.raises(AssertionError, match="one target per image, 2, got 1"):
        model(images, targets[:1])
    fails(AssertionError, r"shape \[N, 4\], got \[4\]", boxes=torch.zeros(4))
    fails(AssertionError, "of type Tensor", boxes=[[1, 2, 3, 4]])
    fails(TypeError, "boxes must of float type", boxes=targets[0]["boxes"].long())
    fails(TypeError, "labels must of int64", labels=targets[0]["labels"].int())
    fails(ValueError, "labels to be int64 of shape", labels=targets[0]["labels"][:1])
    fails(ValueError, "not to be negative", labels=-targets[0]["labels"])
    degenerate = torch.tensor([[1.0, 2, 30, 40], [5, 5, 5, 9]])
    with pytest.raises(AssertionError, match=r"Found invalid box \[.*\] for target at index 1"):
        model(images, [targets[0], {"boxes": degenerate, "labels": torch.ones(2).long()}])
    with pytest.raises(ValueError, match="should have a masks key"):
        pair("MaskRCNN", 3)[0].float()(images, targets)


def test_weights_decide_over_classes_and_normalizations(tmp_path):
    build, options = detection.fasterrcnn_mobilenet_v3_large_320_fpn, {"weights_backbone": None}
    trained = build(num_classes=4, **options)
    torch.save(trained.state_dict(), tmp_path / "model.pth")
    loaded = build(weights=tmp_path / "model.pth")
    assert loaded.roi_heads.box_predictor.cls_score.out_features == 4
    assert not any(isinstance(m, FrozenBatchNorm2d) for m in loaded.modules())
    assert sum(p.requires_grad for p in loaded.parameters()) < len(list(loaded.parameters()))
    with pytest.raises(ValueError, match="num_classes must be 4 for these weights, got 5"):
        build(weights=tmp_path / "model.pth", num_classes=5)
    with pytest.raises(ValueError, match="weights do not fit fasterrcnn_mobilenet"):
        build(weights={"weight": torch.zeros(1)})
    frozen = {k: v for k, v in trained.state_dict().items() if "num_batches" not in k}
    assert any(isinstance(m, FrozenBatchNorm2d) for m in build(weights=frozen).modules())


def test_frozen_backbone():
    """Weights of the backbone make its normalizations constants, and stages of it too."""
    name = "fasterrcnn_mobilenet_v3_large_fpn"
    state = models.mobilenet_v3_large().state_dict()
    ours = models.get_model(name, weights_backbone=state, trainable_backbone_layers=2)
    assert sum(p.numel() for p in ours.parameters()) == 19_386_354
    backbone = backbone_utils.mobilenet_backbone(
        backbone_name="mobilenet_v3_large", weights=None, fpn=True, trainable_layers=2
    )
    frozen = [
        {n for n, p in m.named_parameters() if not p.requires_grad}
        for m in (backbone, ours.backbone)
    ]
    assert frozen[0] == frozen[1] and len(frozen[0]) > 0
    with pytest.warns(UserWarning, match="has no effect"):
        models.get_model(name, weights_backbone=None, trainable_backbone_layers=2)
    with pytest.raises(ValueError, match=r"\[0,6\], got 7"):
        models.get_model(name, weights_backbone=state, trainable_backbone_layers=7)


def test_16_bit_images():
    """Boxes keep their precision; scores are near those of the same weights in float32."""
    ours, _ = pair("MaskRCNN", 3)
    low = ours.bfloat16().eval()
    wide = copy.deepcopy(low).float()
    images = [x.bfloat16() for x in scenes()[0]]
    with torch.no_grad():
        found, expected = low(images), wide([x.float() for x in images])
    for one, other in zip(found, expected, strict=True):
        assert one["boxes"].dtype == one["scores"].dtype == one["masks"].dtype == torch.float32
        torch.testing.assert_close(one["scores"], other["scores"], rtol=0.05, atol=0.05)
        inside = one["boxes"][:, 2:] - one["boxes"][:, :2]
        assert (inside > 0).all() and (one["scores"].diff() <= 0).all()


@pytest.mark.parametrize("name", ["MaskRCNN", "KeypointRCNN"])
def test_autocast(name):
    """Networks are of 16 bits, masks and keypoints are found in the maps as with them."""
    ours, _ = pair(name, 3)
    model, images = ours.float().eval(), [x.float() for x in scenes()[0]]
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        found = model(images)
        maps = torch.rand(4, 1, 14, 14, generator=cases.generator(0))
        boxes = torch.tensor([[2.0, 3, 30, 61], [20, 11, 57, 64], [0, 0, 5, 7], [1, 1, 90, 70]])
        pasted = detection.masks.paste_masks_in_image(maps, boxes, (70, 90))
        places = detection.keypoints.heatmaps_to_keypoints(maps, boxes)
    assert all(len(one["boxes"]) > 0 for one in found)
    wide = detection.masks.paste_masks_in_image(maps, boxes, (70, 90))
    assert pasted.dtype == torch.float32 and torch.equal(pasted, wide)
    for one, other in zip(
        places, detection.keypoints.heatmaps_to_keypoints(maps, boxes), strict=True
    ):
        assert torch.equal(one, other)


def test_exported():
    """A program has results of a fixed size, which end in zeros."""
    images, _ = scenes()
    model, _ = pair("MaskRCNN", 3, box_detections_per_img=30, rpn_post_nms_top_n_test=15)
    with torch.no_grad():
        scores = model.eval()(images)[0]["scores"]
        model.roi_heads.score_thresh = scores[len(scores) // 2].item()
        expected = model(images)
        program = torch.export.export(model, (images,)).module()
        found = program([x.flip(-1) for x in images])
        assert [len(one["boxes"]) for one in found] == [30, 30]
        found = program(images)
    for one, other in zip(found, expected, strict=True):
        count = len(other["boxes"])
        assert 0 < count < 30
        for key, values in other.items():
            torch.testing.assert_close(one[key][:count], values, rtol=1e-8, atol=1e-8)
            assert not one[key][count:].any()


def test_keypoints_cannot_be_exported():
    model, _ = pair("KeypointRCNN", 2)
    with pytest.raises(Exception, match="search in heatmaps cannot be exported"):
        torch.export.export(model.eval(), (scenes()[0],))


def test_state_dicts_of_version_1():
    """The names of layers before torchvision 0.13."""
    ours, _ = pair("MaskRCNN", 3)
    state = ours.state_dict()
    old = type(state)()
    for key, value in state.items():
        key = key.replace("rpn.head.conv.0.0.", "rpn.head.conv.")
        for i in range(2):
            key = key.replace(f"mask_head.{i}.0.", f"mask_head.mask_fcn{i + 1}.")
        old[key] = value
    other, _ = pair("MaskRCNN", 3)
    for parameter in other.parameters():
        nn.init.zeros_(parameter)
    other.load_state_dict(old)
    for key, value in other.state_dict().items():
        assert torch.equal(value, state[key])
