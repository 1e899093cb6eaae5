"""Metrics of a model over a data set."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from .._optional import optional
from ..models._weights import misfit, trained_weights
from ._checkpoint import find_checkpoint, load_checkpoint
from ._data import Draws, batches, check_classes, data_set, evaluation_order
from ._pictures import draw_samples
from ._processes import Processes
from ._run import Answers, model_of
from ._task import Task
from ._tasks import TASKS
from .recipe import Recipe, named, recipe_of


def evaluate(
    path: str | Path, *, device: str | None = None, samples: str | Path | None = None
) -> dict[str, float]:
    """Tests a trained model on the test data of its recipe.

    Args:
        path: folder of a run, of which the best weights are taken; or a checkpoint.
        device: "cpu" or "cuda"; None for a GPU if torch sees one.
        samples: PNG file for a page of samples and the model's answers.

    Returns:
        The loss and the task's metrics. Those are "accuracy" for classification and sequences (a
        share of samples or symbols), "miou" and "accuracy" (of pixels) for segmentation, "iou" (of
        boxes) and "accuracy" for localization. Detection has no loss, and COCO's mean average
        precision "map" and "map50" of boxes; instance segmentation has "mask_map" and "mask_map50"
        of masks, too. Detection in point clouds has the average precisions "bev_ap50" (of boxes
        seen from above) and "ap50_3d".

    Under torchrun the processes share the data, and all of them return the same. The result is over
    each sample once, whatever their number.

    Raises:
        FileNotFoundError: there is no checkpoint.
        ValueError: it is damaged, of a recipe that this version cannot read, or of other classes
            than the test data.
    """
    path = find_checkpoint(Path(path))
    checkpoint = load_checkpoint(path)
    recipe = recipe_of(checkpoint["recipe"])
    with Processes(device) as processes:
        test = data_set(recipe, "test")
        check_classes(checkpoint.get("classes", test.classes), test.classes)  # older ones lack them
        task = named(TASKS, "task", {"name": recipe.task})(test.classes)
        model = model_of(recipe)
        try:
            model.load_state_dict(trained_weights(checkpoint))
        except RuntimeError as error:
            raise ValueError(
                f"{path} does not fit the model of its recipe, {recipe.model['name']}: "
                f"{misfit(error)}"
            ) from error
        model.to(processes.device)
        draws, answers = Draws(test, recipe.seed), Answers(recipe, processes.device)
        metrics = measure(task, model, draws, recipe, processes, answers)
        if samples is not None and processes.is_first:
            draw_samples(Path(samples), task, model, draws, answers)
    return metrics


@torch.no_grad()
def measure(
    task: Task,
    model: nn.Module,
    draws: Draws,
    recipe: Recipe,
    processes: Processes,
    answers: Answers,
) -> dict[str, float]:
    """Metrics of ``model`` over ``draws`` in all processes, and its loss if it has one."""
    metrics = task.metrics()
    loss = optional("torchmetrics", "train").MeanMetric(nan_strategy="disable")
    for metric in (loss, *metrics.values()):
        metric.to(processes.device)
    order = evaluation_order(
        len(draws),
        -(-recipe.batch_size // (recipe.accumulate * processes.count)),
        processes.rank,
        processes.count,
    )
    was_training = model.training
    model.eval()
    for inputs, targets in batches(draws, order, task.collate, recipe.workers):
        outputs, targets = answers(model, inputs), answers.moved(targets)
        if task.tests_loss:
            loss.update(task.loss(outputs, targets), _count(targets))
        task.update(metrics, outputs, targets)
    model.train(was_training)
    losses = {"loss": float(loss.compute())} if task.tests_loss else {}
    return {**losses, **task.results(metrics, processes)}


def _count(targets: Any) -> int:
    """Number of samples in a batch."""
    leaves: Iterable[Tensor] = tree_leaves(targets)
    return len(next(iter(leaves)))
