"""The head of YOLOv1: boxes and classes of every cell of a grid.

Redmon, Divvala, Girshick and Farhadi, You only look once: unified, real-time object detection,
2016.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from ....ops import box_convert, box_iou
from ...darknet.network import Head
from ._truth import Truth, first_of_each

Size = tuple[int, int]


class GridHead:
    """Meaning and loss of [N, S·S·(C + 5·B)] outputs, in Darknet's order: the classes of all cells,
    the confidences of all boxes, and the boxes (x, y, √w, √h).

    x and y are in units of a cell from its corner, w and h of the image.

    Args:
        heads: the one [detection] section of a network.
    """

    def __init__(self, heads: Sequence[Head]) -> None:
        part, shape = heads[-1]
        if len(heads) > 1:
            part.error("cannot be one of several heads")
        if part.integer("sqrt", 0) != 1 or part.integer("softmax", 0) != 0:
            part.error("must have sqrt=1 and softmax=0, as in the paper")
        self.side = part.integer("side", 7, 1)
        self.boxes = part.integer("num", 1, 1)
        self.classes = part.integer("classes", 1, 1)
        self.object_scale = part.number("object_scale", 1)
        self.noobject_scale = part.number("noobject_scale", 1)
        self.class_scale = part.number("class_scale", 1)
        self.coord_scale = part.number("coord_scale", 1)
        needed = self.side**2 * (self.classes + 5 * self.boxes)
        if shape[0] * shape[1] * shape[2] != needed:
            part.error(f"needs {needed} inputs, but gets [C, H, W] = {list(shape)}")

    def parts(self, outputs: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Class probabilities [N, S·S, C], confidences [N, S·S, B] and boxes [N, S·S, B, 4]."""
        cells = self.side**2
        outputs = outputs.flatten(1)
        sizes = (cells * self.classes, cells * self.boxes, cells * self.boxes * 4)
        classes, confidences, boxes = outputs.split(sizes, 1)
        return (
            classes.unflatten(1, (cells, self.classes)),
            confidences.unflatten(1, (cells, self.boxes)),
            boxes.unflatten(1, (cells, self.boxes, 4)),
        )

    def decode(self, boxes: Tensor, cells: Tensor) -> Tensor:
        """(center, width, height) in units of the image of boxes [..., 4] in cells [..., 2]
        (column, row)."""
        return torch.cat(((boxes[..., :2] + cells) / self.side, boxes[..., 2:].square()), -1)

    def encode(self, boxes: Tensor) -> tuple[Tensor, Tensor]:
        """The inverse: outputs [T, 4] for (center, width, height) in units of the image, and the
        cells [T, 2] of the centers."""
        center = boxes[:, :2] * self.side
        cells = center.floor().clamp(0, self.side - 1)
        return torch.cat((center - cells, boxes[:, 2:].sqrt()), 1), cells

    def predict(self, outputs: Sequence[Tensor], size: Size, limit: int) -> tuple[Tensor, Tensor]:
        """Corners [N, S·S·B, 4] in pixels of an input of this size, and the scores of all classes
        [N, S·S·B, C]: confidence times probability."""
        classes, confidences, boxes = self.parts(outputs[0])
        line = torch.arange(self.side, device=boxes.device, dtype=boxes.dtype)
        cells = torch.cartesian_prod(line, line).flip(1)[:, None]
        height, width = size
        x, y, w, h = self.decode(boxes, cells).unbind(-1)
        boxes = torch.stack((x * width, y * height, w * width, h * height), -1)
        corners = box_convert(boxes, "cxcywh", "xyxy")
        scores = classes[:, :, None] * confidences[..., None]
        return corners.flatten(1, 2), scores.flatten(1, 2)

    def losses(self, outputs: Sequence[Tensor], truth: Truth, size: Size) -> dict[str, Tensor]:
        """The five terms of the paper's sum of squares (equation 3), means over the images.

        The box of an object's cell that overlaps it most is responsible for it (while none does,
        the closest one), and its confidence should be the overlap. Of several objects with their
        centers in one cell the first counts.
        """
        classes, confidences, boxes = self.parts(outputs[0])
        height, width = size
        true = truth.boxes / truth.boxes.new_tensor((width, height, width, height))
        wanted, cells = self.encode(true)
        place = (cells[:, 1] * self.side + cells[:, 0]).long()
        key = truth.images * self.side**2 + place
        kept = first_of_each(key, truth.batch * self.side**2)
        image, place, true, wanted = truth.images[kept], place[kept], true[kept], wanted[kept]
        candidates = boxes[image, place]  # [T, B, 4]
        with torch.no_grad():
            decoded = self.decode(candidates, cells[kept][:, None])
            corners, true_corners = (box_convert(b, "cxcywh", "xyxy") for b in (decoded, true))
            overlap = box_iou(corners, true_corners[:, None])[..., 0]
            far = (decoded - true[:, None]).square().sum(-1)
            best = torch.where(overlap.amax(1) > 0, overlap.argmax(1), far.argmin(1))
            overlap = overlap.gather(1, best[:, None])[:, 0]
        box = candidates[torch.arange(len(best), device=best.device), best]
        responsible = torch.zeros_like(confidences, dtype=torch.bool)
        responsible[image, place, best] = True
        labels = F.one_hot(truth.labels[kept], self.classes).to(classes.dtype)
        error = (box - wanted).square()
        terms = {
            "loss_center": self.coord_scale * error[:, :2].sum(),
            "loss_size": self.coord_scale * error[:, 2:].sum(),
            "loss_objectness": self.object_scale
            * (confidences[image, place, best] - overlap).square().sum(),
            "loss_no_object": self.noobject_scale * confidences[~responsible].square().sum(),
            "loss_classifier": self.class_scale * (classes[image, place] - labels).square().sum(),
        }
        return {name: term / truth.batch for name, term in terms.items()}
