"""The best of very many candidates, and the detections among them, of all images at once."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from ...ops import batched_nms_padded
from ...ops._checks import check_floating, check_tensor
from ...ops._topk_above import has_kernel, topk_above
from .anchors import box_dtype


class Detections(NamedTuple):
    """Detections of a batch in tensors of a fixed size, best first; what follows the first
    ``counts`` of an image has no meaning.

    ``boxes`` [N, D, 4] (x1, y1, x2, y2), ``scores`` [N, D], ``labels`` int64 [N, D] and ``counts``
    int64 [N].
    """

    boxes: Tensor
    scores: Tensor
    labels: Tensor
    counts: Tensor

    def unpadded(self) -> list[dict[str, Tensor]]:
        """ "boxes" [n, 4], "scores" [n] and "labels" [n] of each image."""
        images = zip(*self[:3], self.counts.tolist(), strict=True)
        return [
            {"boxes": boxes[:n], "scores": scores[:n], "labels": labels[:n]}
            for boxes, scores, labels, n in images
        ]


def check_call(model: nn.Module, images: Tensor) -> None:
    """What a detector checks that is called with one tensor of images.

    Raises:
        RuntimeError: the model is in training.
        TypeError: images is no floating-point tensor.
        ValueError: images are empty or of another shape than [N, 3, H, W].
    """
    if model.training:
        raise RuntimeError("detect() is for evaluation, the model is in training")
    check_tensor(images, "images")
    check_floating(images.dtype, "images")
    if images.dim() != 4 or 0 in images.shape:
        raise ValueError(
            f"images must have shape [N, 3, H, W] and not be empty, got {list(images.shape)}"
        )


def take(rows: Tensor, indices: Tensor) -> Tensor:
    """Of rows [N, A, C], or [1, A, C] for all images, those of the indices [N, k]: [N, k, C]."""
    n, places, columns = rows.shape
    image = torch.arange(n, device=rows.device)[:, None]
    if not rows.is_contiguous():
        return rows[image, indices]
    # whole rows are copied at once
    found = rows.view(n * places, columns).index_select(0, (indices + places * image).flatten())
    return found.view(*indices.shape, columns)


def best_pairs(logits: Tensor, quality: Tensor | None, k: int) -> tuple[Tensor, Tensor, Tensor]:
    """The ``k`` pairs of a place and a class that have the highest scores.

    Args:
        logits: [N, A, K].
        quality: logits [N, A, 1] of what the probabilities of a place are averaged with,
            geometrically; None for nothing.
        k: how many; all pairs if there are fewer.

    Returns:
        Scores, places and classes, [N, min(k, A K)] each, by descending score. NaN is no score of
        a detection, and stands for pairs that are missing.
    """
    classes = logits.shape[2]
    if quality is None and has_kernel(logits):
        values, pair = largest(logits.flatten(1), k)
        return values.to(box_dtype(logits)).sigmoid(), pair // classes, pair % classes
    # they are among the classes of the places whose best class has the highest score, or is NaN
    best = logits.amax(2, keepdim=True)
    best = (best if quality is None else _averaged(best, quality))[..., 0]
    _, place = largest(best.nan_to_num(nan=torch.inf, posinf=torch.inf, neginf=-torch.inf), k)
    rows = take(logits, place)
    rows = rows if quality is None else _averaged(rows, take(quality, place))
    values, pair = largest(rows.flatten(1), k)
    scores = values.to(box_dtype(logits)).sigmoid() if quality is None else values
    return scores, place.gather(1, pair // classes), pair % classes


def largest(x: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """:func:`torch.topk` of the rows of [N, M], where NaN is no candidate, and k may exceed M."""
    if has_kernel(x):
        values, indices = topk_above(x[..., None], k)
        return values[:, 0], indices[:, 0]
    # NaN would be the largest
    lowest = x.nan_to_num(nan=-torch.inf, posinf=torch.inf, neginf=-torch.inf)
    return lowest.topk(min(k, x.shape[1]), dim=1)


def _averaged(logits: Tensor, quality: Tensor) -> Tensor:
    kind = box_dtype(logits)
    return (logits.to(kind).sigmoid() * quality.to(kind).sigmoid()).sqrt()


def detect(
    boxes: Tensor,
    scores: Tensor,
    labels: Tensor,
    score_threshold: float,
    iou_threshold: float,
    max_output: int,
) -> Detections:
    """Non-maximum suppression within each label of each image.

    Args:
        boxes: [N, M, 4].
        scores: [N, M]; a candidate takes part if its score is above the threshold.
        labels: [N, M].
        score_threshold, iou_threshold, max_output: see :func:`fastvision.ops.batched_nms_padded`.
    """
    indices, counts = batched_nms_padded(
        boxes,
        scores.to(boxes.dtype),
        labels,
        iou_threshold,
        score_threshold=score_threshold,
        max_output=max_output,
    )
    indices = indices.clamp(min=0)
    return Detections(
        take(boxes, indices), scores.gather(1, indices), labels.gather(1, indices), counts
    )
