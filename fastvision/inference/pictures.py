"""Pictures of any kind as RGB of 8 bits, upright."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import Image, ImageOps

_ANIMATED = ("GIF", "PNG", "TIFF", "WEBP")
_WHITE = (255, 255, 255, 255)


def read_picture(path: str | Path | BinaryIO) -> Image.Image:
    """The first picture of a file, or of an open one, in RGB.

    Its EXIF orientation is applied, grey, palette and CMYK pictures are converted, 16 bits become
    8, and what is transparent shows white.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is empty, damaged, or no picture that Pillow reads.
    """
    return next(read_pictures(path))


def read_pictures(path: str | Path | BinaryIO) -> Iterator[Image.Image]:
    """All pictures of a file, such as the frames of an animation, see :func:`read_picture`."""
    try:
        with Image.open(path) as file:
            # in other formats, further pictures are thumbnails or depths of the first
            count = getattr(file, "n_frames", 1) if file.format in _ANIMATED else 1
            for number in range(count):
                file.seek(number)
                yield _upright_rgb(file)
    except FileNotFoundError:
        raise
    except Exception as error:  # decoders raise errors of every type, and rarely name the file
        if isinstance(path, (str, Path)) and os.path.getsize(path) == 0:
            raise ValueError(f"{path} is empty") from None
        raise ValueError(f"{path} cannot be read as a picture: {error}") from error


def frame_rate(path: str | Path) -> float:
    """Frames per second of an animation, by how long its first picture is shown."""
    with Image.open(path) as file:
        return 1000 / float(file.info.get("duration") or 100)


def _upright_rgb(file: Image.Image) -> Image.Image:
    picture = ImageOps.exif_transpose(file)
    if picture.mode == "F":
        raise ValueError("pixels of mode F have no defined range")
    if picture.mode.startswith("I"):
        return _from_16_bits(picture)
    if picture.has_transparency_data:
        picture = picture.convert("RGBA")
        picture = Image.alpha_composite(Image.new("RGBA", picture.size, _WHITE), picture)
    return picture.convert("RGB")


def _from_16_bits(picture: Image.Image) -> Image.Image:
    pixels = np.asarray(picture)
    if pixels.min() < 0 or pixels.max() > 0xFFFF:
        raise ValueError(f"pixels of mode {picture.mode} exceed 16 bits")
    return Image.fromarray((pixels.astype(np.uint32) // 257).astype(np.uint8)).convert("RGB")
