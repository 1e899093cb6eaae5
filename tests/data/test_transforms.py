"""Presets: shapes, dtypes, and that annotation stays with the pixels; batches that repeat."""

from __future__ import annotations

import pickle

import pytest
import torch
from torch import Tensor

from fastvision.data import (
    IGNORE,
    Digits8x8,
    DigitScenes,
    KeepVisible,
    classification_evaluation,
    classification_training,
    collate_detection,
    detection_evaluation,
    detection_training,
    loader,
    segmentation_evaluation,
    segmentation_training,
)


def square(left: int, top: int, side: int, *, size: tuple[int, int] = (60, 80)):
    """A black image with one white square, and its target."""
    from torchvision import tv_tensors

    image = torch.zeros(3, *size, dtype=torch.uint8)
    image[:, top : top + side, left : left + side] = 255
    mask = (image[:1] > 0).to(torch.uint8)
    box = torch.tensor([[left, top, left + side, top + side]], dtype=torch.float32)
    return tv_tensors.Image(image), {
        "boxes": tv_tensors.BoundingBoxes(box, format="XYXY", canvas_size=size),
        "labels": torch.tensor([3]),
        "masks": tv_tensors.Mask(mask),
        "class_map": tv_tensors.Mask(mask[0].long() * 3),
        "image_id": 17,
    }


def test_classification() -> None:
    image = torch.randint(0, 256, (3, 50, 70), dtype=torch.uint8)
    for transform in (
        classification_training(32, randaugment=True, erase=1.0),
        classification_evaluation(32),
    ):
        out, label = transform(image, 4)
        assert type(out) is Tensor and out.shape == (3, 32, 32) and out.dtype == torch.float32
        assert label == 4 and transform(image).shape == (3, 32, 32)
    assert classification_training((20, 30))(image).shape == (3, 20, 30)
    assert classification_evaluation((20, 30))(image).shape == (3, 20, 30)


def test_classification_evaluation_takes_the_middle() -> None:
    image = torch.arange(64, dtype=torch.uint8).repeat(3, 64, 1)
    out = classification_evaluation(32, crop=0.5, mean=None, std=None)(image)
    torch.testing.assert_close(out, image[:, 16:48, 16:48] / 255)
    grey = classification_evaluation(28, crop=1.0, mean=(0.5,), std=(0.25,))
    assert grey(torch.full((1, 28, 28), 255, dtype=torch.uint8)).unique().item() == 2


def test_digits_are_mirrored_only_if_asked() -> None:
    image = torch.arange(64, dtype=torch.uint8).reshape(1, 8, 8)
    same = classification_training(8, scale=(1, 1), flip=0, mean=None, std=None)
    mirrored = classification_training(8, scale=(1, 1), flip=1, mean=None, std=None)
    torch.manual_seed(0)
    one = same(image)
    torch.manual_seed(0)
    assert mirrored(image).equal(one.flip(-1))


def test_detection_keeps_annotation_and_pixels_together() -> None:
    """After every random transform, the box is around the pixels that are white."""
    transform = detection_training((96, 64), distort=False)
    torch.manual_seed(1)
    sizes, dropped = set(), 0
    for seed in range(60):
        image, target = transform(*square(20 + seed % 20, 10, 24))
        assert type(image) is type(target["boxes"]) is type(target["masks"]) is Tensor
        assert image.shape == (3, 96, 64) and target["masks"].shape[1:] == (96, 64)
        assert len(target["boxes"]) == len(target["labels"]) == len(target["masks"])
        if not len(target["boxes"]):
            dropped += 1
            continue
        rows, columns = (image[0] > 0.5).nonzero(as_tuple=True)
        around = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
        around = torch.stack(around).float()
        # stretching rounds white borders to one side or the other
        assert (target["boxes"][0] - around).abs().max() <= 2
        sizes.add(tuple(target["boxes"][0].int().tolist()))
    assert len(sizes) > 30 and dropped < 30


def test_detection_of_scenes() -> None:
    data = DigitScenes(
        size=96, masks=True, n_objects=(0, 6), transforms=detection_training(64, flip=0)
    )
    torch.manual_seed(2)
    counts = set()
    for index in range(30):
        image, target = data[index]
        boxes = target["boxes"]
        counts.add(len(boxes))
        assert image.shape == (3, 64, 64) and image.min() >= 0 and image.max() <= 1
        assert len(boxes) == len(target["labels"]) == len(target["masks"])
        assert (boxes[:, 2:] - boxes[:, :2] >= 1).all()
        assert (
            (boxes >= 0).all() and (boxes <= 64).all() and target["masks"].flatten(1).any(1).all()
        )
    assert 0 in counts and max(counts) >= 4


def test_detection_evaluation_scales_the_boxes() -> None:
    image, target = detection_evaluation((120, 40))(*square(20, 10, 24))
    assert image.shape == (3, 120, 40) and target["boxes"].tolist() == [[10, 20, 22, 68]]
    assert target["masks"].sum() == 12 * 48 and target["masks"].dtype == torch.uint8
    image, target = detection_evaluation()(*square(20, 10, 24))
    assert image.shape == (3, 60, 80) and image.max() == 1 and target["image_id"] == 17


def test_keep_visible() -> None:
    from torchvision import tv_tensors

    image, target = square(20, 10, 24)
    boxes = [[20, 10, 44, 34], [5, 5, 5, 9], [1, 1, 9, 9], [50, 10, 60, 12]]
    target["boxes"] = tv_tensors.BoundingBoxes(
        torch.tensor(boxes, dtype=torch.float32), format="XYXY", canvas_size=(60, 80)
    )
    target["labels"] = torch.tensor([1, 2, 3, 4])
    target["iscrowd"] = torch.tensor([True, False, False, True])
    masks = torch.zeros(4, 60, 80, dtype=torch.uint8)
    masks[0, 12:30, 20:40] = masks[1, 5:9, 4:8] = masks[3, 11, 55] = 1
    target["masks"] = tv_tensors.Mask(masks)
    before = {name: getattr(value, "clone", lambda: None)() for name, value in target.items()}
    _, kept = KeepVisible()(image, target)
    # no area, no pixel, and the first and the last follow their pixels
    assert kept["boxes"].tolist() == [[20, 12, 40, 30], [55, 11, 56, 12]]
    assert type(kept["boxes"]) is tv_tensors.BoundingBoxes
    assert type(kept["masks"]) is tv_tensors.Mask
    assert kept["boxes"].canvas_size == (60, 80)
    assert kept["labels"].tolist() == [1, 4] and kept["iscrowd"].tolist() == [True, True]
    assert kept["masks"].equal(masks[[0, 3]]) and kept["class_map"] is target["class_map"]
    for name, value in before.items():
        assert value is None or target[name].equal(value)
    assert KeepVisible(2)(image, target)[1]["labels"].tolist() == [1]
    without = {name: value for name, value in target.items() if name != "masks"}
    assert KeepVisible()(image, without)[1]["labels"].tolist() == [1, 3, 4]


def test_segmentation() -> None:
    transform = segmentation_training(48, distort=False, mean=None, std=None)
    torch.manual_seed(3)
    seen = set()
    for seed in range(40):
        image, class_map = transform(*square(10 + seed, 10, 30))
        assert type(image) is type(class_map) is Tensor and class_map.dtype == torch.int64
        assert image.shape == (3, 48, 48) and class_map.shape == (48, 48)
        values = set(class_map.unique().tolist())
        assert values <= {0, 3, IGNORE}
        seen |= values
        # what is white is of class 3, but for a pixel of interpolation at its border
        assert ((image[0] > 0.5) != (class_map == 3)).float().mean() < 0.07
        assert (image[:, class_map == IGNORE] == 0).all()
    assert seen == {0, 3, IGNORE}


def test_segmentation_evaluation() -> None:
    image, class_map = segmentation_evaluation(mean=None, std=None)(*square(20, 10, 24))
    assert class_map.equal((image[0] > 0.5).long() * 3)
    image, class_map = segmentation_evaluation((30, 40))(*square(20, 10, 24))
    assert image.shape == (3, 30, 40) and class_map.shape == (30, 40)
    assert (class_map == 3).sum() == 12 * 12


def test_scenes_for_segmentation_stack() -> None:
    data = DigitScenes(size=64, scale=(0.2, 0.5), class_map=True, length=6, seed=4)
    data.transforms = segmentation_training(48, flip=0)
    images, class_maps = next(iter(loader(data, 4, training=True)))
    assert images.shape == (4, 3, 48, 48) and class_maps.shape == (4, 48, 48)
    assert set(class_maps.unique().tolist()) <= {*range(11), IGNORE}


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: classification_training(8, scale=(0.5, 2)), "scale must be two numbers"),
        (lambda: classification_evaluation(8, crop=1.5), "crop must be from 0.1 to 1, got 1.5"),
        (lambda: segmentation_training(8, scale=(2, 0.5)), "scale must be two numbers"),
        (lambda: detection_training(8, mean=(0.5,)), "mean and std must both be given or"),
    ],
)
def test_bad_arguments(make, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


def test_presets_reach_workers() -> None:
    for transform in (
        classification_training(),
        classification_evaluation(),
        detection_training(64),
        detection_evaluation(64),
        segmentation_training(64),
        segmentation_evaluation(64),
    ):
        assert repr(pickle.loads(pickle.dumps(transform))) == repr(transform)


def batches(epochs: int, *, workers: int, seed: int = 0) -> list[Tensor]:
    transforms = classification_training(8, mean=None, std=None)
    data = Digits8x8("test", transforms=transforms)
    data.images, data.labels = data.images[:50], data.labels[:50]
    both = loader(data, 16, training=True, workers=workers, seed=seed)
    return [images for _ in range(epochs) for images, _ in both]


def test_loader_repeats_with_its_seed() -> None:
    first = batches(2, workers=2)
    assert len(first) == 6 and all(len(images) == 16 for images in first)
    torch.manual_seed(5)  # of this process: workers do not see it
    assert all(a.equal(b) for a, b in zip(first, batches(2, workers=2), strict=True))
    assert not first[0].equal(first[3])  # the next epoch
    assert not first[0].equal(batches(1, workers=2, seed=1)[0])


def test_loader_can_continue() -> None:
    data = Digits8x8("test", transforms=classification_training(8, mean=None, std=None))
    data.images, data.labels = data.images[:40], data.labels[:40]

    def epoch(data_loader, number: int) -> list[Tensor]:
        data_loader.generator.manual_seed(7 + number)
        return [images for images, _ in data_loader]

    whole = loader(data, 16, training=True, workers=1, seed=7)
    epochs = [epoch(whole, number) for number in range(3)]
    continued = epoch(loader(data, 16, training=True, workers=1, seed=7), 2)
    assert all(a.equal(b) for a, b in zip(epochs[2], continued, strict=True))


def test_evaluation_reads_everything_in_order() -> None:
    data = Digits8x8("test")
    labels = torch.cat([labels for _, labels in loader(data, 100, training=False)])
    assert labels.equal(data.labels)


def test_collate_detection() -> None:
    images, targets = next(
        iter(
            loader(
                DigitScenes(size=64, scale=(0.2, 0.4), length=5),
                3,
                training=False,
                collate=collate_detection,
            )
        )
    )
    assert type(images) is type(targets) is list and len(images) == len(targets) == 3
    assert [target["image_id"] for target in targets] == [0, 1, 2]
