"""The head of YOLOv2.

Redmon and Farhadi, YOLO9000: better, faster, stronger, 2017.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from ....ops import box_convert, box_iou
from ...darknet.config import Section
from ...darknet.network import Head
from ._truth import Truth
from .anchored import AnchorHead, Size, pairs


class RegionHead(AnchorHead):
    """One map, anchors in units of a cell, classes by softmax: the [region] section."""

    def __init__(self, heads: Sequence[Head], size: Size, box_loss: str = "squared") -> None:
        part = heads[-1].section
        if len(heads) > 1:
            part.error("cannot be one of several heads")
        if part.integer("softmax", 0) != 1:
            part.error("must have softmax=1, as in the paper")
        super().__init__(heads, size, box_loss)
        self.object_scale = part.number("object_scale", 1)
        self.noobject_scale = part.number("noobject_scale", 1)
        self.class_scale = part.number("class_scale", 1)
        self.coord_scale = part.number("coord_scale", 1)
        self.thresh = part.number("thresh", 0.5)

    def anchors_of(self, part: Section, stride: int) -> Tensor:
        return pairs(part, "anchors", part.integer("num", 1, 1)) * stride

    def class_scores(self, logits: Tensor) -> Tensor:
        return logits.softmax(-1)

    def center_error(self, logits: Tensor, wanted: Tensor) -> Tensor:
        return (logits.sigmoid() - wanted).square().sum(1)

    def size_error(self, size: Tensor, wanted: Tensor) -> Tensor:
        return (size - wanted).square().sum(1)

    def losses(self, outputs: Sequence[Tensor], truth: Truth, size: Size) -> dict[str, Tensor]:
        """Squared errors of box and objectness and the cross entropy of the classes, summed up with
        the section's scales, means over the images.

        The target of objectness is the IoU with the object for a responsible prediction, and 0 for
        all others but those that overlap an object by more than ``thresh``.
        """
        flat, places = self.flat(outputs)
        index, kept = self.responsible(truth, outputs)
        image, true = truth.images[kept], truth.boxes[kept]
        chosen, at = flat[image, index], places.at(index)
        objectness = flat[..., 4].sigmoid()
        with torch.no_grad():
            boxes = places.decode(flat[..., :2].sigmoid(), flat[..., 2:4])
            empty = self.best_overlap(boxes, truth) <= self.thresh
            empty[image, index] = False
            found = box_convert(boxes[image, index], "cxcywh", "xyxy")[:, None]
            overlap = box_iou(found, box_convert(true, "cxcywh", "xyxy")[:, None])[:, 0, 0]
        error = self.box_error(chosen[:, :2], chosen[:, 2:4], at, true, size[0] * size[1])
        of_objects = (objectness[image, index] - overlap).square().sum()
        of_others = (objectness.square() * empty).sum()
        labels = F.cross_entropy(chosen[:, 5:], truth.labels[kept], reduction="sum")
        terms = {
            "loss_box_reg": self.coord_scale * error,
            "loss_objectness": self.object_scale * of_objects + self.noobject_scale * of_others,
            "loss_classifier": self.class_scale * labels,
        }
        return {name: term / truth.batch for name, term in terms.items()}
