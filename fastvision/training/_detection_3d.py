"""Detection of solid boxes in point clouds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ..data import collate_detection
from ._average_precision import OVERLAPS, AveragePrecision
from ._detection import Detection, gather
from ._processes import Processes

_SHOWN = 0.3  # least score of an answer in pictures


class Detection3d(Detection):
    """Solid boxes of any number of objects in each point cloud, by a model that is called as
    :class:`fastvision.models.detection.PointPillars`.

    Metrics are the average precisions at an overlap of 0.5, seen from above and in space.
    """

    metric_names = tuple(OVERLAPS)
    _option = "anchors, which are one per class"

    def collate(self, samples: Sequence[Any]) -> tuple[Any, Any]:
        """Clouds with their objects, and the objects."""
        clouds, targets = collate_detection(samples)
        known = [{key: target[key] for key in self._needed} for target in targets]
        return (clouds, known), known

    def metrics(self) -> dict[str, Any]:
        return {name: AveragePrecision(overlap) for name, overlap in OVERLAPS.items()}

    def update(self, metrics: dict[str, Any], outputs: Any, targets: Any) -> None:
        self._check_labels(outputs)
        for metric in metrics.values():
            metric.update(outputs, targets)

    def results(self, metrics: Mapping[str, Any], processes: Processes) -> dict[str, float]:
        for metric in metrics.values():
            gather(metric, processes)
        return {name: metric.compute() for name, metric in metrics.items()}

    def draw(self, axes: Any, image: Any, target: Any, output: Any) -> None:
        """The cloud ``image`` from above, lighter where it is higher, with a line from the center
        of each box to its front."""
        lowest = image[:, 2].argsort()
        x, y, z = image[lowest, :3].T.numpy()
        axes.scatter(x, y, c=z, s=0.1, cmap="viridis", vmin=0, vmax=2, linewidths=0)
        found = output["scores"] >= _SHOWN
        for boxes, color in ((target["boxes"], "lime"), (output["boxes"][found], "red")):
            for line in outlines(boxes):
                axes.plot(*line.T.numpy(), color=color, linewidth=0.6)
        reach = float(image[:, :2].abs().max()) if len(image) else 1.0
        axes.set_xlim(-reach, reach)
        axes.set_ylim(-reach, reach)
        axes.set_aspect("equal")


def outlines(boxes: Tensor) -> Tensor:
    """[n, 7, 2] points of a line around each box [n, 7] as seen from above: it begins in the middle
    of the front, comes back to it and ends in the center."""
    corners = boxes.new_tensor([(1, 0), (1, 1), (-1, 1), (-1, -1), (1, -1), (1, 0), (0, 0)]) / 2
    x, y = (corners * boxes[:, None, 3:5]).unbind(-1)
    cos, sin = boxes[:, 6:].cos(), boxes[:, 6:].sin()
    return torch.stack((cos * x - sin * y, sin * x + cos * y), -1) + boxes[:, None, :2]
