"""What the loop has to know about a task: batches, loss, metrics and pictures."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch.nn.functional as F
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.data import default_collate

from .._optional import optional
from ._processes import Processes


class Task:
    """Classification, and what other tasks have in common with it.

    Args:
        classes: names of the labels.

    A loss is a mean over the samples of a batch, so that parts of a batch weigh alike.
    """

    metric_names: tuple[str, ...] = ("accuracy",)
    tests_loss = True  # whether answers to test data have a loss
    _option = "num_classes"  # of models, the number of their scores

    def __init__(self, classes: Sequence[str]) -> None:
        self.classes = classes

    def collate(self, samples: Sequence[Any]) -> tuple[Any, Any]:
        """Inputs of the model and targets of the loss."""
        inputs, targets = default_collate(list(samples))
        return inputs, targets

    def loss(self, outputs: Any, targets: Any) -> Tensor:
        """Cross entropy; with auxiliary classifiers, as GoogLeNet's, 0.3 of theirs each."""
        scores, *auxiliary = (outputs,) if isinstance(outputs, Tensor) else outputs
        self._check_scores(scores, 1)
        losses = [F.cross_entropy(part, targets) for part in auxiliary if part is not None]
        return F.cross_entropy(scores, targets) + 0.3 * sum(losses)

    def metrics(self) -> dict[str, Any]:
        """New metrics of torchmetrics; all are the better the higher."""
        return {"accuracy": accuracy(len(self.classes))}

    def update(self, metrics: dict[str, Any], outputs: Any, targets: Any) -> None:
        for metric in metrics.values():
            metric.update(outputs.argmax(1), targets)

    def results(self, metrics: Mapping[str, Any], processes: Processes) -> dict[str, float]:
        """Values of the metrics over all processes."""
        return {name: float(metric.compute()) for name, metric in metrics.items()}

    def samples(self, inputs: Any, targets: Any, outputs: Any) -> Iterator[tuple[Any, ...]]:
        """Image, target and answer of each sample in a batch, as :meth:`draw` takes them."""
        parts = (inputs, targets, outputs)
        for index in range(len(tree_leaves(targets)[0])):
            yield tuple(tree_map(lambda x, i=index: x[i], part) for part in parts)

    def _check_scores(self, scores: Tensor, dim: int) -> None:
        """Metrics would count a class that there is not as another one."""
        if scores.shape[dim] != len(self.classes):
            raise ValueError(
                f"the model has {scores.shape[dim]} scores, but the data {len(self.classes)} "
                f"classes; set model.{self._option}"
            )

    def draw(self, axes: Any, image: Any, target: Any, output: Any) -> None:
        """One sample, its target and the model's answer, into matplotlib's axes."""
        show(axes, image)
        label, answer = int(target), int(output.argmax())
        axes.set_title(
            f"{self.classes[answer]} (is {self.classes[label]})",
            color="black" if label == answer else "red",
            fontsize=8,
        )


def accuracy(classes: int, **options: Any) -> Any:
    kind = optional("torchmetrics.classification", "train").MulticlassAccuracy
    return kind(classes, average="micro", **options)


def show(axes: Any, image: Tensor) -> None:
    low, high = image.min(), image.max()
    pixels = ((image - low) / (high - low).clamp(min=1e-6)).permute(1, 2, 0)
    axes.imshow(pixels.squeeze(-1).numpy(), cmap="gray")


def outline(axes: Any, box: Tensor, color: str) -> None:
    """The box (x1, y1, x2, y2) in pixels."""
    x1, y1, x2, y2 = box.tolist()
    axes.plot((x1, x2, x2, x1, x1), (y1, y1, y2, y2, y1), color=color, linewidth=1)


def fit(axes: Any, image: Tensor) -> None:
    """Ends the axes where the image does, after lines that leave it."""
    height, width = image.shape[-2:]
    axes.set_xlim(0, width)
    axes.set_ylim(height, 0)
