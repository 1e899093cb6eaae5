"""The short run of every recipe: its loss falls by the factor that the recipe states."""

from __future__ import annotations

import pytest

from fastvision import cli, training

pytestmark = [pytest.mark.long, pytest.mark.usefixtures("no_pictures")]
SHORT = [name for name in training.list_recipes() if training.load_recipe(name).short is not None]


@pytest.mark.parametrize("name", SHORT)
def test_loss_falls(name: str, tmp_path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--quiet", "--device", "cpu", "--set", "log.tensorboard=false"]
    status = cli.main(["train", name, "--short", "--output", str(tmp_path / "run"), *options])
    assert status == 0, capsys.readouterr().out
