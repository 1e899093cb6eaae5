"""Images of any size in a batch of one size, and boxes there and back."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

_GREY = 0.5  # around the images, as in Darknet


class Letterbox(NamedTuple):
    """A batch, and where the images lie in it.

    ``images``: [N, C, H, W]. ``scale``, ``offset``: [N, 4] for (x, y, x, y). ``limits``: [N, 4]
    (width, height, width, height) of the images as they were given.
    """

    images: Tensor
    scale: Tensor
    offset: Tensor
    limits: Tensor

    def enter(self, boxes: Tensor, image: Tensor) -> Tensor:
        """Corners [T, 4] in pixels of the batch, of boxes in pixels of the images [T]."""
        return boxes * self.scale[image] + self.offset[image]

    def leave(self, boxes: Tensor) -> Tensor:
        """Corners [N, K, 4] in pixels of the images, moved into them, of boxes in pixels of the
        batch; NaN stays."""
        boxes = (boxes - self.offset[:, None]) / self.scale[:, None]
        return torch.minimum(boxes.clamp(min=0), self.limits[:, None])


def letterbox(images: Sequence[Tensor], size: tuple[int, int]) -> Letterbox:
    """Scales images until they fit, and puts them into the middle of grey ones.

    Args:
        images: [C, H, W] each, floating-point from 0 to 1, of one dtype and device.
        size: (H, W) of the batch.

    Raises:
        TypeError: an image is no floating-point tensor.
        ValueError: there is no image; one has another number of dimensions or no pixels.
    """
    if len(images) == 0:
        raise ValueError("images must hold at least one image")
    for i, image in enumerate(images):
        if not isinstance(image, Tensor) or not image.is_floating_point():
            got = image.dtype if isinstance(image, Tensor) else type(image).__name__
            raise TypeError(f"images[{i}] must be a floating-point Tensor, got {got}")
        if image.dim() != 3 or image.numel() == 0:
            raise ValueError(f"images[{i}] must have shape [C, H, W], got {list(image.shape)}")
    shapes = [image.shape for image in images]
    first = images[0]
    if len(set(shapes)) == 1:  # one call for all
        groups = [(slice(None), torch.stack(list(images)))]
    else:
        groups = [(slice(i, i + 1), image[None]) for i, image in enumerate(images)]
    batch = first.new_full((len(images), first.shape[0], *size), _GREY)
    places = []
    for where, group in groups:
        top, left, inner = _place(group.shape[2:], size)
        if inner != tuple(group.shape[2:]):
            group = F.interpolate(group, inner, mode="bilinear", align_corners=False)
        if inner == size and len(group) == len(images):
            batch = group
        else:
            batch[where, :, top : top + inner[0], left : left + inner[1]] = group
    for _, height, width in shapes:
        top, left, inner = _place((height, width), size)
        scale = (inner[1] / width, inner[0] / height)
        places.append((*scale, *scale, left, top, left, top, width, height, width, height))
    dtype = torch.promote_types(first.dtype, torch.float32)  # of coordinates
    scale, offset, limits = torch.tensor(places, dtype=dtype, device=first.device).split(4, 1)
    return Letterbox(batch, scale, offset, limits)


def _place(shape: Sequence[int], size: tuple[int, int]) -> tuple[int, int, tuple[int, int]]:
    """Top, left, height and width of an image [H, W] in a batch of this size."""
    ratio = min(size[0] / shape[0], size[1] / shape[1])
    height, width = (
        max(1, min(limit, round(n * ratio))) for n, limit in zip(shape, size, strict=True)
    )
    return (size[0] - height) // 2, (size[1] - width) // 2, (height, width)
