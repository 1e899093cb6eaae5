"""Average precision of solid boxes."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ..ops import box_iou_3d, box_iou_rotated
from ..reference.box_iou_3d import seen_from_above

Boxes = Mapping[str, Tensor]


def overlap_from_above(boxes1: Tensor, boxes2: Tensor) -> Tensor:
    """[N, M] overlaps of boxes [N, 7] and [M, 7] as seen from above."""
    return box_iou_rotated(seen_from_above(boxes1), seen_from_above(boxes2))


OVERLAPS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "bev_ap50": overlap_from_above,
    "ap50_3d": box_iou_3d,
}


class AveragePrecision:
    """The area under the curve of precision over recall, the mean of the classes.

    A detection is right if it overlaps an object of its class by half or more, and no better one
    does: two objects cannot both share half of a box with it, unless they meet themselves. The
    precision at a recall is the best at this recall or a higher one, as in VOC since 2010 (every
    point of the curve counts). Classes without objects are left out.

    Args:
        overlap: of boxes [N, 7] and [M, 7], as [N, M].
        threshold: least overlap of a detection that is right.
    """

    def __init__(self, overlap: Callable[[Tensor, Tensor], Tensor], threshold: float = 0.5) -> None:
        self.overlap = overlap
        self.threshold = threshold
        self.found: list[Tensor] = []  # [n, 3] label, score, whether it is right
        self.objects: list[Tensor] = []  # [m] labels

    @property
    def metric_state(self) -> dict[str, list[Tensor]]:
        """What is known so far, an element per scene, as torchmetrics has it."""
        return {"found": self.found, "objects": self.objects}

    def to(self, device: Any) -> AveragePrecision:
        """Rows are kept on the CPU."""
        return self

    def update(self, outputs: Sequence[Boxes], targets: Sequence[Boxes]) -> None:
        """Detections and objects of scenes: "boxes" [n, 7], "labels" [n], and "scores" [n]."""
        for output, target in zip(outputs, targets, strict=True):
            order = output["scores"].argsort(descending=True, stable=True)
            boxes, labels, scores = (output[key][order] for key in ("boxes", "labels", "scores"))
            rows = torch.stack((labels.double(), scores.double(), torch.zeros_like(scores)), 1)
            if len(boxes) and len(target["labels"]):
                overlap = self.overlap(boxes, target["boxes"].to(boxes))
                overlap[labels[:, None] != target["labels"]] = -1
                shared, owner = overlap.max(1)
                claims = (shared >= self.threshold)[:, None] & (
                    owner[:, None] == torch.arange(len(target["labels"]), device=owner.device)
                )
                first = claims & (claims.cumsum(0) == 1)
                rows[:, 2] = first.any(1)
            self.found.append(rows.cpu())
            self.objects.append(target["labels"].cpu())

    def compute(self) -> float:
        """From 0 to 1; NaN without any object."""
        if not self.objects:
            return math.nan
        found, objects = torch.cat(self.found), torch.cat(self.objects)
        values = []
        for label in objects.unique():
            rows = found[found[:, 0] == label]
            right = rows[rows[:, 1].argsort(descending=True, stable=True), 2]
            hits = right.cumsum(0)
            precision = hits / torch.arange(1, len(hits) + 1)
            best = precision.flip(0).cummax(0).values.flip(0) if len(hits) else precision
            values.append((best * right).sum() / (objects == label).sum())
        return float(torch.stack(values).mean()) if values else math.nan
