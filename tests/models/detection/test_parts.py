"""Parts that detectors share: the same results as torchvision's."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from fastvision.models import detection
from fastvision.models.detection import _heads, keypoints, postprocess, transform
from fastvision.models.detection import masks as our_masks
from fastvision.ops import nms
from fastvision.testing import cases

theirs = pytest.importorskip("torchvision.models.detection")
from torchvision.models.detection import _utils, backbone_utils, image_list  # noqa: E402
from torchvision.models.detection import roi_heads as their_roi_heads  # noqa: E402
from torchvision.models.detection import transform as their_transform  # noqa: E402


def boxes_in(height: int, width: int, count: int, seed: int = 0) -> Tensor:
    """Random corners [count, 4], none of them degenerate."""
    generator = cases.generator(seed)
    corners = torch.rand(count, 2, 2, generator=generator, dtype=torch.double)
    corners = corners.sort(1).values * torch.tensor([width - 2.0, height - 2.0])
    corners[:, 1] += 2
    return corners.flatten(1)


def assert_equal(actual, expected):
    torch.testing.assert_close(actual, expected, rtol=0, atol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    "arguments",
    [
        {},
        {"sizes": (32, 64), "aspect_ratios": (0.5, 1.0)},
        {"sizes": ((16, 24), (31,)), "aspect_ratios": ((1.0,), (0.3, 2.5))},
    ],
    ids=["default", "numbers", "per level"],
)
def test_anchors(arguments, dtype):
    ours = detection.AnchorGenerator(**arguments)
    reference = theirs.anchor_utils.AnchorGenerator(**arguments)
    assert ours.num_anchors_per_location() == reference.num_anchors_per_location()
    sizes = [(12, 17), (5, 8)][: len(ours.cell_anchors)]
    maps = [torch.zeros(2, 1, *size, dtype=dtype) for size in sizes]
    batch = torch.zeros(2, 3, 97, 140, dtype=dtype), [(90, 140), (97, 100)]
    expected = reference(image_list.ImageList(*batch), maps)
    assert_equal(ours(detection.ImageList(*batch), maps), expected)


def test_anchors_of_16_bit_maps_are_exact():
    generator = detection.AnchorGenerator(((32,),))
    batch = detection.ImageList(torch.zeros(1, 3, 1024, 1024), [(1024, 1024)])
    expected = generator(batch, [torch.zeros(1, 1, 256, 256)])
    assert_equal(generator(batch, [torch.zeros(1, 1, 256, 256).bfloat16()]), expected)


def test_anchors_for_another_number_of_maps():
    with pytest.raises(ValueError, match="got 2 and 1"):
        detection.AnchorGenerator(((32,), (64,)), ((1.0,),))
    generator = detection.AnchorGenerator((32, 64), (1.0,))
    batch = detection.ImageList(torch.zeros(1, 3, 64, 64), [(64, 64)])
    with pytest.raises(AssertionError, match="2 feature maps, got 1"):
        generator(batch, [torch.zeros(1, 1, 8, 8)])


@pytest.mark.parametrize("weights", [(1.0, 1.0, 1.0, 1.0), (10.0, 10.0, 5.0, 5.0), (1, 2, 3, 4)])
def test_box_coder(weights):
    ours, reference = detection.BoxCoder(weights), _utils.BoxCoder(weights)
    one, other = [boxes_in(50, 60, 7), boxes_in(50, 60, 3)], [boxes_in(50, 60, 7, 1)]
    other.append(boxes_in(50, 60, 3, 1))
    codes = ours.encode(one, other)
    assert_equal(codes, reference.encode(one, other))
    again = ours.decode(torch.cat(codes), other)
    torch.testing.assert_close(again[:, 0], torch.cat(one))
    codes = torch.randn(10, 12, dtype=torch.double, generator=cases.generator(2)) * 9
    assert_equal(ours.decode(codes, other), reference.decode(codes, other))
    boxes = torch.cat(other)
    assert_equal(ours.decode_single(codes, boxes), reference.decode_single(codes, boxes))


def test_box_coder_without_boxes():
    decoded = detection.BoxCoder((1.0, 1.0, 1.0, 1.0)).decode(
        torch.zeros(0, 12), [torch.zeros(0, 4)]
    )
    assert decoded.shape == (0, 3, 4)


@pytest.mark.parametrize("low_quality", [False, True])
def test_matcher(low_quality):
    quality = torch.rand(5, 40, generator=cases.generator(0))
    quality[:, ::3] /= 3
    quality[3] = quality[2]  # two objects with the same best boxes
    quality[:, 7] = torch.nan
    arguments = 0.7, 0.3, low_quality
    ours, reference = detection.Matcher(*arguments), _utils.Matcher(*arguments)
    assert_equal(ours(quality), reference(quality.clone()))


@pytest.mark.parametrize(("shape", "missing"), [((0, 4), "ground-truth"), ((4, 0), "proposal")])
def test_matcher_without_boxes(shape, missing):
    with pytest.raises(ValueError, match=f"No {missing} boxes"):
        detection.Matcher(0.5, 0.5)(torch.zeros(shape))
    with pytest.raises(AssertionError, match=r"got 0\.6 and 0\.5"):
        detection.Matcher(0.5, 0.6)


def test_sampler_draws_as_torchvision():
    labels = [torch.randint(-1, 3, (60,), generator=cases.generator(i)).float() for i in range(3)]
    labels += [torch.zeros(9), torch.ones(9)]
    drawn = []
    for sampler in (
        detection.BalancedPositiveNegativeSampler,
        _utils.BalancedPositiveNegativeSampler,
    ):
        torch.manual_seed(0)
        drawn.append(sampler(20, 0.25)(labels))
    assert_equal(*drawn)


def targets_of(images: list[Tensor]) -> list[dict[str, Tensor]]:
    targets = []
    for i, image in enumerate(images):
        height, width = image.shape[-2:]
        boxes = boxes_in(height, width, 3, i)
        keypoints = torch.cat((boxes.view(3, 2, 2), torch.ones(3, 2, 1)), -1).float()
        masks = (torch.rand(3, height, width, generator=cases.generator(i)) > 0.5).byte()
        targets.append({"boxes": boxes, "keypoints": keypoints, "masks": masks})
    targets[-1] = {key: value[:0] for key, value in targets[-1].items()}
    return targets


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize(
    "options",
    [
        {"min_size": 60, "max_size": 100},
        {"min_size": (30, 50, 70), "max_size": 90, "size_divisible": 1},
        {"min_size": 1, "max_size": 1, "fixed_size": (70, 50)},
        {"min_size": 40, "max_size": 90, "_skip_resize": True},
    ],
    ids=["limits", "several", "fixed", "as given"],
)
def test_transform(options, training):
    images = [cases.feature_map(3, *size).double() for size in ((50, 61), (80, 40), (60, 80))]
    statistics = {"image_mean": [0.1, 0.2, 0.3], "image_std": [0.5, 0.6, 0.7]}
    results = []
    for module in (
        detection.GeneralizedRCNNTransform(**options, **statistics),
        theirs.transform.GeneralizedRCNNTransform(**options, **statistics),
    ):
        torch.manual_seed(3)
        module.train(training)
        batch, targets = module(images, targets_of(images))
        found = [{"boxes": t["boxes"], "keypoints": t["keypoints"]} for t in targets]
        given = [(x.shape[-2], x.shape[-1]) for x in images]
        results.append(
            (
                batch.tensors,
                batch.image_sizes,
                targets,
                module.postprocess(found, batch.image_sizes, given),
            )
        )
    torch.testing.assert_close(*results, rtol=1e-12, atol=1e-12)


def test_transform_of_bad_images():
    module = detection.GeneralizedRCNNTransform(32, 64, [0.5] * 3, [0.5] * 3)
    with pytest.raises(ValueError, match=r"shape \[C, H, W\], got \[1, 3, 9, 9\]"):
        module([torch.zeros(1, 3, 9, 9)])
    with pytest.raises(ValueError, match=r"shape \[C, H, W\], got \[3, 0, 9\]"):
        module([torch.zeros(3, 0, 9)])
    with pytest.raises(ValueError, match="images must not be empty"):
        module([])
    with pytest.raises(TypeError, match="uint8"):
        module([torch.zeros(3, 9, 9, dtype=torch.uint8)])
    with pytest.raises(ValueError, match=r"images must have 3 channels.*got \[4, 9, 9\]"):
        module([torch.zeros(4, 9, 9)])
    with pytest.raises(TypeError, match=r"images\[1\] must be a Tensor, got NoneType"):
        module([torch.zeros(3, 9, 9), None])


def test_transform_of_thin_images():
    module = detection.GeneralizedRCNNTransform(32, 64, [0.5] * 3, [0.5] * 3).eval()
    batch, _ = module([torch.ones(3, 1, 900), torch.ones(3, 1, 1)])
    assert batch.image_sizes == [(1, 64), (32, 32)] and batch.tensors.shape == (2, 3, 32, 64)


def test_pasted_masks():
    boxes = torch.cat((boxes_in(40, 50, 12), boxes_in(40, 50, 4) * 1.5 - 10))
    boxes = torch.cat((boxes, torch.tensor([[3.0, 3, 3, 3], [0, 0, 50, 40], [10.2, 9, 10.3, 30]])))
    small = torch.rand(len(boxes), 1, 9, 9, dtype=torch.double, generator=cases.generator(0))
    expected = their_roi_heads.paste_masks_in_image(small, boxes, (40, 50))
    actual = our_masks.paste_masks_in_image(small, boxes, (40, 50))
    torch.testing.assert_close(actual, expected, rtol=1e-12, atol=1e-12)
    assert our_masks.paste_masks_in_image(small[:0], boxes[:0], (40, 50)).shape == (0, 1, 40, 50)


def test_sizes_of_keypoints_and_boxes():
    keypoints = torch.rand(2, 5, 3)
    expected = their_transform.resize_keypoints(keypoints, (30, 40), (71, 65))
    assert_equal(transform.resize_keypoints(keypoints, (30, 40), (71, 65)), expected)


@pytest.mark.parametrize("trainable", [0, 2, 5])
def test_resnet_backbone(trainable):
    arguments = {"backbone_name": "resnet18", "weights": None, "trainable_layers": trainable}
    _same_backbone("resnet_fpn_backbone", arguments)
    _same_backbone("resnet_fpn_backbone", {**arguments, "returned_layers": [2, 4]})


@pytest.mark.parametrize("name", ["mobilenet_v2", "mobilenet_v3_small"])
@pytest.mark.parametrize("fpn", [False, True])
def test_mobilenet_backbone(name, fpn):
    for trainable in (0, 2, 6):
        _same_backbone(
            "mobilenet_backbone",
            {"backbone_name": name, "weights": None, "fpn": fpn, "trainable_layers": trainable},
        )


def _same_backbone(name, arguments):
    torch.manual_seed(0)
    ours = getattr(detection, name)(**arguments).eval()
    torch.manual_seed(0)
    reference = getattr(backbone_utils, name)(**arguments).eval()
    assert_equal(ours.state_dict(), reference.state_dict())
    trained = [{n for n, p in m.named_parameters() if p.requires_grad} for m in (ours, reference)]
    assert trained[0] == trained[1] and ours.out_channels == reference.out_channels
    images = cases.feature_map(1, 3, 65, 70)
    with torch.no_grad():
        torch.testing.assert_close(ours(images), reference(images), rtol=1e-4, atol=1e-4)


def test_backbones_of_bad_arguments():
    with pytest.raises(ValueError, match="backbone_name must be a ResNet's, got 'mobilenet_v2'"):
        detection.resnet_fpn_backbone(backbone_name="mobilenet_v2", weights=None)
    with pytest.raises(ValueError, match=r"trainable_layers must be in the range \[0,5\], got 6"):
        detection.resnet_fpn_backbone(backbone_name="resnet18", weights=None, trainable_layers=6)
    with pytest.raises(ValueError, match="returned_layers"):
        detection.resnet_fpn_backbone(backbone_name="resnet18", weights=None, returned_layers=[0])
    with pytest.raises(ValueError, match=r"\[0,6\], got 7"):
        detection.mobilenet_backbone(
            backbone_name="mobilenet_v2", weights=None, fpn=False, trainable_layers=7
        )


def test_top_of_levels():
    levels = [torch.rand(2, n, generator=cases.generator(n)) for n in (7, 3, 20)]
    values, indices = postprocess.top_of_levels(levels, 5)
    assert values.shape == indices.shape == (2, 13)
    assert_equal(torch.cat(levels, 1).gather(1, indices), values)
    assert_equal(values[:, -5:], levels[2].sort(1, descending=True).values[:, :5])


def test_suppression_of_a_batch():
    """The padded form and the one for any number, against one image after the other."""
    batch, count, labels = 3, 60, 4
    boxes = torch.stack([boxes_in(40, 40, count, seed) for seed in range(batch)])
    scores = torch.rand(batch, count, generator=cases.generator(5), dtype=torch.double)
    kinds = torch.randint(labels, (batch, count), generator=cases.generator(6))
    wanted = (scores > 0.2) & postprocess.large(boxes, 3)
    wanted[1] = False
    padded, counts = postprocess.suppress_padded(boxes, scores, kinds, wanted, 0.4, 10)
    image = torch.arange(batch)[:, None].expand(-1, count)[wanted]
    kept = postprocess.suppress(boxes[wanted], scores[wanted], kinds[wanted], image, batch, 0.4, 10)
    assert counts.tolist() == kept.counts and kept.counts[1] == 0 and max(kept.counts) == 10
    for i, (found, best) in enumerate(
        zip(kept.split(boxes[wanted]), kept.split(scores[wanted]), strict=True)
    ):
        here, there = [], scores[i].where(wanted[i], -1)
        for label in range(labels):
            of_label = torch.where((kinds[i] == label) & wanted[i])[0]
            here.append(of_label[nms(boxes[i][of_label], there[of_label], 0.4)])
        expected = torch.cat(here)
        expected = expected[there[expected].argsort(descending=True)][:10]
        assert_equal(padded[i, : counts[i]], expected)
        assert_equal(found, boxes[i][expected])
        assert_equal(best, scores[i][expected])


def test_clipping_to_each_image():
    boxes = torch.tensor([[[-1.0, 2, 30, 40]], [[5, -3, 9, torch.nan]]])
    limits = postprocess.limits([(20, 25), (7, 8)], boxes)
    expected = torch.tensor([[[0.0, 2, 25, 20]], [[5, 0, 8, torch.nan]]])
    torch.testing.assert_close(
        postprocess.clip(boxes, limits[:, None]), expected, equal_nan=True, rtol=0, atol=0
    )


@pytest.mark.parametrize("size", [2, 30, 80, 120, 400])
def test_keypoints_of_heatmaps(size):
    generator = cases.generator(size)
    small = torch.randn(5, 3, 14, 14, generator=generator, dtype=torch.double)
    maps = nn.functional.interpolate(small, scale_factor=4.0, mode="bilinear")
    low = torch.rand(5, 2, generator=generator, dtype=torch.double) * 20
    extent = torch.rand(5, 2, generator=generator, dtype=torch.double) * size
    boxes = torch.cat((low, low + extent), 1)
    expected = their_roi_heads.heatmaps_to_keypoints(maps, boxes)
    actual = keypoints.heatmaps_to_keypoints(maps, boxes)
    torch.testing.assert_close(actual, expected)
    places, values = keypoints.heatmaps_to_keypoints(maps[:0], boxes[:0])
    assert places.shape == (0, 3, 3) and values.shape == (0, 3)


def test_keypoints_of_flat_heatmaps():
    boxes = torch.tensor([[0.0, 0, 100, 70], [3, 3, 3, 3]])
    places, values = keypoints.heatmaps_to_keypoints(torch.zeros(2, 1, 56, 56), boxes)
    assert_equal(places[:, 0], torch.tensor([[0.5, 0.5, 1], [3.5, 3.5, 1]]))
    assert_equal(values, torch.zeros(2, 1))


@pytest.mark.parametrize("listens", [False, True])
def test_convolutions_of_the_same_maps_are_trained_as_one(listens, monkeypatch):
    torch.manual_seed(0)
    convs = [nn.Conv2d(32, outputs, 3, padding=1) for outputs in (4, 1)]
    maps = [torch.randn(2, 32, size, size, requires_grad=True) for size in (9, 5)]
    calls, heard = [], []
    run = _heads.conv_bn_relu
    monkeypatch.setattr(_heads, "conv_bn_relu", lambda *a, **k: calls.append(a) or run(*a, **k))
    if listens:
        convs[1].register_forward_hook(lambda *args: heard.append(args))
    actual = _heads.results_of(maps, *convs)
    assert (len(calls), len(heard)) == ((0, 2) if listens else (2, 0))
    expected = [[nn.functional.conv2d(x, c.weight, c.bias, padding=1) for x in maps] for c in convs]
    leaves = [*maps, *(p for conv in convs for p in conv.parameters())]
    gradients = []
    for results in (actual, expected):
        total = sum((y.square() * (i + 1)).sum() for i, of in enumerate(results) for y in of)
        gradients.append(torch.autograd.grad(total, leaves))
    for a, b in zip(sum(actual, []), sum(expected, []), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)
    for a, b in zip(*gradients, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-3)
