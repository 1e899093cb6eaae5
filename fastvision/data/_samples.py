"""The one form of a sample: an image, and what is known about it in a dictionary."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

Sample = tuple[Any, dict[str, Any]]
Transforms = Callable[[Any, Any], Any]

IGNORE = 255  # in class maps: neither background nor a class

# what a target holds for each object, besides its box
PER_OBJECT = ("labels", "masks", "difficult", "iscrowd")

# annotation tools round, so that boxes end a fraction of a pixel outside
_ROUNDING = 1.0


def transformed(transforms: Transforms | None, image: Any, target: Any) -> Any:
    return (image, target) if transforms is None else transforms(image, target)


def read_image(path: Path) -> Any:
    """[3, H, W] uint8 tv_tensor of an image file.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is damaged, no image, or a grey image of more than 8 bits.
    """
    from PIL import Image

    try:
        with Image.open(path) as image:
            if image.mode.startswith(("I", "F")):
                raise ValueError(f"pixels of mode {image.mode} have more than 8 bits")
            return picture(np.asarray(image.convert("RGB")))
    except FileNotFoundError:
        raise
    except Exception as error:  # decoders raise errors of every type, and rarely name the file
        raise ValueError(f"{path} cannot be read as an image: {error}") from error


def picture(pixels: np.ndarray) -> Any:
    """[3, H, W] uint8 tv_tensor of an [H, W, 3] array."""
    from torchvision.tv_tensors import Image

    # a copy, since torch may write to it
    return Image(torch.from_numpy(np.array(pixels.transpose(2, 0, 1), order="C")))


def target(
    image: Tensor, image_id: int, boxes: Tensor, labels: Tensor, **others: Tensor
) -> dict[str, Any]:
    """The dictionary that detection data sets return with ``image``.

    Args:
        image: [3, H, W].
        boxes: [n, 4] float32 corners (x1, y1, x2, y2) in pixels, from 0 to W and H.
        labels: [n] int64.
        others: ``masks`` [n, H, W], ``class_map`` [H, W], or [n] flags.
    """
    from torchvision.tv_tensors import BoundingBoxes, Mask

    size = (int(image.shape[-2]), int(image.shape[-1]))
    result: dict[str, Any] = {
        "boxes": BoundingBoxes(boxes, format="XYXY", canvas_size=size),
        "labels": labels,
        "image_id": image_id,
    }
    for name, value in others.items():
        result[name] = Mask(value) if name in ("masks", "class_map") else value
    return result


def check_box(box: Sequence[float], image: Tensor, where: str) -> list[float]:
    """``box`` (x1, y1, x2, y2) cut to ``image``; what sticks out by rounding is no error.

    Raises:
        ValueError: it is no box with an area inside of the image; the error begins with ``where``.
    """
    height, width = image.shape[-2:]
    x1, y1, x2, y2 = box
    if not (x1 < x2 and y1 < y2):
        raise ValueError(f"{where}: the box {list(box)} has no area")
    inside = min(x1, y1) >= -_ROUNDING and x2 <= width + _ROUNDING and y2 <= height + _ROUNDING
    x1, y1, x2, y2 = max(x1, 0.0), max(y1, 0.0), min(x2, float(width)), min(y2, float(height))
    if not inside or x1 >= x2 or y1 >= y2:
        raise ValueError(
            f"{where}: the box {list(box)} is outside of the image of {width}x{height}"
        )
    return [x1, y1, x2, y2]


def mask_boxes(masks: Tensor) -> Tensor:
    """[n, 4] float32 corners around what is true in [n, H, W] masks, none of which is empty."""
    corners = []
    for axis in (1, 2):  # over rows for x, over columns for y
        hit = masks.any(axis).to(torch.uint8)
        corners += [hit.argmax(1), hit.shape[1] - hit.flip(1).argmax(1)]
    x1, x2, y1, y2 = corners
    return torch.stack([x1, y1, x2, y2], 1).to(torch.float32)
