"""The commands ``fastvision train`` and ``fastvision evaluate``."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest

from fastvision import training
from fastvision.cli import main
from fastvision.training._logs import read_table
from fastvision.training.recipe import parse_assignments

RECIPE = """
task = "sequence"
description = "a test"
steps = 40
batch_size = 16
log.tensorboard = false
[model]
name = "transformer_encoder"
symbols = 6
width = 16
depth = 1
dropout = 0.0
[data]
name = "sorting"
steps = 4
symbols = 6
length = 64
[optimizer]
name = "AdamW"
lr = 0.02
[bar]
metric = "accuracy"
value = 0.3
[short]
steps = 30
factor = 1.2
set = { "data.test.length" = 20 }
"""


@pytest.fixture
def recipe(tmp_path: Path) -> str:
    path = tmp_path / "mine.toml"
    path.write_text(RECIPE)
    return str(path)


def train(*arguments: str) -> int:
    return main(["train", *arguments, "--device", "cpu", "--quiet"])


def test_list(capsys) -> None:
    assert main(["train", "--list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == training.list_recipes()
    assert any("lenet5_digits" in line and "accuracy 0.98" in line for line in lines)


def test_training_and_evaluation(recipe: str, tmp_path: Path, capsys) -> None:
    folder = str(tmp_path / "run")
    assert train(recipe, "--output", folder, "--set", "optimizer.lr=0.03", "seed=2") == 0
    output = capsys.readouterr().out
    assert "40 steps in" in output and "the bar of accuracy 0.3 is reached" in output
    saved = json.loads((tmp_path / "run" / "recipe.json").read_text())
    assert saved["optimizer"]["lr"] == 0.03 and saved["seed"] == 2
    rows = read_table(tmp_path / "run" / "evaluation.csv")

    page = tmp_path / "page.png"
    assert main(["evaluate", folder, "--device", "cpu", "--samples", str(page)]) == 0
    best = max(rows, key=lambda row: row["accuracy"])  # the first of equal ones
    metrics = json.loads(capsys.readouterr().out)
    assert metrics == {name: best[name] for name in ("loss", "accuracy")}
    assert page.read_bytes().startswith(b"\x89PNG")
    assert main(["evaluate", f"{folder}/last.pt", "--device", "cpu"]) == 0
    assert json.loads(capsys.readouterr().out)["loss"] == rows[-1]["loss"]

    assert train(recipe, "--output", folder) == 1
    assert "has a run already" in capsys.readouterr().err
    assert train(recipe, "--resume", folder, "--set", "steps=44") == 0
    assert "44 steps in" in capsys.readouterr().out


def test_short_runs_judge_the_loss(recipe: str, tmp_path: Path, capsys, no_pictures) -> None:
    assert train(recipe, "--short", "--output", str(tmp_path / "learns")) == 0
    assert "1.2 times are wanted" in capsys.readouterr().out
    lazy = ("--output", str(tmp_path / "does not"), "--set", "optimizer.lr=1e-9")
    assert train(recipe, "--short", *lazy) == 1
    assert "times, 1.2 times are wanted" in capsys.readouterr().out


def test_short_runs_of_another_length(recipe: str, tmp_path: Path, capsys, no_pictures) -> None:
    values = ("--set", "short.steps=3", "short.factor=0.1")
    assert train(recipe, "--short", "--output", str(tmp_path / "run"), *values) == 0
    assert "3 steps in" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "a recipe is missing"),
        (("unknown",), "unknown recipe 'unknown'; known: "),
        (("lenet5_digits", "--set", "optimiser.lr=1"), "unknown key optimiser; known: "),
        (("lenet5_digits", "--set", "optimizer.lr"), "expected key=value, got 'optimizer.lr'"),
        (("lenet5_digits", "--resume", "nowhere"), "No such file"),
        (("lenet5_digits", "--resume", "a", "--output", "b"), "--output b is for a new run, "),
        (("lenet5_digits", "--output", "file"), "--output must be a folder, but file is a file"),
    ],
)
def test_errors(arguments: tuple[str, ...], message: str, tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    Path("file").touch()
    assert train(*arguments) == 1
    error = capsys.readouterr().err
    assert error.startswith("fastvision train: error: ") and message in error


def test_tensorboard(recipe: str, tmp_path: Path, no_pictures) -> None:
    if importlib.util.find_spec("tensorboard") is None:
        pytest.skip("tensorboard is not installed")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    values = parse_assignments(["steps=20", "log.steps=5", "log.tensorboard=true"])
    training.train(training.load_recipe(recipe, values), tmp_path / "run", device="cpu")
    events = EventAccumulator(str(tmp_path / "run"))
    events.Reload()
    assert [event.step for event in events.Scalars("training/loss")] == [5, 10, 15, 20]
    rows = read_table(tmp_path / "run" / "training.csv")
    logged = [event.value for event in events.Scalars("training/loss")]
    assert logged == pytest.approx([row["loss"] for row in rows])
    assert [event.step for event in events.Scalars("evaluation/accuracy")] == [4, 8, 12, 16, 20]
