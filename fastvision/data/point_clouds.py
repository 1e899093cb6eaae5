"""Synthetic scenes as a rotating LIDAR sees them, for detection of solid boxes."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.random import Generator
from torch import Tensor
from torch.utils.data import Dataset

from ..ops._checks import integer, pair
from ._checks import SPLITS, check_number, check_range, check_split
from ._drawing import below

Scene = tuple[Tensor, dict[str, Any]]

_HEIGHT = 1.8  # of the sensor, in metres
_BEAMS = np.tan(np.radians(np.linspace(-24, 3, 32)))  # rise per metre
_COLUMNS = 512  # directions of a turn
_NEAREST = 3.0  # metres around the sensor without objects
_GAP = 0.3  # least distance between objects
_PLACES = 20  # to try for an object
_MAX_OBJECTS = 50
_RANGE_NOISE, _ROUGHNESS = 0.02, 0.03  # standard deviations in metres
_LOST = 0.08  # share of the returns

CAR, PEDESTRIAN = 1, 2


class LidarScenes(Dataset[Scene]):
    """Point clouds of cars and pedestrians among poles, walls and crates on a rough ground.

    Rays of 32 beams in 512 directions end at the first surface, so that near objects hide what is
    behind them and far ones have few points. Cars have a cabin behind their hood, which tells their
    direction. Distances are noisy, and some rays are lost. A scene depends on its index and the
    arguments alone, with the same version of NumPy; scenes of the splits differ.

    Args:
        split: "train" or "test".
        length: number of scenes. They are made when asked for and take no memory.
        reach: objects are within this many metres of the sensor in x and in y.
        cars, pedestrians, clutter: number of each, or the least and the most, at most 50. An object
            that finds no room in 20 tries is left out.
        min_points: an object with fewer points is not annotated.
        seed: other scenes for another seed.

    An item is a cloud and its target:

    - cloud: [n, 4] float32 (x, y, z, reflectance): metres, with x forward, y to the left and z up
      from the ground below the sensor; the reflectance is from 0 to 1.
    - "boxes": [m, 7] float32 (x, y, z, length, width, height, yaw): center, sides, and the angle in
      radians by which the length is turned from x towards y, from -pi to pi.
    - "labels": [m] int64; ``classes[label]`` is the name, 0 is the background.
    - "scene_id": the index.

    Raises:
        ValueError: an argument is out of its range.
    """

    classes = ("background", "car", "pedestrian")

    def __init__(
        self,
        split: str = "train",
        *,
        length: int = 10_000,
        reach: float = 25.0,
        cars: int | tuple[int, int] = (3, 8),
        pedestrians: int | tuple[int, int] = (2, 8),
        clutter: int | tuple[int, int] = (4, 10),
        min_points: int = 5,
        seed: int = 0,
    ) -> None:
        check_split(split)
        check_number(reach, "reach", 8, 100)
        numbers = {"cars": cars, "pedestrians": pedestrians, "clutter": clutter}
        self.counts = {name: pair(value, name) for name, value in numbers.items()}
        for name, value in self.counts.items():
            check_range(value, name, 0, _MAX_OBJECTS)
        for name, number in (("length", length), ("min_points", min_points), ("seed", seed)):
            if integer(number, f"{name} must be an integer") < 0:
                raise ValueError(f"{name} must not be negative, got {number}")
        self.split = split
        self.length = length
        self.reach = float(reach)
        self.min_points = min_points
        self.seed = seed

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> Scene:
        index = range(self.length)[index]
        rng = np.random.default_rng((self.seed, SPLITS.index(self.split), index))
        boxes, labels = self._objects(rng)
        cloud, owners = _scan(rng, _Parts.of(boxes, labels), math.sqrt(2) * self.reach)
        points = np.bincount(owners[owners >= 0], minlength=len(boxes))
        seen = (labels > 0) & (points >= max(self.min_points, 1))
        return torch.from_numpy(cloud), {
            "boxes": torch.from_numpy(boxes[seen].astype(np.float32)),
            "labels": torch.from_numpy(labels[seen]),
            "scene_id": index,
        }

    def _objects(self, rng: Generator) -> tuple[np.ndarray, np.ndarray]:
        """Boxes [m, 7] that do not meet, and their labels [m]; 0 for clutter."""
        kinds: list[int] = []
        for label, name in ((CAR, "cars"), (PEDESTRIAN, "pedestrians"), (0, "clutter")):
            least, most = self.counts[name]
            kinds += [label] * (least + below(rng, most - least + 1))
        sizes = np.array([_size(rng, kind) for kind in kinds]).reshape(-1, 3)
        radii = np.hypot(sizes[:, 0], sizes[:, 1]) / 2
        places = rng.uniform(-self.reach, self.reach, (len(kinds), _PLACES, 2))
        yaws = rng.uniform(-math.pi, math.pi, len(kinds))
        taken, circles = [], np.array([[0.0, 0.0, _NEAREST]])  # x, y, radius
        for number, radius in enumerate(radii):
            away = np.hypot(*(places[number, :, None] - circles[:, :2]).transpose(2, 0, 1))
            free = (away > circles[:, 2] + radius + _GAP).all(1)
            if free.any():
                taken.append(number)
                place = places[number, free.argmax()]
                circles = np.concatenate((circles, [[*place, radius]]))
        sizes, yaws = sizes[taken], yaws[taken]
        centers = np.concatenate((circles[1:, :2], sizes[:, 2:] / 2), 1)
        labels = np.array(kinds, np.int64)[taken]
        return np.concatenate((centers, sizes, yaws[:, None]), 1), labels


def _size(rng: Generator, label: int) -> tuple[float, float, float]:
    """Length, width and height in metres."""
    low, high = rng.random(3), rng.random()
    if label == CAR:
        return 3.6 + 1.0 * low[0], 1.6 + 0.3 * low[1], 1.4 + 0.3 * low[2]
    if label == PEDESTRIAN:
        return 0.5 + 0.3 * low[0], 0.5 + 0.2 * low[1], 1.5 + 0.4 * low[2]
    if high < 0.4:  # a pole
        side = 0.15 + 0.2 * low[0]
        return side, side, 2.5 + 2.5 * low[2]
    if high < 0.7:  # a wall
        return 2.0 + 3.0 * low[0], 0.2 + 0.2 * low[1], 0.8 + 1.7 * low[2]
    return 0.4 + 2.1 * low[0], 0.4 + 1.6 * low[1], 0.4 + 1.6 * low[2]  # a crate


class _Parts(NamedTuple):
    """The boxes that surfaces belong to: a car has two, its body and its cabin."""

    boxes: np.ndarray  # [p, 5] x, y, length, width, yaw
    bottoms: np.ndarray  # [p]
    tops: np.ndarray
    owners: np.ndarray  # [p] number of the object

    @classmethod
    def of(cls, objects: np.ndarray, labels: np.ndarray) -> _Parts:
        flat = objects[:, [0, 1, 3, 4, 6]]
        is_car = labels == CAR
        tops = objects[:, 5].copy()
        heights = tops[is_car]
        tops[is_car] = 0.55 * heights
        cabins = flat[is_car]  # a copy
        yaws, lengths = cabins[:, 4], cabins[:, 2]
        cabins[:, 0] -= 0.15 * lengths * np.cos(yaws)
        cabins[:, 1] -= 0.15 * lengths * np.sin(yaws)
        cabins[:, 2] *= 0.6
        cabins[:, 3] *= 0.9
        return cls(
            np.concatenate((flat, cabins)),
            np.concatenate((np.zeros(len(flat)), tops[is_car])),
            np.concatenate((tops, heights)),
            np.concatenate((np.arange(len(flat)), np.flatnonzero(is_car))),
        )


def _scan(rng: Generator, parts: _Parts, farthest: float) -> tuple[np.ndarray, np.ndarray]:
    """The cloud [n, 4], and the number of the object of each point, -1 for the ground."""
    turn = 2 * math.pi * (np.arange(_COLUMNS) + rng.random()) / _COLUMNS
    column, part, near, far = _crossed(np.stack((np.cos(turn), np.sin(turn))), parts.boxes)
    with np.errstate(divide="ignore"):
        ground = np.where(_BEAMS < 0, -_HEIGHT / _BEAMS, np.inf)
        tops = (parts.tops[part, None] - _HEIGHT) / _BEAMS  # distances where beams are so high
    entry, leave = (_HEIGHT + distance[:, None] * _BEAMS for distance in (near, far))
    top, bottom = parts.tops[part, None], parts.bottoms[part, None]
    on_side, on_top = (entry >= bottom) & (entry <= top), (entry > top) & (leave < top)
    hit, beam = np.nonzero(on_side | on_top)
    distance = np.where(on_side, near[:, None], tops)[hit, beam]
    order = np.argsort(-distance, kind="stable")  # of several, the last one stays: the nearest
    hit, beam, distance = hit[order], beam[order], distance[order]

    ranges = np.tile(ground, (_COLUMNS, 1))  # [columns, beams], along the ground
    owners = np.full(ranges.shape, -1)
    ranges[column[hit], beam] = distance
    owners[column[hit], beam] = parts.owners[part[hit]]
    returned = (ranges < farthest) & (rng.random(ranges.shape) >= _LOST)
    columns, beams = np.nonzero(returned)
    owners, ranges = owners[columns, beams], ranges[columns, beams]
    noise = rng.standard_normal((3, len(ranges)))
    ranges += _RANGE_NOISE * noise[0]
    z = _HEIGHT + ranges * _BEAMS[beams] + np.where(owners < 0, _ROUGHNESS * noise[1], 0)
    shades = rng.uniform(0.1, 0.9, owners.max(initial=-1) + 2)  # of the objects, and the ground
    shade = (shades[owners] + 0.05 * noise[2]).clip(0, 1)
    cloud = np.stack((ranges * np.cos(turn[columns]), ranges * np.sin(turn[columns]), z, shade), 1)
    return cloud.astype(np.float32), owners


def _crossed(
    directions: np.ndarray, boxes: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Directions [2, d] that meet boxes [p, 5], seen from above: for each pair the numbers of
    direction and box, and the distances where the ray enters and leaves."""
    x, y, length, width, yaw = boxes.T
    cos, sin = np.cos(yaw), np.sin(yaw)
    dx, dy = directions[:, :, None]
    shape = directions.shape[1], len(boxes)
    near, far = np.full(shape, -np.inf), np.full(shape, np.inf)
    for half, center, step in (  # along the sides of each box
        (length / 2, cos * x + sin * y, cos * dx + sin * dy),
        (width / 2, cos * y - sin * x, cos * dy - sin * dx),
    ):
        step = np.where(np.abs(step) < 1e-9, 1e-9, step)
        middle, reach = center / step, half / np.abs(step)
        near, far = np.maximum(near, middle - reach), np.minimum(far, middle + reach)
    direction, box = np.nonzero((near < far) & (near > 0))
    return direction, box, near[direction, box], far[direction, box]
