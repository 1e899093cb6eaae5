"""What tests of data sets share: a skip where a package is missing, and a way to write images."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path

import pytest

NEEDED = ("torchvision", "PIL", "numpy", "mlxtend", "skimage", "sklearn", "pycocotools")
MISSING = [name for name in NEEDED if importlib.util.find_spec(name) is None]


def pytest_runtest_setup() -> None:
    if MISSING:
        pytest.skip(f"not installed: {', '.join(MISSING)}")


@pytest.fixture
def save_image() -> Callable[..., Path]:
    """Writes an image of 40x30 pixels of one color, with ``level`` of red."""
    from PIL import Image

    def save(path: Path, *, level: int = 90, size: tuple[int, int] = (40, 30)) -> Path:
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", size, (level, 20, 200)).save(path)
        return path

    return save
