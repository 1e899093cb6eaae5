"""YOLO's losses by hand, and what outputs mean."""

from __future__ import annotations

import math

import pytest
import torch

from fastvision import ops
from fastvision.models.darknet.config import section
from fastvision.models.darknet.network import Head
from fastvision.models.detection.yolo._truth import Truth
from fastvision.models.detection.yolo.grid import GridHead
from fastvision.models.detection.yolo.logistic import YOLOHead
from fastvision.models.detection.yolo.region import RegionHead


def truth(*objects):
    """Objects (image, label from 0, center x, y, width, height) of two images."""
    boxes = torch.tensor([box[2:] for box in objects], dtype=torch.double).reshape(-1, 4)
    images = torch.tensor([box[0] for box in objects], dtype=torch.int64)
    padded = torch.zeros(2, len(objects), 4, dtype=torch.double)
    padded[images, torch.arange(len(objects))] = ops.box_convert(boxes, "cxcywh", "xyxy")
    return Truth(boxes, torch.tensor([box[1] for box in objects]), images, padded)


def assert_losses(losses, **expected):
    assert losses.keys() == expected.keys()
    for name, value in expected.items():
        assert losses[name].item() == pytest.approx(value, abs=1e-5), name


def grid_head():
    part = section(
        "detection", classes=3, side=2, num=2, sqrt=1, object_scale=1, noobject_scale=0.5,
        class_scale=1, coord_scale=5,
    )  # fmt: skip
    return GridHead([Head(part, (52, 1, 1))])


def test_loss_of_version_1_term_by_term():
    outputs = torch.zeros(2, 52, dtype=torch.double)
    classes, confidences, boxes = grid_head().parts(outputs)  # views
    confidences.fill_(0.2)
    # image 0, cell (1, 0): its first box overlaps the object most
    classes[0, 1] = torch.tensor([0.5, 0.25, 0.25])
    confidences[0, 1, 0] = 0.9
    boxes[0, 1, 0] = torch.tensor([0.6, 0.5, 0.5, 0.5])
    boxes[0, 1, 1] = torch.tensor([0.5, 0.5, 0.1, 0.1])
    losses = grid_head().losses([outputs], truth((0, 1, 75, 25, 25, 36)), (100, 100))
    overlap = 0.2 * 0.25 / (0.25 * 0.25 + 0.25 * 0.36 - 0.2 * 0.25)
    assert_losses(
        losses,
        loss_center=5 * 0.1**2 / 2,
        loss_size=5 * (0.6 - 0.5) ** 2 / 2,
        loss_objectness=(0.9 - overlap) ** 2 / 2,
        loss_no_object=0.5 * 15 * 0.2**2 / 2,
        loss_classifier=(0.5**2 + 0.75**2 + 0.25**2) / 2,
    )


def test_closest_box_of_version_1_is_responsible_where_none_overlaps():
    outputs = torch.zeros(2, 52, dtype=torch.double)
    _, confidences, boxes = grid_head().parts(outputs)
    boxes[0, 1, 0] = torch.tensor([-3.0, 0.5, 0.1, 0.1])
    boxes[0, 1, 1] = torch.tensor([-2.0, 0.5, 0.1, 0.1])
    confidences[0, 1, 1] = 1
    losses = grid_head().losses([outputs], truth((0, 1, 75, 25, 4, 4)), (100, 100))
    assert losses["loss_objectness"] == 0.5 and losses["loss_no_object"] == 0


def region_head(thresh=0.6):
    part = section(
        "region", anchors=(1, 1, 2, 2), classes=2, num=2, softmax=1, object_scale=5,
        noobject_scale=1, class_scale=1, coord_scale=1, thresh=thresh,
    )  # fmt: skip
    return RegionHead([Head(part, (14, 2, 2))], (64, 64))


def test_loss_of_version_2_by_hand():
    maps = torch.zeros(2, 14, 2, 2, dtype=torch.double)
    # the larger anchor of the cell covers the object exactly, so that it is no empty place
    maps[0, 7:11, 0, 1] = torch.tensor([-math.log(3), math.log(3), -math.log(2), -math.log(4)])
    losses = region_head().losses([maps], truth((0, 1, 40, 24, 32, 16)), (64, 64))
    weight = 2 - 32 * 16 / 64**2
    overlap = 24 * 16 / (32 * 32 + 32 * 16 - 24 * 16)
    assert_losses(
        losses,
        loss_box_reg=weight * (0.25**2 + 0.25**2 + math.log(2) ** 2) / 2,
        loss_objectness=(5 * (0.5 - overlap) ** 2 + (6 + 8) * 0.5**2) / 2,
        loss_classifier=math.log(2) / 2,
    )


def yolo_heads(ignore_thresh=0.5, box_loss="squared"):
    options = {"anchors": (16, 16, 48, 48), "classes": 3, "num": 2, "ignore_thresh": ignore_thresh}
    parts = [section("yolo", mask=mask, **options) for mask in (1, 0)]
    heads = [Head(parts[0], (8, 2, 2)), Head(parts[1], (8, 4, 4))]
    return YOLOHead(heads, (64, 64), box_loss)


@pytest.mark.parametrize(("ignore_thresh", "empty"), [(0.5, 19), (0.05, 18)])
def test_loss_of_version_3_by_hand(ignore_thresh, empty):
    """12x16 fits the anchor 16x16 of the finer map best; the 48x48 around it has an IoU of 0.08."""
    maps = [torch.zeros(2, 8, k, k, dtype=torch.double) for k in (2, 4)]
    losses = yolo_heads(ignore_thresh).losses(maps, truth((0, 2, 40, 24, 12, 16)), (64, 64))
    weight = 2 - 12 * 16 / 64**2
    assert_losses(
        losses,
        loss_box_reg=weight * (2 * math.log(2) + math.log(0.75) ** 2 / 2) / 2,
        loss_objectness=(1 + empty + 20) * math.log(2) / 2,
        loss_classifier=3 * math.log(2) / 2,
    )


def test_box_losses_by_overlap():
    maps = [torch.zeros(2, 8, k, k, dtype=torch.double) for k in (2, 4)]
    one = truth((0, 2, 40, 24, 12, 16))
    weight = 2 - 12 * 16 / 64**2
    losses = yolo_heads(box_loss="giou").losses(maps, one, (64, 64))
    assert losses["loss_box_reg"].item() == pytest.approx(weight * (1 - 0.75) / 2)
    with pytest.raises(ValueError, match="box_loss must be one of .* got 'iou'"):
        yolo_heads(box_loss="iou")


@pytest.mark.parametrize("head", [grid_head, region_head, yolo_heads])
def test_first_of_several_objects_in_one_place(head):
    head = head()
    shapes = {GridHead: [(52,)], RegionHead: [(14, 2, 2)], YOLOHead: [(8, 2, 2), (8, 4, 4)]}
    generator = torch.Generator().manual_seed(0)
    outputs = [
        torch.randn(2, *shape, generator=generator, dtype=torch.double)
        for shape in shapes[type(head)]
    ]
    first, second, other = (1, 1, 40, 24, 12, 16), (1, 0, 41, 25, 12, 15), (0, 0, 41, 25, 12, 15)
    alone = head.losses(outputs, truth(first), (64, 64))
    both = head.losses(outputs, truth(first, second), (64, 64))
    apart = head.losses(outputs, truth(first, other), (64, 64))
    assert both["loss_classifier"] == alone["loss_classifier"] < apart["loss_classifier"]


@pytest.mark.parametrize("head", [grid_head, region_head, yolo_heads])
def test_gradients_of_the_losses(head):
    head = head()
    shapes = {GridHead: [(52,)], RegionHead: [(14, 2, 2)], YOLOHead: [(8, 2, 2), (8, 4, 4)]}
    generator = torch.Generator().manual_seed(0)
    outputs = [
        torch.rand(2, *shape, generator=generator, dtype=torch.double).requires_grad_()
        for shape in shapes[type(head)]
    ]
    objects = truth((0, 1, 40, 24, 12, 16), (1, 0, 20, 30, 40, 20), (1, 1, 50, 50, 20, 20))

    def losses(*outputs):
        # what the objectness should be is a constant
        terms = head.losses(outputs, objects, (64, 64))
        return tuple(loss for name, loss in terms.items() if name != "loss_objectness")

    assert torch.autograd.gradcheck(losses, outputs)
    sum(head.losses(outputs, objects, (64, 64)).values()).backward()
    assert all(torch.isfinite(x.grad).all() and x.grad.abs().max() > 0 for x in outputs)


@pytest.mark.parametrize("head", [region_head, yolo_heads])
def test_decoding_reverses_encoding(head):
    head = head()
    rows = [(2, 14)] if isinstance(head, RegionHead) else [(2, 8), (4, 8)]
    _, places = head.flat([torch.zeros(1, c, k, k, dtype=torch.double) for k, c in rows])
    boxes = torch.rand(len(places.cells), 4, dtype=torch.double) * 50 + 5
    assert torch.allclose(places.decode(*places.encode(boxes)), boxes)
    # a center of 0 is at the corner of its cell
    zero = torch.zeros(len(boxes), 2, dtype=torch.double)
    assert torch.equal(places.decode(zero, zero)[:, :2], places.cells * places.strides)


def test_decoding_of_version_1_reverses_encoding():
    boxes = torch.rand(20, 4, dtype=torch.double)
    outputs, cells = grid_head().encode(boxes)
    assert torch.allclose(grid_head().decode(outputs, cells), boxes)
    assert (outputs[:, :2] >= 0).all() and (outputs[:, :2] <= 1).all()
