"""From the scores and boxes of a batch to its detections, without a loop over images or classes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ...ops import batched_nms, batched_nms_padded
from ._constants import constant
from ._selection import largest


class Kept(NamedTuple):
    """Boxes of a batch, those of an image one after the other, best first.

    ``indices`` [K] into the candidates, and ``counts``, the number of each image.
    """

    indices: Tensor
    counts: list[int]

    def split(self, values: Tensor) -> tuple[Tensor, ...]:
        """Of values [n, ...] of the candidates those that were kept, per image."""
        return values[self.indices].split(self.counts)


def top_of_levels(scores: Sequence[Tensor], k: int) -> tuple[Tensor, Tensor]:
    """The ``k`` best candidates of each level of each image.

    Args:
        scores: [B, N_l] for each level.
        k: how many; all of a level that has fewer.

    Returns:
        Scores and int64 indices into the concatenated levels, both [B, sum of min(k, N_l)]. NaN is
        no candidate, and stands for those that are missing.
    """
    values, indices, start = [], [], 0
    for level in scores:
        best, index = largest(level, k)
        values.append(best)
        indices.append(index + start)
        start += level.shape[1]
    return torch.cat(values, 1), torch.cat(indices, 1)


def limits(sizes: Sequence[tuple[int, int]], like: Tensor) -> Tensor:
    """(width, height, width, height) [B, 4] of images of sizes (height, width)."""
    return constant(tuple((width, height) * 2 for height, width in sizes), like)


def clip(boxes: Tensor, limits: Tensor) -> Tensor:
    """Boxes [B, N, 4] moved into their images; NaN stays.

    Args:
        limits: of :func:`limits`, [B, 1, 4] or of another shape that broadcasts.
    """
    return torch.minimum(boxes.clamp(min=0), limits)


def large(boxes: Tensor, min_size: float) -> Tensor:
    """Of boxes [..., 4] a mask [...] of those with no side below a size."""
    return (boxes[..., 2:] - boxes[..., :2] >= min_size).all(-1)


def suppress_padded(
    boxes: Tensor,
    scores: Tensor,
    labels: Tensor | None,
    wanted: Tensor,
    iou_threshold: float,
    max_output: int,
) -> tuple[Tensor, Tensor]:
    """:func:`fastvision.ops.batched_nms_padded` of those candidates that are ``wanted``.

    Args:
        boxes: [B, N, 4].
        scores: [B, N].
        labels: [B, N]; boxes of different labels never affect each other.
        wanted: bool [B, N].

    Returns:
        Indices [B, max_output], padded with -1, and counts [B].
    """
    scores = scores.masked_fill(~wanted, -torch.inf).to(boxes.dtype)
    return batched_nms_padded(
        boxes, scores, labels, iou_threshold, score_threshold=-torch.inf, max_output=max_output
    )


def suppress(
    boxes: Tensor,
    scores: Tensor,
    labels: Tensor,
    images: Tensor,
    batch: int,
    iou_threshold: float,
    max_output: int,
) -> Kept:
    """Non-maximum suppression within each label of each image, of any number of candidates.

    Args:
        boxes: [n, 4] of all images.
        scores: [n].
        labels: int64 [n], not negative.
        images: int64 [n], the image of each box, ascending.
        batch: number of images.
        iou_threshold: see :func:`fastvision.ops.nms`.
        max_output: maximum number of boxes per image; the best ones are kept.
    """
    one_image = batch == 1
    kept = batched_nms(
        boxes,
        scores.to(boxes.dtype),
        labels if one_image else labels * batch + images,
        iou_threshold,
        max_output=max_output if one_image else None,
    )
    if one_image:
        return Kept(kept, [len(kept)])
    image, order = images[kept].sort(stable=True)
    counts = torch.bincount(image, minlength=batch)
    first = counts.cumsum(0) - counts
    rank = torch.arange(len(image), device=image.device) - first[image]
    return Kept(kept[order[rank < max_output]], counts.clamp(max=max_output).tolist())
