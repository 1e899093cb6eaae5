"""The objects of a batch, in pixels of the network's input."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ....ops import box_convert
from ..image_list import Target
from ..targets import check_boxes, check_labels
from .letterbox import Letterbox


class Truth(NamedTuple):
    """The objects of all images one after the other.

    ``boxes``: [T, 4] (center, width, height). ``labels``: int64 [T] from 0. ``images``: int64 [T],
    the image of each. ``padded``: [N, M, 4] corners for each image, padded with zeros.
    """

    boxes: Tensor
    labels: Tensor
    images: Tensor
    padded: Tensor

    @property
    def batch(self) -> int:
        return self.padded.shape[0]


def truth_of(targets: Sequence[Target], frame: Letterbox, classes: int) -> Truth:
    """The objects of ``targets`` where a letterbox puts them.

    Args:
        targets: "boxes" [n, 4] (x1, y1, x2, y2) in pixels and "labels" int64 [n] of each image.
        frame: of the images.
        classes: labels are from 1 to this.

    Raises:
        AssertionError: a box has no area or is not finite, as with the other detectors.
        ValueError: labels of another shape or dtype, a label that is no class; the message names
            the target.
    """
    check_boxes(targets)
    check_labels(targets)
    device, dtype = frame.images.device, frame.scale.dtype
    counts = torch.tensor([len(target["labels"]) for target in targets], device=device)
    boxes = torch.cat([target["boxes"].to(device, dtype).reshape(-1, 4) for target in targets])
    labels = torch.cat([target["labels"].to(device) for target in targets])
    images = torch.arange(len(targets), device=device).repeat_interleave(counts)
    _check_classes(labels, images, classes)
    corners = frame.enter(boxes.as_subclass(Tensor), images)
    padded = corners.new_zeros((len(targets), int(counts.max()), 4))
    start = counts.cumsum(0) - counts
    padded[images, torch.arange(len(images), device=device) - start[images]] = corners
    return Truth(box_convert(corners, "xyxy", "cxcywh"), labels - 1, images, padded)


def _check_classes(labels: Tensor, images: Tensor, classes: int) -> None:
    wrong = (labels < 1) | (labels > classes)
    if bool(wrong.any()):
        i = int(wrong.nonzero()[0])
        raise ValueError(
            f"targets[{int(images[i])}] must have labels from 1 to {classes}, got {int(labels[i])}"
        )


def first_of_each(keys: Tensor, count: int) -> Tensor:
    """Of int64 keys [T] below ``count`` a mask [T] of those that none before is equal to."""
    order = torch.arange(len(keys), device=keys.device)
    first = order.new_full((count,), len(keys)).scatter_reduce(0, keys, order, "amin")
    return first[keys] == order
