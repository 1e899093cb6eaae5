"""Weights that do not fit a model: a message of a line that says where they differ."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from fastvision import models
from fastvision.cli import main


def error_of(command: str, *arguments: Any, capsys: pytest.CaptureFixture[str]) -> str:
    """What a command that fails says in its one line."""
    assert main([command, "--device", "cpu", *map(str, arguments)]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    return line.removeprefix(f"fastvision {command}: error: ")


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    from PIL import Image

    Image.new("RGB", (64, 48)).save(tmp_path / "picture.png")
    return tmp_path / "picture.png"


@pytest.mark.parametrize(
    ("command", "name", "change", "expected"),
    [
        (
            "classify",
            "resnet18",
            {"fc.weight": torch.zeros(5, 512), "fc.bias": torch.zeros(5)},
            "of another shape: 2 (fc.weight [5, 512] for [1000, 512], fc.bias [5] for [1000])",
        ),
        (
            "segment",
            "unet",
            {"down.0.x": torch.zeros(1), "classifier": torch.zeros(2)},
            "unknown to the model: 2 (classifier, down.0.x)",
        ),
        (
            "detect",
            "small_ssd",
            {f"other.{i}": torch.zeros(1) for i in range(9)},
            "unknown to the model: 9 (other.0, other.1, other.2, ...)",
        ),
    ],
)
def test_kinds(
    command: str,
    name: str,
    change: dict[str, torch.Tensor],
    expected: str,
    picture: Path,
    tmp_path: Path,
    capsys,
) -> None:
    path = tmp_path / "weights.pth"
    sizes: dict[str, Any] = {"num_classes": 2} if name != "resnet18" else {}
    torch.save({**models.get_model(name, **sizes).state_dict(), **change}, path)
    options = ["--set", *(f"{k}={v}" for k, v in sizes.items())] if sizes else []
    line = error_of(command, picture, "--model", name, "--weights", path, *options, capsys=capsys)
    assert line == f"weights {path} do not fit {name}: {expected}"


def test_weights_of_another_model(picture: Path, tmp_path: Path, capsys) -> None:
    path = tmp_path / "weights.pth"
    torch.save(models.get_model("mobilenet_v2", num_classes=3).state_dict(), path)
    options = (picture, "--model", "resnet50", "--weights", path)
    line = error_of("classify", *options, capsys=capsys)
    assert " resnet50: missing: " in line
    assert "; unknown to the model: " in line
    assert "(conv1.weight, bn1.weight, bn1.bias, ...)" in line and "(features.0.0.weight, " in line
    assert len(line) < 500


def test_weights_of_another_detector(picture: Path, tmp_path: Path, capsys) -> None:
    path = tmp_path / "weights.pth"
    torch.save(models.get_model("resnet18").state_dict(), path)
    options = (picture, "--model", "fasterrcnn_resnet50_fpn", "--weights", path)
    line = error_of("detect", *options, capsys=capsys)
    assert line == (
        f"fasterrcnn_resnet50_fpn: weights {path} do not fit fasterrcnn_resnet50_fpn, which has "
        "'roi_heads.box_predictor.cls_score.bias': the state dict has conv1.weight, bn1.weight, "
        "bn1.bias ..."
    )


def test_whole_models(picture: Path, tmp_path: Path, capsys) -> None:
    path = tmp_path / "weights.pth"
    torch.save(torch.nn.Linear(2, 2), path)
    options = (picture, "--model", "resnet18", "--weights", path)
    line = error_of("classify", *options, capsys=capsys)
    assert line.endswith("without running code (UnpicklingError: Weights only load failed)")
    line = error_of("evaluate", path, capsys=capsys)
    assert line == f"{path} is not a checkpoint (UnpicklingError: Weights only load failed)"


def test_checkpoints_of_another_recipe(
    picture: Path, checkpoint: str, tmp_path: Path, capsys
) -> None:
    content = torch.load(checkpoint)
    del content["model"][next(iter(content["model"]))]
    torch.save(content, checkpoint)
    line = error_of("detect", picture, "--weights", checkpoint, capsys=capsys)
    assert line.startswith(f"weights {checkpoint} do not fit the model of their recipe, localizer:")
    assert "missing: 1 (" in line
    line = error_of("evaluate", checkpoint, capsys=capsys)
    assert line.startswith(
        f"{checkpoint} does not fit the model of its recipe, localizer: missing: 1 ("
    )


def test_entries_that_are_no_tensors(picture: Path, tmp_path: Path, capsys) -> None:
    path = tmp_path / "weights.pth"
    state = models.get_model("resnet18").state_dict()
    torch.save({**state, "fc.weight": [1.0]}, path)
    options = (picture, "--model", "resnet18", "--weights", path)
    line = error_of("classify", *options, capsys=capsys)
    assert line.startswith(f"weights {path} do not fit resnet18: ") and "fc.weight" in line
