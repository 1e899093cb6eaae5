"""The tasks by name, and those with one answer for each image, pixel or element."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .._optional import optional
from ..data import IGNORE
from ..models import localization_loss
from ..models.sequence import tasks as sequence_tasks
from ._detection import Detection, InstanceSegmentation
from ._detection_3d import Detection3d
from ._task import Task, accuracy, fit, outline, show


class Segmentation(Task):
    """A class for every pixel: scores [N, classes, H, W] in the model's "out".

    Targets are class maps [N, H, W], in which 255 does not count.
    """

    metric_names = ("miou", "accuracy")

    def loss(self, outputs: Any, targets: Tensor) -> Tensor:
        """Cross entropy: the mean over an image's pixels that count, then over images.

        With an auxiliary head "aux", as torchvision's models have, half of its loss is added.
        """
        self._check_scores(outputs["out"], 1)
        loss = _pixel_loss(outputs["out"], targets)
        return loss + 0.5 * _pixel_loss(outputs["aux"], targets) if "aux" in outputs else loss

    def metrics(self) -> dict[str, Any]:
        kinds = optional("torchmetrics.classification", "train")
        count = len(self.classes)
        return {
            "miou": kinds.MulticlassJaccardIndex(count, ignore_index=IGNORE),
            "accuracy": accuracy(count, ignore_index=IGNORE),
        }

    def update(self, metrics: dict[str, Any], outputs: Any, targets: Any) -> None:
        super().update(metrics, outputs["out"], targets)

    def draw(self, axes: Any, image: Any, target: Any, output: Any) -> None:
        answer = output["out"].argmax(0)
        answer[target == IGNORE] = 0
        truth = torch.where(target == IGNORE, 0, target)
        show(axes, image)
        height, width = truth.shape
        maps = torch.cat((truth, answer), 1).numpy()
        axes.imshow(
            maps,
            cmap="tab20",
            vmin=0,
            vmax=19,
            interpolation="nearest",
            extent=(width, 3 * width, height, 0),
        )
        axes.set_xlim(0, 3 * width)
        axes.set_title("image, truth, answer", fontsize=8)


class Localization(Task):
    """The class and the box of the one object in each image."""

    metric_names = ("iou", "accuracy")

    def __init__(self, classes: Sequence[str]) -> None:
        super().__init__(classes[1:])  # there is always an object, so no background

    def collate(self, samples: Sequence[Any]) -> tuple[Any, Any]:
        """Images, and boxes [N, 4] in units of the image with labels [N] from 0.

        Raises:
            ValueError: a sample has not exactly one object.
        """
        images, boxes, labels = [], [], []
        for image, target in samples:
            if len(target["labels"]) != 1:
                raise ValueError(
                    f"localization needs one object per image, image {target['image_id']} has "
                    f"{len(target['labels'])}"
                )
            height, width = image.shape[-2:]
            boxes.append(target["boxes"][0] / torch.tensor((width, height, width, height)))
            labels.append(target["labels"][0] - 1)
            images.append(image)
        return torch.stack(images), (torch.stack(boxes), torch.stack(labels))

    def loss(self, outputs: Any, targets: Any) -> Tensor:
        self._check_scores(outputs[1], 1)
        return localization_loss(*outputs, *targets).total

    def metrics(self) -> dict[str, Any]:
        mean = optional("torchmetrics", "train").MeanMetric(nan_strategy="disable")
        return {"iou": mean, "accuracy": accuracy(len(self.classes))}

    def update(self, metrics: dict[str, Any], outputs: Any, targets: Any) -> None:
        iou = optional("torchmetrics.functional.detection", "train").intersection_over_union
        pairs = iou(outputs[0].float(), targets[0], aggregate=False)
        metrics["iou"].update(pairs.diagonal())
        metrics["accuracy"].update(outputs[1].argmax(1), targets[1])

    def draw(self, axes: Any, image: Any, target: Any, output: Any) -> None:
        super().draw(axes, image, target[1], output[1])
        height, width = image.shape[-2:]
        for box, color in ((target[0], "lime"), (output[0], "red")):
            outline(axes, box * torch.tensor((width, height, width, height)), color)
        fit(axes, image)


class SequenceTask(Task):
    """A symbol for every element of a sequence."""

    _option = "symbols (WaveNet: model.levels)"

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        self._check_scores(outputs, 2)
        return sequence_tasks.loss(outputs, targets)

    def update(self, metrics: dict[str, Any], outputs: Any, targets: Any) -> None:
        metrics["accuracy"].update(outputs.argmax(-1).flatten(), targets.flatten())

    def draw(self, axes: Any, image: Any, target: Any, output: Any) -> None:
        axes.plot(target.numpy(), "o", color="lime", markersize=5)
        axes.plot(output.argmax(-1).numpy(), ".", color="black", markersize=3)


TASKS: dict[str, type[Task]] = {
    "classification": Task,
    "segmentation": Segmentation,
    "localization": Localization,
    "detection": Detection,
    "instance_segmentation": InstanceSegmentation,
    "detection_3d": Detection3d,
    "sequence": SequenceTask,
}


def _pixel_loss(scores: Tensor, targets: Tensor) -> Tensor:
    losses = F.cross_entropy(scores, targets, ignore_index=IGNORE, reduction="none")
    counts = (targets != IGNORE).sum((1, 2)).clamp(min=1)
    return (losses.sum((1, 2)) / counts).mean()
