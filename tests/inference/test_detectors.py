"""Detectors of the package answer to the command as they do alone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fastvision import models
from fastvision.cli import main

DETECTORS: dict[str, dict[str, Any]] = {
    "yolov2_tiny": {"num_classes": 4, "size": 96, "width_mult": 0.125},
    "small_ssd": {"num_classes": 4},
    "small_fcos": {"num_classes": 4},
}


@pytest.mark.parametrize("name", DETECTORS)
def test_boxes_are_the_models(name: str, folder: Path, tmp_path: Path) -> None:
    from fastvision.inference import read_picture

    torch.manual_seed(0)
    options = DETECTORS[name]
    model = models.get_model(name, **options).eval()
    for parameter in model.parameters():
        if parameter.dim() == 4:  # scores that differ
            torch.nn.init.xavier_normal_(parameter, gain=1.3)
    torch.save(model.state_dict(), tmp_path / "weights.pth")
    arguments = ["--model", name, "--weights", str(tmp_path / "weights.pth"), "--score", "0"]
    values = [f"{key}={value}" for key, value in options.items()]
    out = tmp_path / "out"
    picture = folder / "turned.jpg"
    where = ["--out", str(out), "--device", "cpu", "--quiet"]
    assert main(["detect", str(picture), *arguments, *where, "--set", *values]) == 0

    image = torch.from_numpy(np.array(read_picture(picture))).permute(2, 0, 1) / 255
    model.score_thresh = 0.0
    with torch.inference_mode():
        (expected,) = model([image])
    assert len(expected["labels"]) > 5
    found = json.loads((out / "results.json").read_text())
    assert [x["category_id"] for x in found] == expected["labels"].tolist()
    for finding, score, box in zip(found, expected["scores"], expected["boxes"], strict=True):
        x, y, width, height = finding["bbox"]
        assert finding["score"] == pytest.approx(float(score), abs=2e-6)
        assert [x, y, x + width, y + height] == pytest.approx(box.tolist(), abs=0.02)
