"""The heads of YOLOv2 and YOLOv3: boxes relative to anchors in every cell of one or more maps.

Redmon and Farhadi, YOLO9000: better, faster, stronger, 2017; YOLOv3: an incremental improvement,
2018.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ....ops import (
    box_convert,
    box_iou,
    complete_box_iou_loss,
    distance_box_iou_loss,
    generalized_box_iou_loss,
)
from ...darknet.config import Section
from ...darknet.network import Head
from .._constants import moved
from .._selection import take
from ._truth import Truth, first_of_each
from .anchors import size_iou

Size = tuple[int, int]
BOX_LOSSES = {
    "squared": None,
    "giou": generalized_box_iou_loss,
    "diou": distance_box_iou_loss,
    "ciou": complete_box_iou_loss,
}


class Places(NamedTuple):
    """Where each of P predictions is made: ``cells`` [P, 2] (column, row), ``priors`` [P, 2] width
    and height of the anchor and ``strides`` [P, 1] of the map, both in pixels of the input."""

    cells: Tensor
    priors: Tensor
    strides: Tensor

    def at(self, index: Tensor) -> Places:
        return Places(*(part[index] for part in self))

    def decode(self, center: Tensor, size: Tensor) -> Tensor:
        """(center, width, height) [..., 4] in pixels; ``center`` in units of a cell from its
        corner, ``size`` the logarithm of the share of the anchor."""
        middle = (center + self.cells) * self.strides
        return torch.cat((middle, self.priors * size.exp()), -1)

    def encode(self, boxes: Tensor) -> tuple[Tensor, Tensor]:
        """The inverse."""
        center = boxes[..., :2] / self.strides - self.cells
        return center, (boxes[..., 2:] / self.priors).log()


class AnchorHead:
    """Meaning and loss of maps [N, A·(5 + C), H, W]: for each anchor (x, y, w, h, objectness) and
    the scores of C classes.

    x and y are logits of the center's place in the cell (direct location prediction), w and h
    logarithms of shares of the anchor.

    Args:
        heads: the [region] section of a network, or its [yolo] sections.
        size: (H, W) that the network is configured for.
        box_loss: "squared" for the papers' errors of the four numbers; "giou", "diou" or "ciou".
    """

    def __init__(self, heads: Sequence[Head], size: Size, box_loss: str = "squared") -> None:
        if box_loss not in BOX_LOSSES:
            raise ValueError(f"box_loss must be one of {list(BOX_LOSSES)}, got {box_loss!r}")
        self.box_loss = box_loss
        self.classes = heads[0].section.integer("classes", 20, 1)
        self.anchors: list[Tensor] = []  # [A, 2] of each map
        self.strides: list[int] = []
        for part, (channels, rows, columns) in heads:
            if part.integer("classes", 20, 1) != self.classes:
                part.error(f"has other classes than the {self.classes} of the first", "classes")
            stride = size[0] // rows
            if (rows * stride, columns * stride) != size:
                part.error(f"gets maps of {(rows, columns)}, which do not divide images of {size}")
            anchors = self.anchors_of(part, stride)
            if len(anchors) * (5 + self.classes) != channels:
                part.error(
                    f"needs {len(anchors)} x (5 + {self.classes}) channels, but gets {channels}"
                )
            self.anchors.append(anchors)
            self.strides.append(stride)

    def anchors_of(self, part: Section, stride: int) -> Tensor:
        """[A, 2] in pixels of the input."""
        raise NotImplementedError

    def losses(self, outputs: Sequence[Tensor], truth: Truth, size: Size) -> dict[str, Tensor]:
        raise NotImplementedError

    def flat(self, outputs: Sequence[Tensor]) -> tuple[Tensor, Places]:
        """Predictions [N, P, 5 + C] of all maps, and their places."""
        parts, places = [], []
        first = outputs[0]
        copies = [moved(anchors, first.dtype, first.device) for anchors in self.anchors]
        for maps, anchors, stride in zip(outputs, copies, self.strides, strict=True):
            n, _, rows, columns = maps.shape
            parts.append(maps.permute(0, 2, 3, 1).reshape(n, -1, 5 + self.classes))
            y, x = (torch.arange(k, device=maps.device, dtype=maps.dtype) for k in (rows, columns))
            cells = torch.stack((x.repeat(rows), y.repeat_interleave(columns)), 1)
            places.append(
                Places(
                    cells.repeat_interleave(len(anchors), 0),
                    anchors.repeat(rows * columns, 1),
                    anchors.new_full((rows * columns * len(anchors), 1), stride),
                )
            )
        return torch.cat(parts, 1), Places(*(torch.cat(part) for part in zip(*places, strict=True)))

    def class_scores(self, logits: Tensor) -> Tensor:
        raise NotImplementedError

    def predict(self, outputs: Sequence[Tensor], size: Size, limit: int) -> tuple[Tensor, Tensor]:
        """Corners [N, K, 4] in pixels of the input and the scores of all classes [N, K, C], of the
        ``limit`` predictions of each image with the highest objectness."""
        flat, places = self.flat(outputs)
        objectness = flat[..., 4].nan_to_num(nan=-torch.inf)  # NaN would be the largest
        best = objectness.topk(min(limit, flat.shape[1]), 1, sorted=False).indices
        flat = take(flat, best)
        boxes = places.at(best).decode(flat[..., :2].sigmoid(), flat[..., 2:4])
        scores = flat[..., 4:5].sigmoid() * self.class_scores(flat[..., 5:])
        return box_convert(boxes, "cxcywh", "xyxy"), scores

    def responsible(self, truth: Truth, outputs: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """Responsible predictions [T'] and their objects [T']. An object takes the prediction of
        the anchor with the best fitting shape, in the cell of its center. If several objects want
        one prediction, the first gets it."""
        sizes = [maps.shape[2:] for maps in outputs]
        table, base = [], 0  # of each anchor: stride, columns, rows, anchors of its map, place
        for level, step, (height, width) in zip(self.anchors, self.strides, sizes, strict=True):
            table += [(step, width, height, len(level), base + i) for i in range(len(level))]
            base += height * width * len(level)
        anchor = size_iou(truth.boxes[:, 2:], torch.cat(self.anchors).to(truth.boxes)).argmax(1)
        stride, columns, rows, count, place = torch.tensor(table, device=truth.boxes.device)[
            anchor
        ].unbind(1)
        column, row = (truth.boxes[:, :2] / stride[:, None]).floor().long().unbind(1)
        column = column.clamp(min=0).minimum(columns - 1)
        row = row.clamp(min=0).minimum(rows - 1)
        place = place + (row * columns + column) * count
        kept = first_of_each(truth.images * base + place, truth.batch * base)
        return place[kept], kept.nonzero()[:, 0]

    def best_overlap(self, boxes: Tensor, truth: Truth) -> Tensor:
        """[N, P] the largest IoU of predicted boxes [N, P, 4] (center, width, height) with an
        object of the image."""
        if truth.padded.shape[1] == 0:
            return boxes.new_zeros(boxes.shape[:2])
        return box_iou(box_convert(boxes, "cxcywh", "xyxy"), truth.padded).amax(2)

    def box_error(
        self, center: Tensor, size: Tensor, places: Places, true: Tensor, area: float
    ) -> Tensor:
        """The box loss of predictions [T], summed up; the errors of small boxes weigh up to twice
        as much as those of boxes as large as the input, as in Darknet.

        Args:
            center: [T, 2] logits.
            size: [T, 2] logarithms.
            places: of the predictions.
            true: [T, 4] (center, width, height).
            area: of the input.
        """
        loss = BOX_LOSSES[self.box_loss]
        if loss is not None:
            boxes = box_convert(places.decode(center.sigmoid(), size), "cxcywh", "xyxy")
            error = loss(boxes, box_convert(true, "cxcywh", "xyxy"), reduction="none")
        else:
            wanted = places.encode(true)
            error = self.center_error(center, wanted[0]) + self.size_error(size, wanted[1])
        weight = 2 - true[:, 2:].prod(1) / area
        return (weight * error).sum()

    def center_error(self, logits: Tensor, wanted: Tensor) -> Tensor:
        raise NotImplementedError

    def size_error(self, size: Tensor, wanted: Tensor) -> Tensor:
        raise NotImplementedError


def pairs(part: Section, name: str, count: int) -> Tensor:
    """[count, 2] of numbers in one option."""
    numbers = part.numbers(name)
    if len(numbers) != 2 * count or min(numbers) <= 0:
        part.error(f"{name} must be {count} pairs of positive numbers, got {numbers}", name)
    return torch.tensor(numbers).view(count, 2)
