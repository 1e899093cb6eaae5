"""Pixels of a scene: background, clutter and digits, drawn by Pillow."""

from __future__ import annotations

import math

import numpy as np
from numpy.random import Generator
from PIL import Image, ImageDraw

_CONTRAST = 64  # wanted difference in luminance of a digit and what is under it
_LUMINANCE = np.array([0.299, 0.587, 0.114])  # ITU-R BT.601
_FAINT = 32  # ink below does not count where a digit is cut out


def below(rng: Generator, limit: int) -> int:
    """A random integer from 0 to ``limit - 1``, for less time than ``rng.integers`` takes."""
    return int(rng.random() * limit)


def glyph(digit: np.ndarray) -> Image.Image:
    """The [28, 28] uint8 image of a digit, cut to its ink."""
    rows, columns = (np.flatnonzero((digit > _FAINT).any(axis)) for axis in (1, 0))
    ink = digit[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    return Image.fromarray(np.ascontiguousarray(ink))


def resized(glyph: Image.Image, side: float) -> Image.Image:
    """``glyph`` with a longer side of ``side`` pixels."""
    factor = side / max(glyph.size)
    width, height = (max(1, round(length * factor)) for length in glyph.size)
    return glyph.resize((width, height), Image.Resampling.BILINEAR)


def background(rng: Generator, photograph: Image.Image, height: int, width: int) -> Image.Image:
    """A random crop of ``photograph`` at a random scale, mirrored and tinted at random."""
    largest = min(photograph.width / width, photograph.height / height)
    factor = largest * rng.uniform(0.5, 1)
    cut_width, cut_height = (max(1, int(length * factor)) for length in (width, height))
    left = below(rng, photograph.width - cut_width + 1)
    top = below(rng, photograph.height - cut_height + 1)
    crop = photograph.crop((left, top, left + cut_width, top + cut_height))
    red, green, blue = rng.uniform(0.6, 1) * rng.uniform(0.8, 1.2, 3)
    crop = crop.convert("RGB", (red, 0, 0, 0, 0, green, 0, 0, 0, 0, blue, 0))
    if rng.random() < 0.5:
        crop = crop.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    return crop.resize((width, height), Image.Resampling.BILINEAR)


def draw_distractor(rng: Generator, image: Image.Image) -> None:
    """A filled ellipse or a zigzag in a random place and color."""
    draw = ImageDraw.Draw(image)
    color = _color(rng.integers(256, size=3))
    side = min(image.size) * rng.uniform(0.05, 0.25)
    left, top = (rng.uniform(0, length - side) for length in image.size)
    points = rng.uniform(0, side, (5, 2)) + (left, top)
    if rng.random() < 0.5:
        draw.ellipse((*points[:2].min(0), *points[:2].max(0)), fill=color)
    else:
        draw.line(points.ravel().tolist(), fill=color, width=math.ceil(side / 12))


def draw_digit(rng: Generator, image: Image.Image, glyph: Image.Image, x: int, y: int) -> None:
    """``glyph`` with its corner at (x, y), in a random color that stands out."""
    box = (x, y, x + glyph.width, y + glyph.height)
    under = image.resize((1, 1), Image.Resampling.BOX, box=box).getpixel((0, 0))
    colors = rng.integers(256, size=(8, 3))
    contrast = np.abs((colors - np.asarray(under)) @ _LUMINANCE)
    # the first with enough of it, or the one with the most
    image.paste(_color(colors[np.minimum(contrast, _CONTRAST).argmax()]), box, glyph)


def _color(values: np.ndarray) -> tuple[int, int, int]:
    red, green, blue = values.tolist()
    return red, green, blue
