"""Training data, test data and model agree about the classes."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from fastvision import training
from fastvision.cli import main
from fastvision.training._tasks import TASKS

pytestmark = pytest.mark.usefixtures("no_pictures")


@pytest.fixture
def folders(small, tmp_path: Path) -> Any:
    """A recipe for images in folders, three classes in each split."""
    from PIL import Image

    for split in ("train", "test"):
        for name in ("one", "two", "zero"):
            folder = tmp_path / split / name
            folder.mkdir(parents=True)
            Image.new("RGB", (28, 28)).save(folder / "0.png")
    values = {
        "steps": 1,
        "batch_size": 2,
        "model": {"name": "lenet5", "num_classes": 3, "in_channels": 3},
        "data": {"name": "ImageFolder", "root": str(tmp_path)},
        "augmentation": None,
        "preparation": {"name": "classification_evaluation", "size": 28},
    }
    return small("digits", values)


def test_a_split_that_lacks_a_class(folders, tmp_path: Path) -> None:
    """Test data without "one" would call "two" 0."""
    run = tmp_path / "run"
    training.train(folders, run, device="cpu")
    shutil.rmtree(tmp_path / "test" / "one")
    message = r"training data are one, two, zero, those of the test data two, zero; name the"
    with pytest.raises(ValueError, match=message):
        training.evaluate(run, device="cpu")
    with pytest.raises(ValueError, match=message):
        training.train(folders, tmp_path / "other", device="cpu")
    named = folders.replaced({"data.classes": ["one", "two", "zero"]})
    training.train(named, tmp_path / "named", device="cpu")
    training.evaluate(tmp_path / "named", device="cpu")


@pytest.mark.parametrize(
    ("task", "outputs"),
    [
        ("classification", torch.rand(2, 4)),
        ("segmentation", {"out": torch.rand(2, 4, 5, 5)}),
        ("localization", (torch.rand(2, 4), torch.rand(2, 4))),
        ("sequence", torch.rand(2, 5, 4)),
    ],
)
def test_a_model_of_another_number_of_classes(task: str, outputs: Any) -> None:
    with pytest.raises(ValueError, match=r"has 4 scores, but the data \d classes; set model\."):
        TASKS[task](("a", "b", "c")).loss(outputs, torch.zeros(2))


def test_the_command_says_so(folders, tmp_path: Path, capsys) -> None:
    lines = ["epochs = 1", "batch_size = 2", 'task = "classification"', 'description = "a test"']
    for name in ("model", "data", "preparation", "optimizer"):
        options = {**getattr(folders, name), **({"num_classes": 5} if name == "model" else {})}
        lines += [f"[{name}]", *(f"{key} = {json.dumps(value)}" for key, value in options.items())]
    (tmp_path / "mine.toml").write_text("\n".join(lines))
    arguments = ["--output", str(tmp_path / "run"), "--device", "cpu", "--quiet"]
    assert main(["train", str(tmp_path / "mine.toml"), *arguments]) == 1
    message = "the model has 5 scores, but the data 3 classes; set model.num_classes\n"
    assert capsys.readouterr().err == f"fastvision train: error: {message}"
