"""The objects of a batch, in pixels of the network's input."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ....ops import box_convert
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


def truth_of(targets: Sequence[Mapping[str, Any]], frame: Letterbox, classes: int) -> Truth:
    """The objects of ``targets`` where a letterbox puts them.

    Args:
        targets: "boxes" [n, 4] (x1, y1, x2, y2) in pixels and "labels" int64 [n] of each image.
        frame: of the images.
        classes: labels are from 1 to this.

    Raises:
        TypeError: targets are no list of dicts of tensors.
        ValueError: their number, a shape or a label is wrong, or a box has no area; the message
            names the target.
    """
    if not isinstance(targets, (list, tuple)) or len(targets) != len(frame.images):
        raise ValueError(
            f"targets must be a list of {len(frame.images)} dicts, one for each image, got "
            f"{type(targets).__name__} of {len(targets) if hasattr(targets, '__len__') else 1}"
        )
    for i, target in enumerate(targets):
        _check_shapes(i, target)
    device, dtype = frame.images.device, frame.scale.dtype
    counts = torch.tensor([len(target["labels"]) for target in targets], device=device)
    boxes = torch.cat([target["boxes"].to(device, dtype).reshape(-1, 4) for target in targets])
    labels = torch.cat([target["labels"].to(device, torch.int64) for target in targets])
    images = torch.arange(len(targets), device=device).repeat_interleave(counts)
    _check_values(boxes, labels, images, classes)
    corners = frame.enter(boxes.as_subclass(Tensor), images)
    padded = corners.new_zeros((len(targets), int(counts.max()), 4))
    start = counts.cumsum(0) - counts
    padded[images, torch.arange(len(images), device=device) - start[images]] = corners
    return Truth(box_convert(corners, "xyxy", "cxcywh"), labels - 1, images, padded)


def _check_shapes(i: int, target: Any) -> None:
    for name in ("boxes", "labels"):
        if not isinstance(target, Mapping) or not isinstance(target.get(name), Tensor):
            raise TypeError(f'targets[{i}] must be a dict with tensors "boxes" and "labels"')
    boxes, labels = target["boxes"], target["labels"]
    if labels.dim() != 1 or boxes.shape != (len(labels), 4):
        raise ValueError(
            f"targets[{i}] must have boxes [n, 4] and labels [n], got {list(boxes.shape)} and "
            f"{list(labels.shape)}"
        )


def _check_values(boxes: Tensor, labels: Tensor, images: Tensor, classes: int) -> None:
    # written so that NaN is no area
    flat = ~((boxes[:, 2:] > boxes[:, :2]).all(1) & boxes.isfinite().all(1))
    unknown = (labels < 1) | (labels > classes)
    if bool((flat | unknown).any()):
        i = int((flat | unknown).nonzero()[0])
        if bool(flat[i]):
            raise ValueError(
                f"targets[{int(images[i])}] has the box {boxes[i].tolist()}, which has no area"
            )
        raise ValueError(
            f"targets[{int(images[i])}] has the label {int(labels[i])}, but labels are from 1 to "
            f"{classes}"
        )


def first_of_each(keys: Tensor, count: int) -> Tensor:
    """Of int64 keys [T] below ``count`` a mask [T] of those that none before is equal to."""
    order = torch.arange(len(keys), device=keys.device)
    first = order.new_full((count,), len(keys)).scatter_reduce(0, keys, order, "amin")
    return first[keys] == order
