"""The narrow detectors: sizes, and that every part of them is trained."""

from __future__ import annotations

import pytest
import torch

from fastvision import models
from fastvision.models.detection import _constants

PARAMETERS = {
    "small_faster_rcnn": 1_291_429,
    "small_fcos": 1_133_088,
    "small_mask_rcnn": 1_419_489,
    "small_retinanet": 1_175_274,
    "small_ssd": 883_806,
}


@pytest.mark.parametrize("name", PARAMETERS)
def test_parameters(name: str) -> None:
    assert sum(value.numel() for value in models.get_model(name).parameters()) == PARAMETERS[name]


@pytest.mark.parametrize("name", PARAMETERS)
def test_losses_and_detections(name: str) -> None:
    torch.manual_seed(0)
    model = models.get_model(name, num_classes=4)
    images = [torch.rand(3, 96, 96), torch.rand(3, 96, 80)]
    boxes = torch.tensor([[10.0, 20, 40, 60], [50, 10, 70, 70]])
    masks = torch.zeros(2, 96, 96, dtype=torch.uint8)
    masks[0, 20:60, 10:40], masks[1, 10:70, 50:70] = 1, 1
    targets = [
        {"boxes": boxes, "labels": torch.tensor([1, 3]), "masks": masks},
        {
            "boxes": boxes[:0],
            "labels": torch.tensor([], dtype=torch.int64),
            "masks": masks[:0, :, :80],
        },
    ]
    loss = sum(model(images, targets).values())
    loss.backward()
    assert loss.isfinite()
    without = [key for key, value in model.named_parameters() if value.grad is None]
    assert not without
    found = model.eval()(images)
    for image, detections in zip(images, found, strict=True):
        assert detections["boxes"].shape == (len(detections["scores"]), 4)
        assert (detections["scores"].diff() <= 0).all()
        if name == "small_mask_rcnn":
            assert detections["masks"].shape[1:] == (1, *image.shape[1:])


@pytest.mark.parametrize("name", PARAMETERS)
def test_what_cannot_be_trained(name: str) -> None:
    """Images, labels and boxes that no detector takes are named."""
    model = models.get_model(name, num_classes=4)
    images = [torch.rand(3, 64, 64)]
    target = {"boxes": torch.tensor([[4.0, 4, 30, 30]]), "labels": torch.tensor([4])}
    target["masks"] = torch.ones(1, 64, 64, dtype=torch.uint8)
    with pytest.raises(ValueError, match=r"below the number of classes, 4, got \[4\] .* index 0"):
        model(images, [target])
    target["labels"] = torch.tensor([1])
    for value in (torch.nan, torch.inf):
        target["boxes"][0, 2] = value
        with pytest.raises(AssertionError, match="and be finite. Found invalid box"):
            model(images, [target])
    for name in ("labels", "boxes"):
        del target[name]
        with pytest.raises(ValueError, match=f"should have a {name} key"):
            model(images, [target])
    with pytest.raises(TypeError, match=r"images\[0\] must be a Tensor, got NoneType"):
        model.eval()([None])
    with pytest.raises(ValueError, match=r"got \[9\]"):
        model([torch.zeros(9)])


def test_cross_entropy_instead_of_focal_loss() -> None:
    """Is what alpha=-1 and gamma=0 make of the class loss of small_retinanet."""
    images = [torch.rand(3, 64, 64)]
    targets = [{"boxes": torch.tensor([[10.0, 20, 40, 60]]), "labels": torch.tensor([1])}]
    losses = []
    for options in ({}, {"alpha": -1, "gamma": 0}):
        torch.manual_seed(0)
        model = models.get_model("small_retinanet", num_classes=3, **options)
        losses.append(model(images, targets)["classification"].item())
    # at the start each of the classes has a probability of 0.01, and most places have no object
    assert losses[1] > 5 * losses[0]


@pytest.mark.parametrize("name", ["small_retinanet", "small_fcos", "small_ssd", "yolov2_tiny"])
def test_numbers_are_copied_to_a_device_once(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A CUDA graph holds no copies from the host."""
    options = {"size": 96, "width_mult": 0.125} if name == "yolov2_tiny" else {}
    model = models.get_model(name, num_classes=4, **options).double().eval()
    images = torch.rand(2, 3, 96, 96, dtype=torch.double)
    with torch.inference_mode():
        expected = model.detect(images)
        made = _constants._made.cache_info()

        def refuse(*_: object, **__: object) -> None:
            raise AssertionError("numbers become a tensor again")

        monkeypatch.setattr(torch, "tensor", refuse)
        monkeypatch.setattr(torch.Tensor, "new_tensor", refuse)
        found = model.detect(images)
    assert _constants._made.cache_info().misses == made.misses > 0
    assert _constants._made.cache_info().hits > made.hits
    for actual, wanted in zip(found, expected, strict=True):
        assert torch.equal(actual, wanted)
