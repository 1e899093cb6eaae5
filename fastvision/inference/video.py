"""Videos and cameras through OpenCV."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from .._optional import optional

_RATE = 25.0  # frames per second where a camera or file names none
_COMPLETE = 0.9  # of the frames that a file declares, which is an estimate for some formats


def read_video(source: str | int) -> Iterator[tuple[Image.Image, float]]:
    """Frames in RGB and the rate in frames per second.

    Args:
        source: path of a file, or number of a camera, which has no end.

    Raises:
        ModuleNotFoundError: OpenCV is not installed.
        ValueError: it cannot be opened, or it breaks off.
    """
    cv2 = opencv()
    capture = cv2.VideoCapture(source)
    name = f"camera:{source}" if isinstance(source, int) else source
    try:
        if not capture.isOpened():
            raise ValueError(f"{name} cannot be opened as a video")
        rate = capture.get(cv2.CAP_PROP_FPS)
        rate = rate if 0 < rate < 1000 else _RATE
        declared = capture.get(cv2.CAP_PROP_FRAME_COUNT)
        count = 0
        while True:
            there, pixels = capture.read()
            if not there:
                break
            count += 1
            yield Image.fromarray(cv2.cvtColor(pixels, cv2.COLOR_BGR2RGB)), rate
        if isinstance(source, int):
            raise ValueError(f"{name} ended after {count} frames")
        if count < max(1, _COMPLETE * declared):
            raise ValueError(f"{name} ended after {count} of {declared:.0f} frames")
    finally:
        capture.release()


class VideoWriter:
    """An .mp4 file, which has its name once it is complete.

    Args:
        path: of the file.
        size: (W, H) of the frames; an odd last column or row is left out, as the codec needs it.
        rate: frames per second.

    Raises:
        OSError: it cannot be written.
    """

    def __init__(self, path: Path, size: tuple[int, int], rate: float) -> None:
        cv2 = opencv()
        self._path = path
        self._part = path.with_name(f".{path.stem}.part.mp4")
        self._size = (max(2, size[0] // 2 * 2), max(2, size[1] // 2 * 2))
        code = cv2.VideoWriter_fourcc(*"mp4v")
        self._writer: Any = cv2.VideoWriter(str(self._part), code, rate, self._size)
        if not self._writer.isOpened():
            raise OSError(f"{path} could not be opened for writing a video of {rate:g} frames/s")

    def add(self, picture: Image.Image) -> None:
        width, height = self._size
        pixels = np.asarray(picture.crop((0, 0, width, height)))
        self._writer.write(np.ascontiguousarray(pixels[..., ::-1]))

    def close(self) -> None:
        self._writer.release()
        self._part.replace(self._path)


def opencv() -> Any:
    """The package cv2.

    Raises:
        ModuleNotFoundError: it is not installed.
    """
    return optional("cv2", "detect")
