"""The best of very many candidates, and the detections among them, of all images at once."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ...ops import batched_nms_padded
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


def take(rows: Tensor, indices: Tensor) -> Tensor:
    """Of rows [N, A, C], or [1, A, C] for all images, those of the indices [N, k]: [N, k, C]."""
    if rows.shape[0] == 1:
        return rows[0][indices]
    image = torch.arange(rows.shape[0], device=rows.device)
    return rows[image[:, None], indices]


def best_pairs(logits: Tensor, quality: Tensor | None, k: int) -> tuple[Tensor, Tensor, Tensor]:
    """The ``k`` pairs of a place and a class that have the highest scores.

    They are among the classes of the k places whose best class has the highest score, so that the
    others are not looked at.

    Args:
        logits: [N, A, K].
        quality: logits [N, A, 1] of what the probabilities of a place are averaged with,
            geometrically; None for nothing.
        k: how many; all pairs if there are fewer.

    Returns:
        Scores, places and classes, [N, min(k, A K)] each, by descending score.
    """
    places, classes = logits.shape[1:]
    scores = _scores(logits.amax(2, keepdim=True), quality)
    place = scores[..., 0].topk(min(k, places), dim=1, sorted=False)[1]
    rows = _scores(take(logits, place), None if quality is None else take(quality, place))
    # NaN would be the largest
    rows = rows.nan_to_num(nan=-1).flatten(1)
    values, pair = rows.topk(min(k, rows.shape[1]), dim=1)
    return values, place.gather(1, pair // classes), pair % classes


def _scores(logits: Tensor, quality: Tensor | None) -> Tensor:
    scores = logits.to(box_dtype(logits)).sigmoid()
    return scores if quality is None else (scores * quality.to(scores.dtype).sigmoid()).sqrt()


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
