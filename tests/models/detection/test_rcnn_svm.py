"""R-CNN: warped regions, the classifier, SVMs with hard negatives, and regression of boxes."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from fastvision import models
from fastvision.models.detection import RCNN, rcnn_vgg16
from fastvision.models.detection._svm import LinearSVMs
from fastvision.models.detection._warp import warp_regions
from fastvision.ops import box_iou


class Network(nn.Module):
    """A small classifier of the form that RCNN takes."""

    def __init__(self, classes: int = 3) -> None:
        super().__init__()
        self.features = nn.Sequential(
            *(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
            *(nn.Conv2d(8, 8, 3, padding=1), nn.ReLU()),
        )
        self.avgpool = nn.AdaptiveAvgPool2d(4)
        self.classifier = nn.Sequential(nn.Linear(128, 32), nn.ReLU(), nn.Linear(32, classes))

    def forward(self, x):
        return self.classifier(self.avgpool(self.features(x)).flatten(1))


def scene(generator: torch.Generator) -> tuple[torch.Tensor, dict, torch.Tensor]:
    """A bright (1) and a dark (2) square on grey, and proposals, some of them shifted from it."""
    image = torch.full((3, 48, 64), 0.5)
    left = torch.randint(0, 12, (2,), generator=generator).tolist()
    top = torch.randint(0, 30, (2,), generator=generator).tolist()
    boxes = torch.tensor(
        [(x, y, x + 16, y + 16) for x, y in ((left[0], top[0]), (left[1] + 32, top[1]))]
    )
    for (x1, y1, x2, y2), value in zip(boxes.tolist(), (1.0, 0.0), strict=True):
        image[:, y1:y2, x1:x2] = value
    boxes = boxes.float()
    near = boxes.repeat(8, 1) + 4 * torch.rand(16, 4, generator=generator) - 2
    corner = torch.rand(24, 2, generator=generator) * torch.tensor((48.0, 32.0))
    anywhere = torch.cat((corner, corner + 16), 1)
    return image, {"boxes": boxes, "labels": torch.tensor((1, 2))}, torch.cat((near, anywhere))


def scenes(count: int, seed: int = 0) -> tuple[list, list, list]:
    generator = torch.Generator().manual_seed(seed)
    images, targets, proposals = zip(*(scene(generator) for _ in range(count)), strict=True)
    return list(images), list(targets), list(proposals)


def rcnn(proposals=None, **options) -> RCNN:
    torch.manual_seed(0)
    defaults = {"size": 16, "context": 2, "proposals": proposals or (lambda images: [])}
    return RCNN(Network(), **(defaults | options))


def known(images, proposals):
    """What gives each image its own proposals."""
    of = {image.data_ptr(): boxes for image, boxes in zip(images, proposals, strict=True)}
    return lambda asked: [of[image.data_ptr()] for image in asked]


def test_a_region_of_the_squares_size_is_cut_out():
    image = torch.rand(2, 30, 40)
    boxes = torch.tensor([[4.0, 5, 20, 21], [8, 10, 24, 26]])
    warped = warp_regions(image, boxes, 16)
    torch.testing.assert_close(warped[0], image[:, 5:21, 4:20])
    torch.testing.assert_close(warped[1], image[:, 10:26, 8:24])


def test_context_surrounds_the_box_and_is_zero_outside_of_the_image():
    image = torch.rand(1, 30, 40) + 1
    warped = warp_regions(image, torch.tensor([[0.0, 10, 12, 22]]), 16, context=2)[0, 0]
    torch.testing.assert_close(warped[2:14, 2:14], image[0, 10:22, 0:12])
    torch.testing.assert_close(warped[:2, 2:14], image[0, 8:10, 0:12])
    assert (warped[:, 0] == 0).all()  # a pixel and more beyond the border


def test_regions_are_stretched_and_averaged():
    image = torch.rand(3, 64, 64)
    warped = warp_regions(image, torch.tensor([[0.0, 0, 64, 32]]), 16)
    torch.testing.assert_close(warped[0], F.avg_pool2d(image[None, :, :32], (2, 4))[0])


def test_scores_before_fitting_are_the_classifiers():
    images, _, proposals = scenes(2)
    images = [image + 0.1 * torch.rand(3, 48, 64) for image in images]  # so that no scores agree
    model = rcnn(batch_size=7, score_thresh=0.0, nms_thresh=1.0, detections_per_img=1000).eval()
    with torch.no_grad():
        found = model(images, proposals=proposals)[1]
        mean, std = torch.tensor([[0.485, 0.456, 0.406], [0.229, 0.224, 0.225]])[..., None, None]
        regions = warp_regions((images[1] - mean) / std, proposals[1], 16, 2)
        expected = model.network(regions).softmax(1)[:, 1:]
    assert found["scores"].dtype == torch.float32 and found["labels"].dtype == torch.int64
    order = expected.flatten().argsort(descending=True)
    torch.testing.assert_close(found["scores"], expected.flatten()[order])
    assert torch.equal(found["labels"], order % 2 + 1)
    limit = torch.tensor((64.0, 48, 64, 48))
    inside = proposals[1].clamp(min=0).minimum(limit)
    torch.testing.assert_close(found["boxes"], inside[order // 2])


def test_learns_squares():
    images, targets, proposals = scenes(12)
    model = rcnn(known(images, proposals), batch_size_per_image=16)
    optimizer = torch.optim.Adam(model.network.parameters(), 3e-3)
    losses = []
    for _ in range(40):
        loss = model(images, targets)["loss_classifier"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] / 4
    assert model.fit(images, targets, penalty=0.1).training
    model.eval()
    unseen, truths, proposals = scenes(6, seed=1)
    with torch.no_grad():
        answers = model(unseen, proposals=proposals)
    overlaps = []
    for answer, truth in zip(answers, truths, strict=True):
        assert (answer["scores"].diff() <= 0).all()
        for label, box in zip(truth["labels"], truth["boxes"], strict=True):
            best = torch.where(answer["labels"] == label)[0][0]
            assert answer["scores"][best] > 0.5
            overlaps.append(box_iou(box[None], answer["boxes"][best][None]).item())
    assert min(overlaps) > 0.7

    copy = rcnn()
    copy.load_state_dict(model.state_dict())
    with torch.no_grad():
        again = copy.eval()(unseen, proposals=proposals)
    for one, other in zip(answers, again, strict=True):
        assert all(torch.equal(one[name], other[name]) for name in one)


def test_regression_moves_boxes_to_objects():
    """Features that hold the offset: here the place of the square in the region."""
    images, targets, proposals = scenes(20)
    model = rcnn(known(images, proposals)).eval()
    model.fit(images, targets, ridge=1.0)
    unseen, truths, proposals = scenes(6, seed=1)
    before, after = [], []
    for image, truth, boxes in zip(unseen, truths, proposals, strict=True):
        with torch.no_grad():
            pooled, _ = model._features(image, boxes[:16])
            codes = model.regression(pooled).view(16, 2, 4)
        moved = model.box_coder.decode_single(codes, boxes[:16, None])
        for i in range(16):  # the proposals begin with those near the two objects in turn
            box = truth["boxes"][i % 2][None]
            before.append(box_iou(boxes[i][None], box).item())
            after.append(box_iou(moved[i, i % 2][None], box).item())
    assert 1 - np.mean(after) < (1 - np.mean(before)) / 1.5


def test_hard_negatives_give_the_svm_of_all_negatives():
    svm = pytest.importorskip("sklearn.svm")
    generator = torch.Generator().manual_seed(0)
    positives = torch.randn(40, 6, generator=generator) + 1.5
    negatives = torch.randn(3000, 6, generator=generator)
    trainer = LinearSVMs([positives], penalty=0.01, patience=500)
    for part in negatives.split(100):
        trainer.add(part, torch.ones(100, 1, dtype=torch.bool))
    weight, bias = trainer.finish()
    assert len(trainer._negatives[0]) < 1500
    whole = svm.LinearSVC(
        C=0.01, loss="hinge", class_weight={1: 2}, intercept_scaling=10, random_state=0,
        max_iter=100_000,
    )  # fmt: skip
    labels = np.concatenate((np.ones(40), -np.ones(3000)))
    whole.fit(torch.cat((positives, negatives)).numpy(), labels)
    torch.testing.assert_close(weight, torch.from_numpy(whole.coef_).float(), rtol=0.05, atol=0.02)
    assert abs(bias.item() - whole.intercept_[0]) < 0.1


def test_a_class_without_objects_is_never_found():
    images, targets, proposals = scenes(4)
    targets = [{name: values[:1] for name, values in target.items()} for target in targets]
    model = rcnn(known(images, proposals)).eval().fit(images, targets)
    with torch.no_grad():
        assert all((found["labels"] == 1).all() for found in model(images, proposals=proposals))


def test_nothing_proposed_and_no_objects():
    images, targets, proposals = scenes(2)
    none = torch.zeros(0, 4)
    model = rcnn(known(images, [none, proposals[1]]))
    targets[1] = {"boxes": none, "labels": torch.zeros(0, dtype=torch.int64)}
    assert model(images, targets)["loss_classifier"].isfinite()
    loss = model(images[:1], targets[1:], [none])["loss_classifier"]
    loss.backward()
    assert loss == 0
    model.fit(images, targets)
    with torch.no_grad():
        found = model.eval()(images)
    assert found[0]["boxes"].shape == (0, 4) and found[0]["labels"].dtype == torch.int64


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_dtypes(dtype):
    images, targets, proposals = scenes(2)
    images = [image.to(dtype) for image in images]
    model = rcnn(known(images, proposals)).to(dtype)
    assert model(images, targets)["loss_classifier"].dtype == dtype
    model.eval().fit(images, targets)
    with torch.no_grad():
        found = model(images)
    wide = torch.promote_types(dtype, torch.float32)
    assert found[0]["boxes"].dtype == found[0]["scores"].dtype == wide
    assert len(found[0]["boxes"])


@pytest.mark.parametrize(
    "change, error, message",
    [
        ({"targets": None}, AssertionError, "targets"),
        ({"labels": torch.tensor((1, 3))}, ValueError, "labels must be from 1 to 2, got 1 to 3"),
        ({"labels": torch.ones(3, dtype=torch.int64)}, ValueError, r"of shape \[2\], got"),
        ({"labels": torch.ones(2)}, ValueError, "labels to be int64"),
        ({"boxes": torch.tensor([[1.0, 1, 1, 9]] * 2)}, AssertionError, "positive height"),
        ({"proposals": [torch.zeros(3, 4)]}, ValueError, "proposals"),
        ({"proposals": [torch.zeros(3, 5)] * 2}, ValueError, r"\[n, 4\]"),
        ({"proposals": [None, None]}, TypeError, "proposals"),
    ],
)
def test_what_does_not_fit(change, error, message):
    images, targets, proposals = scenes(2)
    arguments = {"targets": targets, "proposals": proposals}
    for name, value in change.items():
        if name in arguments:
            arguments[name] = value
        else:
            targets[0][name] = value
    with pytest.raises(error, match=message):
        rcnn()(images, **arguments)


def test_options_that_do_not_fit():
    for options in ({"size": 0}, {"context": 8}, {"context": -1}, {"batch_size": 0}):
        with pytest.raises(ValueError, match=next(iter(options))):
            rcnn(**options)
    images, targets, _ = scenes(1)
    nothing = {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.int64)}
    with pytest.raises(ValueError, match="objects"):
        rcnn(lambda _: [torch.zeros(0, 4)]).fit(images, [nothing])


def test_begins_with_the_backbones_weights():
    vgg = models.vgg16(base_width=1)
    model = rcnn_vgg16(weights_backbone=vgg.state_dict(), base_width=1, num_classes=5)
    assert torch.equal(model.network.classifier[3].weight, vgg.classifier[3].weight)
    assert model.network.classifier[6].weight.shape == (5, 64)
