"""What a model has found in a picture."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from torch import Tensor


@dataclasses.dataclass(frozen=True, eq=False)
class Findings:
    """Objects, regions or classes, the most certain ones first; on the CPU.

    Args:
        labels: [n] int64.
        scores: [n] float32 from 0 to 1.
        boxes: [n, 4] float32 corners (x1, y1, x2, y2) in pixels of the picture.
        masks: [n, H, W] bool, of the picture's size.
        keypoints: [n, k, 3] float32: x and y in pixels, and 1 where the point is visible, else 0.

    None stands for what the task does not have.
    """

    labels: Tensor
    scores: Tensor
    boxes: Tensor | None = None
    masks: Tensor | None = None
    keypoints: Tensor | None = None

    def __len__(self) -> int:
        return len(self.labels)

    def pick(self, which: Any) -> Findings:
        """Those of an index, a flag each, or a slice."""
        picked = {name: value[which] for name, value in vars(self).items() if value is not None}
        return Findings(**picked)

    def above(self, score: float) -> Findings:
        """Those with at least this score."""
        return self.pick(self.scores >= score)


def from_detection(output: dict[str, Tensor], scale: tuple[float, float]) -> Findings:
    """The findings in a detector's answer.

    Args:
        output: "boxes", "labels" and "scores", further "masks" [n, 1, H, W] of probabilities, and
            "keypoints" with "keypoints_scores".
        scale: by which x and y are multiplied.

    Raises:
        ValueError: a box or score is not finite.
    """
    output = {name: value.detach().cpu() for name, value in output.items()}
    boxes = output["boxes"].float().reshape(-1, 4) * torch.tensor(scale * 2)
    scores, labels = output["scores"].float(), output["labels"].long()
    if not (boxes.isfinite().all() and scores.isfinite().all()):
        raise ValueError("the model's boxes or scores are not finite")
    masks, keypoints = output.get("masks"), output.get("keypoints")
    if masks is not None:
        masks = masks[:, 0] > 0.5
    if keypoints is not None:
        x, y, visible = keypoints.float().unbind(2)
        if "keypoints_scores" in output:  # logits
            visible = visible * (output["keypoints_scores"] > 0)
        keypoints = torch.stack([x * scale[0], y * scale[1], visible], 2)
    findings = Findings(labels, scores, boxes, masks, keypoints)
    return findings.pick(scores.argsort(descending=True, stable=True))


def from_class_map(scores: Tensor, background: int | None) -> Findings:
    """A region for each class that some pixel has, with its mean probability there.

    Args:
        scores: [classes, H, W] logits.
        background: a class that is left out.

    Raises:
        ValueError: a score is not finite.
    """
    scores = scores.detach().float().cpu()
    if not scores.isfinite().all():
        raise ValueError("the model's scores are not finite")
    best, classes = scores.softmax(0).max(0)
    labels = torch.tensor([i for i in classes.unique().tolist() if i != background]).long()
    masks = classes == labels[:, None, None]
    means = torch.stack([best[mask].mean() for mask in masks]) if len(masks) else torch.zeros(0)
    order = means.argsort(descending=True, stable=True)
    return Findings(labels, means, masks=masks).pick(order)


def from_class_scores(scores: Tensor, count: int) -> Findings:
    """The ``count`` most probable classes of an image.

    Args:
        scores: [classes] logits.

    Raises:
        ValueError: a score is not finite.
    """
    scores = scores.detach().float().cpu()
    if not scores.isfinite().all():
        raise ValueError("the model's scores are not finite")
    best, labels = scores.softmax(0).topk(min(count, len(scores)))
    return Findings(labels, best)
