"""Detection: boxes, and masks, of any number of objects in each image."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from .._optional import optional
from ..data import collate_detection
from ._processes import Processes
from ._task import Task, fit, outline, show

_LEFT_OUT = ("iscrowd", "difficult")  # neither trained on nor counted
_SHOWN = 0.5  # least score of an answer in pictures


class Detection(Task):
    """Boxes and labels, by a detector of the convention of :mod:`fastvision.models.detection`.

    Called with images and targets, the model returns losses in training, whose sum is the loss. In
    evaluation it returns detections and no loss, so that test data has none.

    Metrics are COCO's mean average precision (Lin et al., ECCV 2014): over ten thresholds of
    overlap from 0.5 to 0.95, and at 0.5. Crowds, and VOC's difficult objects, are not trained on;
    to find them is neither right nor wrong.
    """

    metric_names: tuple[str, ...] = ("map", "map50")
    tests_loss = False
    _kinds: tuple[str, ...] = ("bbox",)
    _needed: tuple[str, ...] = ("boxes", "labels")

    def collate(self, samples: Sequence[Any]) -> tuple[Any, Any]:
        """Images with the objects to train on, and all objects.

        Raises:
            ValueError: a target lacks something.
        """
        images, targets = collate_detection(samples)
        wanted, known = [], []
        for target in targets:
            missing = [name for name in self._needed if name not in target]
            if missing:
                raise ValueError(
                    f"a target needs {', '.join(self._needed)}, but image {target['image_id']} has "
                    f"no {missing[0]}; set data.{missing[0]} = true if the data has them"
                )
            objects = {name: target[name] for name in self._needed}
            crowd = torch.zeros_like(target["labels"], dtype=torch.bool)
            for name in _LEFT_OUT:
                crowd = crowd | target[name] if name in target else crowd
            wanted.append({name: value[~crowd] for name, value in objects.items()})
            known.append({**objects, "iscrowd": crowd.long()})
        return (images, wanted), known

    def loss(self, outputs: Any, targets: Any) -> Tensor:
        total: Tensor = sum(outputs.values())
        return total

    def metrics(self) -> dict[str, Any]:
        kind = optional("torchmetrics.detection", "train").MeanAveragePrecision
        metric = kind(iou_type=self._kinds, sync_on_compute=False)
        metric.warn_on_many_detections = False  # COCO counts the best 100, too
        return {"map": metric}

    def update(self, metrics: dict[str, Any], outputs: Any, targets: Any) -> None:
        self._check_labels(outputs)
        metrics["map"].update([self._answer(output) for output in outputs], targets)

    def _check_labels(self, outputs: Sequence[Mapping[str, Tensor]]) -> None:
        largest = max((int(x["labels"].max()) for x in outputs if len(x["labels"])), default=0)
        if largest >= len(self.classes):
            raise ValueError(
                f"the model found a label {largest}, but the data has {len(self.classes)} classes "
                f"with the background; set model.{self._option}"
            )

    def _answer(self, output: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {name: output[name] for name in ("boxes", "scores", "labels")}

    def results(self, metrics: Mapping[str, Any], processes: Processes) -> dict[str, float]:
        # torchmetrics would wait for ever where processes have different numbers of images
        metric = metrics["map"]
        gather(metric, processes)
        found = metric.compute()
        prefixes = ("",) if len(self._kinds) == 1 else tuple(f"{kind}_" for kind in self._kinds)
        keys = [prefix + name for prefix in prefixes for name in ("map", "map_50")]
        return {name: float(found[key]) for name, key in zip(self.metric_names, keys, strict=True)}

    def samples(self, inputs: Any, targets: Any, outputs: Any) -> Iterator[tuple[Any, ...]]:
        yield from zip(inputs[0], targets, outputs, strict=True)

    def draw(self, axes: Any, image: Any, target: Any, output: Any) -> None:
        show(axes, image)
        for box in target["boxes"]:
            outline(axes, box, "lime")
        found = output["scores"] >= _SHOWN
        for box, label in zip(output["boxes"][found], output["labels"][found], strict=True):
            outline(axes, box, "red")
            axes.text(*box[:2].tolist(), self.classes[int(label)], color="red", fontsize=7)
        fit(axes, image)
        names = (self.classes[int(label)] for label in target["labels"])
        axes.set_title(" ".join(names), fontsize=8)


def gather(metric: Any, processes: Processes) -> None:
    """Gives a metric the images of all processes, in the order of the data: its ``metric_state`` is
    of lists with an element per image."""
    states = processes.gathered(metric.metric_state)
    for name in states[0]:
        shares = itertools.zip_longest(*(state[name] for state in states))
        images = [image for share in shares for image in share if image is not None]
        setattr(metric, name, images)


class InstanceSegmentation(Detection):
    """Boxes, labels and masks."""

    metric_names = ("map", "map50", "mask_map", "mask_map50")
    _kinds = ("bbox", "segm")
    _needed = ("boxes", "labels", "masks")

    def _answer(self, output: Mapping[str, Tensor]) -> dict[str, Tensor]:
        masks = output["masks"][:, 0] > 0.5
        return {**super()._answer(output), "masks": masks}

    def update(self, metrics: dict[str, Any], outputs: Any, targets: Any) -> None:
        targets = [{**target, "masks": target["masks"].bool()} for target in targets]
        super().update(metrics, outputs, targets)

    def draw(self, axes: Any, image: Any, target: Any, output: Any) -> None:
        super().draw(axes, image, target, output)
        for mask in output["masks"][output["scores"] >= _SHOWN, 0]:
            axes.contour(mask.numpy(), (0.5,), colors="yellow", linewidths=0.7)
