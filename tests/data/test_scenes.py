"""Digit scenes: the annotation fits the pixels, and a scene depends on nothing but its index."""

from __future__ import annotations

import multiprocessing

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from fastvision.data import IGNORE, DigitScenes, MNIST5k, collate_detection, photographs

CASES = {
    "default": {},
    "one": {"n_objects": 1, "scale": (0.3, 0.9)},
    "none": {"n_objects": 0},
    "crowded": {"n_objects": (20, 30), "clutter": 5},
    "apart": {"n_objects": (5, 30), "overlap": False},
    "wide": {"size": (96, 200), "clutter": 3},
    "strict": {"n_objects": 12, "min_visible": 1.0},
    "lenient": {"n_objects": 40, "min_visible": 0.0},
}


def scenes(split: str = "train", **options) -> DigitScenes:
    return DigitScenes(split, **{"size": 128, "masks": True, "class_map": True, **options})


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("split", ["train", "test"])
def test_annotation(case: str, split: str) -> None:
    from torchvision import tv_tensors

    data = scenes(split, **CASES[case])
    height, width = data.size
    for index in range(6):
        image, target = data[index]
        boxes, labels = target["boxes"], target["labels"]
        masks, class_map = target["masks"], target["class_map"]
        assert type(image) is tv_tensors.Image and image.dtype == torch.uint8
        assert image.shape == (3, height, width) and image.is_contiguous()
        assert type(boxes) is tv_tensors.BoundingBoxes and boxes.dtype == torch.float32
        assert boxes.canvas_size == (height, width) and boxes.format.name == "XYXY"
        assert type(masks) is type(class_map) is tv_tensors.Mask
        assert masks.shape == (len(boxes), height, width) and masks.dtype == torch.uint8
        assert class_map.shape == (height, width) and class_map.dtype == torch.int64
        assert labels.dtype == torch.int64 and labels.shape == (len(boxes),)
        assert target["image_id"] == index
        assert ((labels >= 1) & (labels <= 10)).all()
        # no pixel has two owners, and the class map says the same as the masks
        assert masks.sum(0).max() <= 1
        expected = (masks * labels[:, None, None]).sum(0)
        assert expected[class_map != IGNORE].equal(class_map[class_map != IGNORE])
        assert expected[class_map == IGNORE].sum() == 0
        # boxes are around the visible pixels
        for box, mask in zip(boxes, masks, strict=True):
            rows, columns = mask.nonzero(as_tuple=True)
            around = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
            assert box.tolist() == [float(value) for value in around]


def test_number_of_digits() -> None:
    one, few = scenes(n_objects=1), scenes(n_objects=(1, 3), min_visible=0)
    assert all(len(one[i][1]["labels"]) == 1 for i in range(40))
    assert len(scenes(n_objects=0)[0][1]["boxes"]) == 0
    assert {len(few[i][1]["labels"]) for i in range(40)} == {1, 2, 3}


def test_scale() -> None:
    data = scenes(n_objects=1, scale=(0.25, 0.5), size=(100, 300))
    sides = [(b[:, 2:] - b[:, :2]).max().item() for b in (data[i][1]["boxes"] for i in range(60))]
    # faint ink at the edges belongs to the picture, not to the digit
    assert max(sides) <= 50 and min(sides) >= 20 and max(sides) > 40 and min(sides) < 32


def test_digits_without_overlap_have_disjoint_boxes() -> None:
    from torchvision.ops import box_iou

    data = scenes(n_objects=20, overlap=False, scale=(0.1, 0.3))
    for index in range(20):
        target = data[index][1]
        boxes = target["boxes"].as_subclass(torch.Tensor)
        assert len(boxes) >= 3
        assert box_iou(boxes, boxes).fill_diagonal_(0).max() == 0
        assert not (target["class_map"] == IGNORE).any()


def test_hidden_digits_are_dropped() -> None:
    """The same scene with another rule: what is left out is exactly what is covered too much."""
    options = {"n_objects": 30, "scale": (0.2, 0.5)}
    strict, lenient = scenes(**options, min_visible=0.5), scenes(**options, min_visible=0.0)
    dropped = 0
    for index in range(10):
        image, target = strict[index]
        same, everything = lenient[index]
        assert image.equal(same)
        kept = {tuple(box) for box in target["boxes"].tolist()}
        everyone = {tuple(box) for box in everything["boxes"].tolist()}
        assert kept < everyone
        dropped += len(everyone) - len(kept)
        hidden = target["class_map"] == IGNORE
        assert hidden.any() and (everything["class_map"][hidden] > 0).all()
        assert everything["class_map"][~hidden].equal(target["class_map"][~hidden])
        assert not (everything["class_map"] == IGNORE).any()
        # the last one drawn is on top of all others
        assert target["boxes"][-1].equal(everything["boxes"][-1])
    assert dropped > 20


def test_visible_share() -> None:
    """Of two digits, the lower one is dropped where the upper one leaves less of it than asked."""
    indices, scale = range(15), (0.8, 0.8)
    # the second digit draws its numbers after the first, which is the same in both
    alone, both = (scenes(n_objects=n, scale=scale, min_visible=0.0) for n in (1, 2))
    whole = [int(alone[i][1]["masks"][0].sum()) for i in indices]
    visible = [int(both[i][1]["masks"][0].sum()) for i in indices]
    kept = []
    for share in (0.4, 0.7, 0.9):
        data = scenes(n_objects=2, scale=scale, min_visible=share)
        for i in indices:
            kept.append(len(data[i][1]["labels"]) == 2)
            assert kept[-1] == (visible[i] >= share * whole[i])
    assert {True, False} == set(kept)


def test_scenes_depend_on_seed_split_and_index_alone() -> None:
    data = scenes()
    first = [data[i] for i in range(4)]
    again = scenes()
    for index in (3, 1, 2, 0):
        assert_same(again[index], first[index])
    assert_same(data[-1], data[len(data) - 1])
    assert not first[0][0].equal(first[1][0])
    assert not scenes(seed=1)[0][0].equal(first[0][0])
    assert not scenes("test")[0][0].equal(first[0][0])
    np.random.seed(3)
    torch.manual_seed(3)
    assert_same(data[0], first[0])
    plain = DigitScenes(size=128)[0]  # masks change nothing else
    assert plain[0].equal(first[0][0]) and plain[1].keys() == {"boxes", "labels", "image_id"}
    assert plain[1]["boxes"].equal(first[0][1]["boxes"])


@pytest.mark.parametrize("start", ["fork", "spawn"])
def test_processes_give_the_same_scenes(start: str) -> None:
    data = scenes(length=6)
    context = multiprocessing.get_context(start)
    workers = 2 if start == "fork" else 1
    batches = DataLoader(
        data, 2, num_workers=workers, collate_fn=collate_detection, multiprocessing_context=context
    )
    seen = 0
    for images, targets in batches:
        for sample in zip(images, targets, strict=True):
            assert_same(sample, data[sample[1]["image_id"]])
            seen += 1
    assert seen == 6


def assert_same(one, other) -> None:
    assert one[0].equal(other[0])
    assert one[1].keys() == other[1].keys()
    for name, value in one[1].items():
        if name == "image_id":
            assert value == other[1][name]
        else:
            assert value.equal(other[1][name]), name


def test_splits_show_other_digits_and_other_pixels() -> None:
    def ink(split: str) -> set[bytes]:
        return {image.tobytes() for image in scenes(split)._glyphs}

    assert len(ink("train")) > 3900 and len(ink("test")) > 900
    cut_alike = ink("train") & ink("test")
    assert not cut_alike
    assert len(MNIST5k("test")) == len(scenes("test")._glyphs)
    for split in ("train", "test"):
        parts = photographs(split).values()
        for image, part in zip(scenes(split)._photographs, parts, strict=True):
            assert (np.asarray(image) == part).all()


def test_digits_stand_out() -> None:
    """Around every digit there is a difference in luminance of what is ink and what is not."""
    data = scenes(n_objects=1, scale=(0.3, 0.6))
    weights = torch.tensor([0.299, 0.587, 0.114])[:, None, None]
    contrasts = []
    for index in range(40):
        image, target = data[index]
        x1, y1, x2, y2 = target["boxes"][0].int().tolist()
        grey = (image.float() * weights).sum(0)[y1:y2, x1:x2]
        ink = target["masks"][0, y1:y2, x1:x2].bool()
        contrasts.append((grey[ink].mean() - grey[~ink].mean()).abs().item())
    assert np.mean(np.array(contrasts) > 25) > 0.9


def test_clutter_changes_the_picture_only() -> None:
    plain, with_clutter = scenes(n_objects=0), scenes(n_objects=0, clutter=10)
    for index in range(5):
        image, target = plain[index]
        cluttered, other = with_clutter[index]
        share = (image != cluttered).any(0).float().mean()
        assert 0.01 < share < 0.9
        assert len(target["boxes"]) == len(other["boxes"]) == 0


def test_transforms_are_applied() -> None:
    data = DigitScenes(size=64, scale=(0.3, 0.5), transforms=lambda image, target: (1, target))
    assert data[0][0] == 1


def test_length() -> None:
    data = scenes(length=3)
    assert len(data) == 3 and len(list(data)) == 3
    with pytest.raises(IndexError):
        data[3]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"split": "val"}, "split must be one of train, test, got 'val'"),
        ({"size": 20}, r"scale \(0.12, 0.4\) of size \(20, 20\) gives digits of 2.4 pixels"),
        ({"scale": (0.5, 0.2)}, r"scale must be two numbers in ascending order from 0 to 1"),
        ({"scale": (0.5, 1.2)}, r"scale must be .* got \(0.5, 1.2\)"),
        ({"n_objects": (3, 200)}, r"n_objects must be .* from 0 to 100, got \(3, 200\)"),
        ({"n_objects": -1}, "n_objects must be"),
        ({"min_visible": 1.5}, "min_visible must be from 0 to 1, got 1.5"),
        ({"length": -1}, "length must not be negative, got -1"),
        ({"clutter": -2}, "clutter must not be negative, got -2"),
        ({"seed": -3}, "seed must not be negative, got -3"),
    ],
)
def test_bad_arguments(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DigitScenes(**options)


def test_arguments_of_a_wrong_type() -> None:
    with pytest.raises(TypeError, match=r"size must be one or two integers, got 25.5"):
        DigitScenes(size=25.5)
    with pytest.raises(TypeError, match=r"length must be an integer, got 'many'"):
        DigitScenes(length="many")
