"""Losses and metrics of the tasks, by hand, and a few steps and pictures of each."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from fastvision import training
from fastvision.training._tasks import TASKS
from fastvision.training.recipe import recipe_of

CLASSES = ("background", "a", "b")

SCENES = {
    "name": "DigitScenes",
    "size": 32,
    "scale": [0.5, 0.9],
    "train": {"length": 8},
    "test": {"length": 5},
}
RECIPES = {
    "segmentation": {
        "batch_size": 4,
        "model": {"name": "fcn_full_resolution", "num_classes": 11, "width": 8, "depth": 2},
        "data": {**SCENES, "n_objects": 2, "class_map": True},
        "augmentation": {"name": "segmentation_training", "size": 32, "flip": 0.0},
        "preparation": {"name": "segmentation_evaluation"},
    },
    "localization": {
        "batch_size": 4,
        "model": {"name": "localizer", "backbone": "resnet20", "num_classes": 10},
        "data": {**SCENES, "n_objects": 1},
        "preparation": {"name": "detection_evaluation"},
    },
    "detection": {
        "batch_size": 4,
        "model": {"name": "small_retinanet", "stem_width": 8},
        "data": {**SCENES, "n_objects": [0, 2]},
        "preparation": {"name": "detection_evaluation"},
    },
    "instance_segmentation": {
        "batch_size": 4,
        "model": {"name": "small_mask_rcnn", "stem_width": 8},
        "data": {**SCENES, "n_objects": [0, 2], "masks": True},
        "preparation": {"name": "detection_evaluation"},
    },
    "sequence": {
        "batch_size": 8,
        "model": {"name": "residual_lstm", "symbols": 5, "width": 8, "depth": 2},
        "data": {"name": "reversal", "steps": 4, "symbols": 5, "length": 16},
    },
}


@pytest.mark.parametrize("task", RECIPES)
def test_a_few_steps(task: str, tmp_path) -> None:
    if task != "sequence":
        for package in ("mlxtend", "skimage", "pycocotools"):
            pytest.importorskip(package)
    recipe = recipe_of(
        {
            "name": task,
            "task": task,
            "description": "a test",
            "steps": 3,
            "log": {"steps": 2, "tensorboard": False},
            "optimizer": {"name": "AdamW", "lr": 0.01},
            **RECIPES[task],
        }
    )
    outcome = training.train(recipe, tmp_path, device="cpu")
    loss = {"loss"} if TASKS[task].tests_loss else set()
    assert outcome.metrics.keys() == {*loss, *TASKS[task].metric_names}
    assert all(0 <= outcome.metrics[name] <= 1 for name in TASKS[task].metric_names)
    for name in ("curves.png", "samples.png"):
        assert (tmp_path / name).read_bytes().startswith(b"\x89PNG")
    last = training.evaluate(tmp_path / "last.pt", device="cpu")
    assert last == outcome.metrics
    best = training.evaluate(tmp_path, device="cpu")
    assert best[TASKS[task].metric_names[0]] == outcome.best


def metrics_of(task, outputs, targets) -> dict[str, float]:
    metrics = task.metrics()
    task.update(metrics, outputs, targets)
    return {name: float(metric.compute()) for name, metric in metrics.items()}


def test_classification() -> None:
    task = TASKS["classification"](CLASSES)
    scores = torch.tensor([[3.0, 0, 0], [0, 3, 0], [0, 3, 0], [0, 0, 3]])
    labels = torch.tensor([0, 1, 2, 2])
    assert metrics_of(task, scores, labels) == {"accuracy": 0.75}
    expected = F.cross_entropy(scores, labels)
    torch.testing.assert_close(task.loss(scores, labels), expected)
    torch.testing.assert_close(task.loss((scores, None, scores), labels), 1.3 * expected)


def test_segmentation() -> None:
    task = TASKS["segmentation"](CLASSES)
    truth = torch.tensor([[[0, 0, 1, 1]], [[2, 255, 255, 255]]])
    answers = torch.tensor([[[0, 1, 1, 1]], [[2, 0, 0, 0]]])
    scores = 5 * F.one_hot(answers, 3).permute(0, 3, 1, 2).float()
    metrics = metrics_of(task, {"out": scores}, truth)
    assert metrics["miou"] == pytest.approx((1 / 2 + 2 / 3 + 1) / 3)
    assert metrics["accuracy"] == pytest.approx(4 / 5)

    losses = [
        F.cross_entropy(scores[i : i + 1], truth[i : i + 1], ignore_index=255) for i in (0, 1)
    ]
    expected = sum(losses) / 2
    torch.testing.assert_close(task.loss({"out": scores}, truth), expected)
    both = {"out": scores, "aux": scores}
    torch.testing.assert_close(task.loss(both, truth), 1.5 * expected)
    nothing = torch.full_like(truth, 255)
    assert task.loss({"out": scores}, nothing) == 0


def test_localization() -> None:
    task = TASKS["localization"](CLASSES)
    samples = [
        (
            torch.zeros(3, 10, 20),
            {"boxes": torch.tensor([box]), "labels": torch.tensor([label]), "image_id": 0},
        )
        for box, label in (([0.0, 0, 10, 5], 1), ([10.0, 5, 20, 10], 2))
    ]
    images, (boxes, labels) = task.collate(samples)
    assert images.shape == (2, 3, 10, 20)
    assert boxes.tolist() == [[0, 0, 0.5, 0.5], [0.5, 0.5, 1, 1]] and labels.tolist() == [0, 1]
    answers = torch.tensor([[0, 0, 0.5, 0.5], [0.5, 0.5, 1.0, 0.75]])  # all, and half of the box
    scores = torch.tensor([[1.0, 0], [1, 0]])
    metrics = metrics_of(task, (answers, scores), (boxes, labels))
    assert metrics == {"iou": pytest.approx(0.75), "accuracy": 0.5}
    samples[0][1]["labels"] = torch.tensor([1, 1])
    with pytest.raises(ValueError, match="one object per image, image 0 has 2"):
        task.collate(samples)


def test_sequences() -> None:
    task = TASKS["sequence"](("0", "1"))
    targets = torch.tensor([[0, 1, 1], [1, 0, 0]])
    scores = F.one_hot(torch.tensor([[0, 1, 0], [1, 0, 0]]), 2).float()
    assert metrics_of(task, scores, targets) == {"accuracy": pytest.approx(5 / 6)}
    expected = F.cross_entropy(scores.reshape(6, 2), targets.reshape(6))
    torch.testing.assert_close(task.loss(scores, targets), expected)


def test_sequences_of_splits_differ() -> None:
    from fastvision.training._data import data_set

    recipe = recipe_of(
        {
            "name": "a",
            "task": "sequence",
            "description": "a test",
            "steps": 1,
            "optimizer": {"name": "SGD"},
            **RECIPES["sequence"],
        }
    )
    splits = [data_set(recipe, split) for split in ("train", "train", "test")]
    items = [[inputs[0].tolist() for inputs, _ in split] for split in splits]
    assert items[0] == items[1] != items[2]
    with pytest.raises(ValueError, match="data: .*split must be one of train, test, got 'val'"):
        data_set(recipe.replaced({"data.test.split": "val"}), "test")


def test_a_loss_that_is_not_a_number_is_reported(small) -> None:
    """Instead of being left out of the mean."""
    from fastvision.training._data import Draws, data_set
    from fastvision.training._processes import Processes
    from fastvision.training._run import Answers, model_of
    from fastvision.training.evaluation import measure

    recipe = small("sorting")
    model, test = model_of(recipe), data_set(recipe, "test")
    with torch.no_grad():
        next(model.parameters())[0] = torch.nan  # one of the symbols, so of some samples
    task, processes = TASKS["sequence"](test.classes), Processes("cpu")
    answers = Answers(recipe, processes.device)
    metrics = measure(task, model, Draws(test, 0), recipe, processes, answers)
    assert math.isnan(metrics["loss"])

    boxes = torch.tensor([[0, 0, 1.0, 1], [0, 0, 1, torch.nan]])
    task = TASKS["localization"](CLASSES)
    labels = torch.zeros(2, dtype=torch.int64)
    outputs = boxes, torch.rand(2, 2)
    assert math.isnan(metrics_of(task, outputs, (boxes[:1].repeat(2, 1), labels))["iou"])
