"""Detection: batches, metrics by hand, and what the loop promises of other tasks."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from fastvision import training
from fastvision.training._data import data_set
from fastvision.training._processes import Processes
from fastvision.training._tasks import TASKS

CLASSES = ("background", "a", "b")


def sample(boxes, labels, **others):
    """An image of 20x10 and its target."""
    target = {
        "boxes": torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4),
        "labels": torch.tensor(labels, dtype=torch.int64),
        "image_id": 7,
        **{name: torch.tensor(value) for name, value in others.items()},
    }
    return torch.rand(3, 10, 20), target


def answer(boxes, labels, scores, **others):
    image, target = sample(boxes, labels)
    return {"boxes": target["boxes"], "labels": target["labels"], "scores": torch.tensor(scores)}


def results(task, batches, processes=None) -> dict[str, float]:
    metrics = task.metrics()
    for outputs, targets in batches:
        task.update(metrics, outputs, targets)
    return task.results(metrics, processes or Processes("cpu"))


LEFT, RIGHT = [0, 0, 8, 10], [10, 0, 20, 10]


def test_batches_leave_out_crowds() -> None:
    task = TASKS["detection"](CLASSES)
    samples = [
        sample([LEFT, RIGHT], [1, 2], difficult=[True, False], iscrowd=[False, False]),
        sample([LEFT], [1], iscrowd=[True]),
        sample([], []),
    ]
    (images, wanted), known = task.collate(samples)
    assert [image.shape for image in images] == [(3, 10, 20)] * 3
    assert [target["labels"].tolist() for target in wanted] == [[2], [], []]
    assert wanted[0]["boxes"].tolist() == [RIGHT] and wanted[1]["boxes"].shape == (0, 4)
    assert [target["labels"].tolist() for target in known] == [[1, 2], [1], []]
    assert [target["iscrowd"].tolist() for target in known] == [[1, 0], [1], []]
    with pytest.raises(ValueError, match=r"image 7 has no masks; set data\.masks = true"):
        TASKS["instance_segmentation"](CLASSES).collate(samples)


def test_loss_is_the_sum() -> None:
    losses = {"boxes": torch.tensor(1.5), "labels": torch.tensor(0.25)}
    assert TASKS["detection"](CLASSES).loss(losses, None) == 1.75


def test_average_precision() -> None:
    task = TASKS["detection"](CLASSES)
    _, truth = task.collate([sample([LEFT, RIGHT], [1, 2])])
    perfect = answer([LEFT, RIGHT], [1, 2], [0.9, 0.8])
    assert results(task, [([perfect], truth)]) == pytest.approx({"map": 1, "map50": 1})
    # an overlap of 0.625 is enough at three of the ten thresholds
    loose = answer([[0, 0, 5, 10], RIGHT], [1, 2], [0.9, 0.8])
    expected = {"map": (3 / 10 + 1) / 2, "map50": 1}
    assert results(task, [([loose], truth)]) == pytest.approx(expected)
    # of class b, nothing is found; of class a, what is found first is wrong
    wrong = answer([RIGHT, LEFT], [1, 1], [0.9, 0.8])
    assert results(task, [([wrong], truth)]) == pytest.approx({"map": 0.25, "map50": 0.25})
    nothing = answer([], [], [])
    assert results(task, [([nothing], truth)]) == {"map": 0, "map50": 0}


def test_crowds_are_neither_right_nor_wrong() -> None:
    task = TASKS["detection"](CLASSES)
    for flag in ("iscrowd", "difficult"):
        _, truth = task.collate([sample([LEFT, RIGHT], [1, 1], **{flag: [False, True]})])
        for found in (1, 2):
            one = answer([LEFT, RIGHT][:found], [1, 1][:found], [0.8, 0.9][:found])
            assert results(task, [([one], truth)])["map"] == pytest.approx(1)


def test_precision_of_masks() -> None:
    task = TASKS["instance_segmentation"](CLASSES)
    masks = torch.zeros(2, 10, 20, dtype=torch.uint8)
    masks[0, :, :8], masks[1, :, 10:] = 1, 1
    image, target = sample([LEFT, RIGHT], [1, 2])
    _, truth = task.collate([(image, {**target, "masks": masks})])
    found = answer([LEFT, RIGHT], [1, 2], [0.9, 0.8])
    half = masks[:, None].float()
    half[0, 0, 5:] = 0.4
    metrics = results(task, [([{**found, "masks": half}], truth)])
    expected = {"map": 1, "map50": 1, "mask_map": (1 / 10 + 1) / 2, "mask_map50": 1}
    assert metrics == pytest.approx(expected)
    empty = {**answer([], [], []), "masks": torch.zeros(0, 1, 10, 20)}
    assert results(task, [([empty], truth)])["mask_map"] == 0


def test_processes_with_different_shares_are_one() -> None:
    """In the order of the images, on which the precision of equal scores depends."""
    task = TASKS["detection"](CLASSES)
    _, truths = task.collate([sample([LEFT], [1]) for _ in range(5)])
    boxes = (LEFT, RIGHT, RIGHT, LEFT, LEFT)
    answers = [answer([box], [1], [0.5]) for box in boxes]
    whole = results(task, [(answers, truths)])
    shares = []
    for rank in (0, 1):
        metrics = task.metrics()
        task.update(metrics, answers[rank::2], truths[rank::2])
        shares.append(metrics["map"].metric_state)

    class Two(Processes):
        def gathered(self, value):
            return shares

    assert results(task, [(answers[::2], truths[::2])], Two("cpu")) == whole
    assert 0 < whole["map"] < 1


def test_labels_without_a_class_are_an_error() -> None:
    task = TASKS["detection"](CLASSES)
    _, truth = task.collate([sample([LEFT], [1])])
    with pytest.raises(ValueError, match=r"label 3, but the data has 3 classes .*num_classes"):
        results(task, [([answer([LEFT], [3], [0.9])], truth)])


def square(left: int, top: int, side: int) -> list[float]:
    return [left, top, left + side, top, left + side, top + side, left, top + side]


@pytest.fixture
def coco(tmp_path: Path) -> Path:
    """A folder in COCO's layout with two images per split, one of them without an object."""
    image = pytest.importorskip("PIL.Image")
    for split in ("train2017", "val2017"):
        (tmp_path / split).mkdir()
        for number in (1, 2):
            image.new("RGB", (64, 48), (90, 20, 200)).save(tmp_path / split / f"{number}.jpg")
        content = {
            "images": [{"id": number, "file_name": f"{number}.jpg"} for number in (1, 2)],
            "categories": [{"id": 7, "name": "square"}],
            "annotations": [
                {
                    "id": number,
                    "image_id": 1,
                    "category_id": 7,
                    "bbox": [4, 8, 30, 30],
                    "segmentation": [square(4, 8, 30)],
                    "iscrowd": number,
                }
                for number in (0, 1)
            ],
        }
        (tmp_path / "annotations").mkdir(exist_ok=True)
        file = tmp_path / "annotations" / f"instances_{split}.json"
        file.write_text(json.dumps(content))
    return tmp_path


@pytest.mark.usefixtures("no_pictures")
def test_folders_of_coco(small, coco: Path) -> None:
    values = {
        "task": "instance_segmentation",
        "model": {"name": "small_mask_rcnn", "num_classes": 2, "stem_width": 8},
        "data": {
            "name": "CocoDetection",
            "root": str(coco),
            "masks": True,
            "train": {"split": "train2017"},
            "test": {"split": "val2017"},
        },
        "batch_size": 2,
        "steps": 2,
    }
    outcome = training.train(small("scenes", values), coco / "run", device="cpu")
    assert outcome.metrics.keys() == {"map", "map50", "mask_map", "mask_map50"}
    assert all(loss > 0 for loss in outcome.losses)
    checkpoint = torch.load(coco / "run" / "last.pt")
    assert checkpoint["classes"] == ["background", "square"]
    assert checkpoint["category_ids"] == [0, 7]


def test_folders_of_voc(small, tmp_path: Path) -> None:
    image = pytest.importorskip("PIL.Image")
    folder = tmp_path / "VOCdevkit" / "VOC2012"
    for name in ("JPEGImages", "Annotations", "ImageSets/Main"):
        (folder / name).mkdir(parents=True)
    image.new("RGB", (64, 48)).save(folder / "JPEGImages" / "a.jpg")
    corners = {"xmin": 5, "ymin": 9, "xmax": 34, "ymax": 38}
    box = "".join(f"<{name}>{value}</{name}>" for name, value in corners.items())
    objects = "".join(
        f"<object><name>cat</name><difficult>{flag}</difficult><bndbox>{box}</bndbox></object>"
        for flag in (0, 1)
    )
    (folder / "Annotations" / "a.xml").write_text(f"<annotation>{objects}</annotation>")
    for split in ("train", "val"):
        (folder / "ImageSets" / "Main" / f"{split}.txt").write_text("a\n")
    data = {"name": "VOCDetection", "root": str(tmp_path), "test": {"split": "val"}}
    recipe = small("scenes", {"data": data, "augmentation": None})
    for split in ("train", "test"):
        samples = data_set(recipe, split)
        task = TASKS["detection"](samples.classes)
        (images, wanted), known = task.collate([samples[0]])
        assert images[0].shape == (3, 48, 64) and images[0].dtype == torch.float32
        assert wanted[0]["boxes"].tolist() == [[4, 8, 34, 38]]
        assert known[0]["iscrowd"].tolist() == [0, 1]
