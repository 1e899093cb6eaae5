"""Findings drawn on a copy of the picture."""

from __future__ import annotations

import colorsys
import functools
import math
from collections.abc import Callable
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from .findings import Findings

_LEAST_SIDE = 320  # pixels of the copy's longer side, below which labels cover too much
_LARGEST_FACTOR = 8
_OPACITY = 0.45  # of masks
_GOLDEN = (math.sqrt(5) - 1) / 2  # steps of the hue, so that neighboring labels differ
_TEXT = (255, 255, 255)
_DARK = (0, 0, 0)

# COCO's person: pairs of its 17 points
_LIMBS = (
    (15, 13), (13, 11), (16, 14), (14, 12), (11, 12), (5, 11), (6, 12), (5, 6), (5, 7), (6, 8),
    (7, 9), (8, 10), (1, 2), (0, 1), (0, 2), (1, 3), (2, 4), (3, 5), (4, 6),
)  # fmt: skip

Color = tuple[int, int, int]


def draw(picture: Image.Image, findings: Findings, name: Callable[[int], str] = str) -> Image.Image:
    """A copy of the picture with boxes, masks, keypoints and labels.

    Each class has a color. Better findings cover worse ones. A picture of less than 320 pixels is
    enlarged by a whole number, at most 8, so that labels can be read.

    Args:
        picture: in RGB.
        name: the text for a label.
    """
    factor = min(_LARGEST_FACTOR, -(-_LEAST_SIDE // max(picture.size)))
    copy = _with_masks(picture, findings)
    if factor > 1:
        size = (picture.width * factor, picture.height * factor)
        copy = copy.resize(size, Image.Resampling.BICUBIC)
    canvas = _Canvas(copy, factor)
    if findings.boxes is None and findings.masks is None:
        canvas.lines(findings, name)
        return copy
    for i in reversed(range(len(findings))):
        color = color_of(int(findings.labels[i]))
        if findings.boxes is not None:
            canvas.box(findings.boxes[i], color)
        if findings.keypoints is not None:
            canvas.keypoints(findings.keypoints[i], color)
    for i in reversed(range(len(findings))):  # no box crosses a label
        label = int(findings.labels[i])
        text = f"{name(label)} {float(findings.scores[i]):.2f}"
        canvas.label(text, *_place(findings, i), color_of(label))
    return copy


def color_of(label: int) -> Color:
    """The color of a class."""
    red, green, blue = colorsys.hsv_to_rgb(label * _GOLDEN % 1, 0.8, 0.95)
    return round(red * 255), round(green * 255), round(blue * 255)


class _Canvas:
    """Draws in pixels of the picture on a copy that is larger by ``factor``."""

    def __init__(self, copy: Image.Image, factor: int) -> None:
        longer = max(copy.size)
        self._draw = ImageDraw.Draw(copy)
        self._size = copy.size
        self._factor = factor
        self._line = max(2, round(longer / 320))
        self._font = _font(max(12, round(longer / 45)))

    def box(self, box: Tensor, color: Color) -> None:
        x1, y1, x2, y2 = (box * self._factor).tolist()
        corners = (min(x1, x2), min(y1, y2), max(x1, x2 - 1), max(y1, y2 - 1))
        self._draw.rectangle(corners, outline=color, width=self._line)

    def keypoints(self, points: Tensor, color: Color) -> None:
        places = [
            (x * self._factor, y * self._factor) if seen else None for x, y, seen in points.tolist()
        ]
        for first, second in _LIMBS if len(places) == 17 else ():
            start, end = places[first], places[second]
            if start is not None and end is not None:
                self._draw.line((*start, *end), fill=color, width=self._line)
        radius = 1.5 * self._line
        for place in places:
            if place is not None:
                x, y = place
                corners = (x - radius, y - radius, x + radius, y + radius)
                self._draw.ellipse(corners, fill=_TEXT, outline=color)

    def label(self, text: str, x: float, y: float, color: Color) -> None:
        """Text whose lower left corner is at (x, y), moved into the picture."""
        width, height = self._extent(text)
        left = max(0.0, min(x * self._factor, self._size[0] - width))
        top = max(0.0, min(y * self._factor - height, self._size[1] - height))
        self._text(text, left, top, color)

    def lines(self, findings: Findings, name: Callable[[int], str]) -> None:
        """Labels without a place, one below the other."""
        top = 0.0
        for label, score in zip(findings.labels.tolist(), findings.scores.tolist(), strict=True):
            text = f"{name(label)} {score:.2f}"
            self._text(text, 0, top, color_of(label))
            top += self._extent(text)[1]

    def _text(self, text: str, left: float, top: float, color: Color) -> None:
        width, height = self._extent(text)
        self._draw.rectangle((left, top, left + width, top + height), fill=color)
        red, green, blue = color
        bright = 0.299 * red + 0.587 * green + 0.114 * blue > 140
        place = (left + self._line, top + self._line)
        self._draw.text(place, text, fill=_DARK if bright else _TEXT, font=self._font, anchor="lt")

    def _extent(self, text: str) -> tuple[float, float]:
        """Width and height of a text with a margin; the height is the same for all texts."""
        x1, _, x2, _ = self._draw.textbbox((0, 0), text, font=self._font, anchor="lt")
        _, y1, _, y2 = self._draw.textbbox((0, 0), "Ag0|", font=self._font, anchor="lt")
        return x2 - x1 + 2 * self._line, y2 - y1 + 2 * self._line


def _with_masks(picture: Image.Image, findings: Findings) -> Image.Image:
    if findings.masks is None:
        return picture.copy()
    pixels = np.array(picture)
    for i in reversed(range(len(findings))):
        mask = findings.masks[i].numpy()
        color = np.array(color_of(int(findings.labels[i])))
        blended = (1 - _OPACITY) * pixels[mask] + _OPACITY * color
        pixels[mask] = blended.round().astype(np.uint8)
    return Image.fromarray(pixels)


def _place(findings: Findings, i: int) -> tuple[float, float]:
    """Where the label of a finding is: above its box, or at the middle of its region."""
    if findings.boxes is not None:
        x, y, *_ = findings.boxes[i].tolist()
        return x, y
    assert findings.masks is not None
    points = findings.masks[i].nonzero().float()
    middle = points[(points - points.mean(0)).square().sum(1).argmin()]
    y, x = middle.tolist()
    return x, y


@functools.cache
def _font(size: int) -> Any:
    return ImageFont.load_default(size)
