"""A checkpoint, a detector that sees bright rectangles, and a folder of odd pictures."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

NEEDED = ("torchvision", "PIL", "numpy", "tqdm", "pycocotools")
MISSING = [name for name in NEEDED if importlib.util.find_spec(name) is None]


def pytest_runtest_setup() -> None:
    if MISSING:
        pytest.skip(f"not installed: {', '.join(MISSING)}")


class BrightRectangle(nn.Module):
    """The box, mask and corners of the pixels above one half, twice: the second box is worse."""

    score_thresh, nms_thresh, detections_per_img = 0.05, 0.5, 100

    def __init__(self) -> None:
        super().__init__()
        self.scores = nn.Parameter(torch.tensor([0.9, 0.6]))

    def forward(self, images: list[Tensor]) -> list[dict[str, Tensor]]:
        return [self._found(image) for image in images]

    def _found(self, image: Tensor) -> dict[str, Tensor]:
        bright = image.mean(0) > 0.5
        if min(bright.shape) < 4:
            raise RuntimeError("the picture is too small for this model")
        rows, columns = bright.any(1).nonzero(), bright.any(0).nonzero()
        count = 2 if len(rows) else 0
        box = [columns[0], rows[0], columns[-1] + 1, rows[-1] + 1] if count else []
        corners = torch.tensor([float(x) for x in box]).reshape(-1, 4).repeat(count, 1)
        points = torch.cat([corners.reshape(-1, 2, 2), torch.ones(count, 2, 1)], 2)
        return {
            "boxes": corners,
            "labels": torch.tensor([2, 1])[:count],
            "scores": self.scores.detach()[:count],
            "masks": bright.float().expand(count, 1, -1, -1),
            "keypoints": points,
        }


@pytest.fixture
def detector(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[list[str]]:
    """Options of a command that uses it; its classes have no names."""
    from fastvision.models import _registry

    def bright_rectangle(weights: Any = None, num_classes: int = 3) -> nn.Module:
        model = BrightRectangle()
        model.load_state_dict(torch.load(weights))
        return model

    monkeypatch.setitem(
        _registry._ENTRIES, "bright_rectangle", _registry._Entry(bright_rectangle, "detection")
    )
    path = tmp_path / "bright.pth"
    torch.save(BrightRectangle().state_dict(), path)
    yield ["--model", "bright_rectangle", "--weights", str(path)]


@pytest.fixture
def checkpoint(tmp_path: Path) -> str:
    """A localizer of digits as ``fastvision train`` writes it, with random weights."""
    from fastvision.training._run import model_of
    from fastvision.training.recipe import recipe_of

    recipe = recipe_of(
        {
            "name": "tiny",
            "task": "localization",
            "description": "a test",
            "steps": 1,
            "batch_size": 1,
            "model": {"name": "localizer", "backbone": "resnet20", "num_classes": 10},
            "data": {"name": "DigitScenes", "size": 64, "n_objects": 1, "scale": [0.5, 0.9]},
            "preparation": {"name": "detection_evaluation", "size": 32},
            "optimizer": {"name": "SGD", "lr": 0.1},
        }
    )
    torch.manual_seed(0)
    state = model_of(recipe).state_dict()
    classes = ["background", *"0123456789"]
    path = tmp_path / "tiny.pt"
    content = {"recipe": recipe.as_dict(), "classes": classes, "step": 1, "model": state}
    torch.save({"format": 1, **content}, path)
    return str(path)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Pictures of every kind, two files that are none, and one of another type."""
    import numpy as np
    from PIL import Image

    folder = tmp_path / "pictures"
    (folder / "deep er").mkdir(parents=True)
    (folder / ".hidden").mkdir()
    pixels = np.zeros((48, 64, 3), np.uint8)
    pixels[8:32, 16:24] = 255
    picture = Image.fromarray(pixels)
    picture.save(folder / "plain.png")
    picture.save(folder / ".hidden" / "left out.png")
    picture.convert("L").save(folder / "grey.jpg", quality=95)
    picture.convert("CMYK").save(folder / "cmyk.jpg", quality=95)
    picture.convert("P").save(folder / "palette.png")
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees
    picture.save(folder / "turned.jpg", exif=exif, quality=95)
    wide = (pixels[..., 0].astype(np.uint16) * 257).astype(np.uint16)
    Image.fromarray(wide).save(folder / "wide.png")
    picture.save(folder / "deep er" / "Größe 数字.png")
    frames = [Image.fromarray(np.roll(pixels, 8 * i, 1)) for i in range(3)]
    frames[0].save(folder / "moving.gif", save_all=True, append_images=frames[1:], duration=50)
    Image.new("RGB", (1, 1), "white").save(folder / "single.png")
    (folder / "broken.jpg").write_bytes((folder / "grey.jpg").read_bytes()[:200])
    (folder / "empty.png").touch()
    (folder / "notes.txt").write_text("no picture")
    return folder
