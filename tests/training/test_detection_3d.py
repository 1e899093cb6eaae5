"""Detection in point clouds: its precision by hand, its pictures, and a few steps of a run."""

from __future__ import annotations

import math

import pytest
import torch

from fastvision import training
from fastvision.training._average_precision import AveragePrecision, overlap_from_above
from fastvision.training._detection_3d import outlines
from fastvision.training._processes import Processes
from fastvision.training._tasks import TASKS
from fastvision.training.recipe import recipe_of

CLASSES = ("background", "car", "pedestrian")
BOXES = torch.tensor(
    [
        [0.0, 0, 1, 4, 2, 1.5, 0.3],
        [10.0, 2, 1, 4, 2, 1.5, -2.0],
        [5.0, -9, 1, 1, 1, 2, 1.0],
    ]
)
LABELS = torch.tensor([1, 1, 2])


def truth(*numbers: int) -> dict[str, torch.Tensor]:
    return {"boxes": BOXES[list(numbers)], "labels": LABELS[list(numbers)]}


def answer(boxes, labels, scores) -> dict[str, torch.Tensor]:
    return {
        "boxes": boxes,
        "labels": torch.tensor(labels, dtype=torch.int64),
        "scores": torch.tensor(scores),
    }


def precision(outputs, targets) -> float:
    metric = AveragePrecision(overlap_from_above)
    metric.update(outputs, targets)
    return metric.compute()


def moved(box: torch.Tensor, forward: float = 0.0, turn: float = 0.0, up: float = 0.0):
    """A box [7] moved along its length."""
    box = box.clone()
    box[0] += forward * box[6].cos()
    box[1] += forward * box[6].sin()
    box[2] += up
    box[6] += turn
    return box


def test_perfect_boxes_have_a_precision_of_one() -> None:
    scores = torch.tensor([0.9, 0.5, 0.7])
    outputs = [{"boxes": BOXES, "labels": LABELS, "scores": scores}] * 2
    assert precision(outputs, [truth(0, 1, 2)] * 2) == 1
    # from above, neither the height nor the direction matters
    turned = torch.stack([moved(box, turn=math.pi, up=5.0) for box in BOXES])
    assert precision([answer(turned, [1, 1, 2], [0.1, 0.2, 0.3])], [truth(0, 1, 2)]) == 1


def test_precision_by_hand() -> None:
    first, second, _ = BOXES
    # a box moved by a third of its length shares half of the union, by more it does not
    for forward, expected in ((1.3, 1), (1.36, 0)):
        found = answer(moved(first, forward)[None], [1], [0.9])
        assert precision([found], [truth(0)]) == expected
    # right, wrong, right: precisions 1 and 2 / 3 at recalls of a half and one
    boxes = torch.stack((first, moved(first, 0.1), second))
    found = answer(boxes, [1, 1, 1], [0.9, 0.8, 0.7])
    assert precision([found], [truth(0, 1)]) == pytest.approx((1 + 2 / 3) / 2)
    # the order of scores counts over all scenes, and the one that is sure is wrong
    outputs = [answer(first[None], [1], [0.4]), answer(second[None] + 20, [1], [0.6])]
    assert precision(outputs, [truth(0), truth(1)]) == pytest.approx(0.5 / 2)
    # a precision that rises later counts before
    boxes = torch.stack((second + 20, first, second))
    found = answer(boxes, [1, 1, 1], [0.9, 0.8, 0.7])
    assert precision([found], [truth(0, 1)]) == pytest.approx(2 / 3)
    # a label that is wrong is a miss in one class, and a class without objects does not count
    found = answer(torch.stack((first, second)), [1, 2], [0.9, 0.8])
    assert precision([found], [truth(0, 1)]) == pytest.approx(0.5)
    # nothing is found of one of two classes
    assert precision([answer(first[None], [1], [0.9])], [truth(0, 2)]) == pytest.approx(0.5)
    nothing = answer(BOXES[:0], [], [])
    assert precision([nothing], [truth(0, 2)]) == 0
    assert math.isnan(precision([nothing], [truth()]))
    assert math.isnan(AveragePrecision(overlap_from_above).compute())


def test_precision_from_above_and_in_space() -> None:
    task = TASKS["detection_3d"](CLASSES)
    metrics = task.metrics()
    boxes = torch.stack((moved(BOXES[0], up=1.0), BOXES[1]))
    task.update(metrics, [answer(boxes, [1, 1], [0.8, 0.9])], [truth(0, 1)])
    assert task.results(metrics, Processes("cpu")) == {"bev_ap50": 1, "ap50_3d": 0.5}
    with pytest.raises(ValueError, match="label 3, but the data has 3 classes .*model.anchors"):
        task.update(metrics, [answer(boxes, [1, 3], [0.8, 0.9])], [truth(0, 1)])


def test_processes_with_different_shares_are_one() -> None:
    task = TASKS["detection_3d"](CLASSES)
    targets = [truth(0), truth(0, 1), truth(2), truth(), truth(1)]
    boxes = (BOXES[:1], BOXES[1:2], BOXES[2:], BOXES[:2], BOXES[:1])
    outputs = [
        answer(part, [1] * len(part), [0.5] * len(part))  # of equal scores, the order counts
        for part in boxes
    ]

    def state(first: int, step: int):
        metrics = task.metrics()
        task.update(metrics, outputs[first::step], targets[first::step])
        return metrics

    whole = task.results(state(0, 1), Processes("cpu"))
    shares = [state(rank, 2) for rank in (0, 1)]
    names = iter(task.metric_names)

    class Two(Processes):
        def gathered(self, value):
            name = next(names)
            return [share[name].metric_state for share in shares]

    assert task.results(state(0, 2), Two("cpu")) == whole
    assert 0 < whole["bev_ap50"] < 1


def test_outlines() -> None:
    lines = outlines(torch.tensor([[1.0, 2, 0, 4, 2, 1, math.pi / 2]]))
    expected = [(1, 4), (0, 4), (0, 0), (2, 0), (2, 4), (1, 4), (1, 2)]
    torch.testing.assert_close(lines[0], torch.tensor(expected, dtype=torch.float32))
    assert outlines(torch.zeros(0, 7)).shape == (0, 7, 2)


def recipe(steps: int) -> training.Recipe:
    return recipe_of(
        {
            "name": "pillars",
            "task": "detection_3d",
            "description": "a test",
            "steps": steps,
            "batch_size": 2,
            "accumulate": 2,
            "ema": 0.9,
            "log": {"steps": 2, "tensorboard": False},
            "optimizer": {"name": "AdamW", "lr": 0.01},
            "model": {
                "name": "point_pillars",
                "extent": [-9.6, -9.6, -1, 9.6, 9.6, 4],
                "pillar_channels": 8,
                "widths": [8, 8],
                "depths": [1, 1],
                "score_thresh": 0.005,
            },
            "data": {
                "name": "LidarScenes",
                "reach": 9,
                "train": {"length": 6},
                "test": {"length": 3},
            },
        }
    )


def test_a_few_steps(tmp_path) -> None:
    outcome = training.train(recipe(3), tmp_path, device="cpu")
    assert outcome.metrics.keys() == {"bev_ap50", "ap50_3d"}
    assert all(0 <= value <= 1 for value in outcome.metrics.values())
    for name in ("curves.png", "samples.png"):
        assert (tmp_path / name).read_bytes().startswith(b"\x89PNG")
    assert training.evaluate(tmp_path / "last.pt", device="cpu") == outcome.metrics


@pytest.mark.usefixtures("no_pictures")
def test_a_break_changes_nothing(tmp_path) -> None:
    whole = training.train(recipe(4), tmp_path / "whole", device="cpu")
    training.train(recipe(2), tmp_path / "part", device="cpu")
    rest = training.train(recipe(4), tmp_path / "part", resume=True, device="cpu")
    assert rest.losses == whole.losses[2:] and rest.metrics == whole.metrics
