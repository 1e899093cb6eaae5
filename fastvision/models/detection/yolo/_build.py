"""What the builders of all versions share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from ...darknet.architectures import Layers
from ...darknet.classifiers import load_any
from .model import YOLO

Size = int | tuple[int, int]
Anchors = Sequence[Sequence[float]] | Tensor


def build(name: str, layers: Layers, weights: Any, progress: bool, options: dict[str, Any]) -> YOLO:
    model = YOLO(layers, **options)
    return load_any(model, model.network, name, weights, progress)


def sizes_of(anchors: Anchors) -> list[list[float]]:
    """[[width, height], ...] in pixels.

    Raises:
        ValueError: they are no pairs of positive numbers.
    """
    sizes = anchors.tolist() if isinstance(anchors, Tensor) else [list(size) for size in anchors]
    if not sizes or any(len(size) != 2 or min(size) <= 0 for size in sizes):
        raise ValueError(f"anchors must be pairs of positive numbers, got {sizes}")
    return sizes
