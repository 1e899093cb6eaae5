"""The state of a training run."""

from __future__ import annotations

import contextlib
import math
from typing import Any

import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils._pytree import tree_map

from ..models import get_model_builder
from ..models._weights import not_finite
from ._data import Draws, TrainingOrder, check_classes, data_set
from ._processes import Processes
from ._random import random_state, seed_all, set_random_state
from ._schedules import optimizer_of, schedule_of
from ._tasks import TASKS
from .recipe import Recipe, call, named

_AMP = {"bf16": torch.bfloat16, "fp16": torch.float16}


def model_of(recipe: Recipe) -> nn.Module:
    """The untrained model of a recipe.

    Raises:
        ValueError: there is no such model, it has no such option, or its weights do not fit.
    """
    builder = get_model_builder(str(recipe.model.get("name")))
    try:
        model: nn.Module = call(builder, "model", recipe.model)
    except RuntimeError as error:
        if recipe.model.get("weights") is None:
            raise
        raise ValueError(f"model.weights: {error}") from error
    return model


class Answers:
    """Calls models of one recipe: on its device, in its precision, with float32 results."""

    def __init__(self, recipe: Recipe, device: torch.device) -> None:
        self.device = device
        self.dtype = _AMP.get(recipe.amp)

    def __call__(self, model: nn.Module, inputs: Any) -> Any:
        inputs = self.moved(inputs)
        with torch.autocast(self.device.type, self.dtype, enabled=self.dtype is not None):
            outputs = model(*inputs) if isinstance(inputs, (list, tuple)) else model(inputs)
        return tree_map(lambda x: x.float() if x.is_floating_point() else x, outputs)

    def moved(self, tensors: Any) -> Any:
        return tree_map(lambda x: x.to(self.device, non_blocking=True), tensors)


class Run:
    """Model, optimizer and all else that changes from step to step.

    Args:
        recipe: what to train.
        processes: that train it together.

    Raises:
        ValueError: the recipe names something unknown, or with unknown options.
    """

    def __init__(self, recipe: Recipe, processes: Processes) -> None:
        self.recipe = recipe
        self.processes = processes
        train, test = data_set(recipe, "train"), data_set(recipe, "test")
        check_classes(train.classes, test.classes)
        self.labels = {"classes": list(train.classes)}
        if hasattr(train, "category_ids"):  # COCO's, which results refer to
            self.labels["category_ids"] = list(train.category_ids)
        self.draws, self.test_draws = Draws(train, recipe.seed), Draws(test, recipe.seed)
        self.order = TrainingOrder(
            len(train),
            recipe.batch_size,
            recipe.accumulate,
            recipe.seed,
            processes.rank,
            processes.count,
        )
        self.total = recipe.steps or (recipe.epochs or 0) * self.order.steps_per_epoch
        self.task = named(TASKS, "task", {"name": recipe.task})(train.classes)
        self.metric = recipe.bar.metric if recipe.bar is not None else self.task.metric_names[0]
        if self.metric not in self.task.metric_names:
            known = ", ".join(self.task.metric_names)
            raise ValueError(f"bar.metric must be one of {known}, got {self.metric!r}")

        seed_all(recipe.seed)
        # as the feature maps; otherwise each step converts the weights
        model = model_of(recipe).to(processes.device)
        self.model = model.to(memory_format=torch.channels_last)
        self.forward = processes.wrapped(self.model, recipe.sync_batch_norm)
        self.answers = Answers(recipe, processes.device)
        self.optimizer = optimizer_of(recipe.optimizer, self.model)
        self.schedule = schedule_of(recipe.schedule, self.optimizer, self.total)
        self.scaler = torch.amp.GradScaler(processes.device.type, enabled=recipe.amp == "fp16")
        self.average: AveragedModel | None = None
        if recipe.ema is not None:
            mean = get_ema_multi_avg_fn(recipe.ema)
            self.average = AveragedModel(self.model, multi_avg_fn=mean, use_buffers=True)
        seed_all(recipe.seed, processes.rank)  # for dropout, which differs between processes

        self.step = 0
        self.seconds = 0.0  # of training, without breaks
        self.metrics: dict[str, float] = {}  # of the last evaluation
        self.best = -math.inf

    @property
    def epoch(self) -> int:
        return self.step // self.order.steps_per_epoch

    @property
    def evaluated(self) -> nn.Module:
        """The model that is tested and kept: the averaged one, if there is one."""
        return self.model if self.average is None else self.average.module

    def is_evaluation_due(self) -> bool:
        between = self.recipe.evaluate_epochs * self.order.steps_per_epoch
        return self.step % between == 0 or self.step == self.total

    def gradients_shared(self, last: bool) -> contextlib.AbstractContextManager[Any]:
        """Processes exchange gradients once per step, with its ``last`` part."""
        if last or self.forward is self.model:
            return contextlib.nullcontext()
        return self.forward.no_sync()  # type: ignore[operator] # of DistributedDataParallel

    def broken(self) -> list[str]:
        """Names of parameters and buffers that are not finite."""
        return not_finite(self.model.state_dict())

    def state(self) -> dict[str, Any]:
        """What :meth:`restore` needs to go on as if there had been no break; all processes have to
        call it."""
        return {
            "recipe": self.recipe.as_dict(),
            **self.labels,
            "step": self.step,
            "seconds": self.seconds,
            "metrics": self.metrics,
            "best": self.best,
            "model": self.model.state_dict(),
            "average": None if self.average is None else self.average.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "schedule": self.schedule.state_dict(),
            "scaler": self.scaler.state_dict(),
            "random": self.processes.gathered(random_state()),
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Takes over what :meth:`state` has returned.

        Raises:
            ValueError: another number of processes has made it.
        """
        count = len(state["random"])
        if count != self.processes.count:
            raise ValueError(
                f"the checkpoint is of a run of {count} processes, got {self.processes.count}"
            )
        self.step, self.seconds = state["step"], state["seconds"]
        self.metrics, self.best = state["metrics"], state["best"]
        self.model.load_state_dict(state["model"])
        if self.average is not None:
            self.average.load_state_dict(state["average"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.schedule.load_state_dict(state["schedule"])
        self.scaler.load_state_dict(state["scaler"])
        set_random_state(state["random"][self.processes.rank])

    def best_weights(self) -> dict[str, Any]:
        """What :func:`fastvision.training.evaluate` needs."""
        return {
            "recipe": self.recipe.as_dict(),
            **self.labels,
            "step": self.step,
            "metrics": self.metrics,
            "model": self.evaluated.state_dict(),
        }
