"""The detector that the package ships: small, without an optimizer, and as good as it says."""

from __future__ import annotations

from pathlib import Path

import pytest

import fastvision
from fastvision.data import DigitScenes
from fastvision.training._checkpoint import load_checkpoint
from fastvision.training._data import Draws, data_set
from fastvision.training._processes import Processes
from fastvision.training._run import Answers, model_of
from fastvision.training._tasks import TASKS
from fastvision.training.evaluation import measure
from fastvision.training.recipe import load_recipe, recipe_of

FILE = Path(fastvision.__file__).parent / "models" / "weights" / "digits_detector.pt"


def test_content() -> None:
    checkpoint = load_checkpoint(FILE)
    assert FILE.stat().st_size < 5e6
    assert checkpoint.keys() == {"format", "recipe", "classes", "step", "metrics", "model"}
    assert tuple(checkpoint["classes"]) == DigitScenes.classes
    assert checkpoint["metrics"]["map50"] >= checkpoint["recipe"]["bar"]["value"]


def test_its_recipe_is_the_package_s() -> None:
    trained = recipe_of(load_checkpoint(FILE)["recipe"]).as_dict()
    recipe = load_recipe("retinanet_scenes", {"log.tensorboard": False}).as_dict()
    assert {key: trained[key] for key in ("model", "data", "optimizer", "start")} == {
        key: recipe[key] for key in ("model", "data", "optimizer", "start")
    }


def test_detections() -> None:
    for package in ("mlxtend", "skimage", "pycocotools"):
        pytest.importorskip(package)
    checkpoint = load_checkpoint(FILE)
    recipe = recipe_of(checkpoint["recipe"]).replaced({"data.test.length": 50})
    model = model_of(recipe)
    model.load_state_dict(checkpoint["model"])
    processes, test = Processes("cpu"), data_set(recipe, "test")
    task, answers = TASKS[recipe.task](test.classes), Answers(recipe, processes.device)
    metrics = measure(task, model, Draws(test, recipe.seed), recipe, processes, answers)
    assert metrics["map50"] > 0.8
