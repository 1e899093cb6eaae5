"""The head of YOLOv3.

Redmon and Farhadi, YOLOv3: an incremental improvement, 2018.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from ...darknet.config import Section
from ...darknet.network import Head
from ._truth import Truth
from .anchored import AnchorHead, Size, pairs


class YOLOHead(AnchorHead):
    """Maps of several scales, anchors in pixels, independent logistic classes: the [yolo]
    sections."""

    def __init__(self, heads: Sequence[Head], size: Size, box_loss: str = "squared") -> None:
        super().__init__(heads, size, box_loss)
        self.ignore_thresh = heads[0].section.number("ignore_thresh", 0.5)

    def anchors_of(self, part: Section, stride: int) -> Tensor:
        count = part.integer("num", 1, 1)
        mask = part.integers("mask") if "mask" in part.options else list(range(count))
        if not mask or min(mask) < 0 or max(mask) >= count:
            part.error(f"mask must be numbers from 0 to {count - 1}, got {mask}", "mask")
        return pairs(part, "anchors", count)[mask]

    def class_scores(self, logits: Tensor) -> Tensor:
        return logits.sigmoid()

    def center_error(self, logits: Tensor, wanted: Tensor) -> Tensor:
        # its derivative by the logit is the error, as in Darknet
        return F.binary_cross_entropy_with_logits(logits, wanted, reduction="none").sum(1)

    def size_error(self, size: Tensor, wanted: Tensor) -> Tensor:
        return (size - wanted).square().sum(1) / 2

    def losses(self, outputs: Sequence[Tensor], truth: Truth, size: Size) -> dict[str, Tensor]:
        """Box error and binary cross entropies of objectness and classes, summed up, means over the
        images. The derivatives by x, y, w and h are the errors, as the paper has it.

        Predictions that are not responsible for an object but overlap one by more than
        ``ignore_thresh`` do not count in the objectness.
        """
        flat, places = self.flat(outputs)
        index, kept = self.responsible(truth, outputs)
        image, true = truth.images[kept], truth.boxes[kept]
        chosen, at = flat[image, index], places.at(index)
        with torch.no_grad():
            boxes = places.decode(flat[..., :2].sigmoid(), flat[..., 2:4])
            counts = self.best_overlap(boxes, truth) <= self.ignore_thresh
            counts[image, index] = True
            wanted = torch.zeros_like(flat[..., 4])
            wanted[image, index] = 1
            labels = F.one_hot(truth.labels[kept], self.classes).to(flat.dtype)
        entropy = F.binary_cross_entropy_with_logits(flat[..., 4], wanted, reduction="none")
        terms = {
            "loss_box_reg": self.box_error(
                chosen[:, :2], chosen[:, 2:4], at, true, size[0] * size[1]
            ),
            "loss_objectness": (entropy * counts).sum(),
            "loss_classifier": F.binary_cross_entropy_with_logits(
                chosen[:, 5:], labels, reduction="sum"
            ),
        }
        return {name: term / truth.batch for name, term in terms.items()}
