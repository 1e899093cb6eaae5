"""Optimizers and schedules of recipes."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

from torch import nn, optim

from .recipe import Section, call, named

_OPTIMIZERS = {"SGD": optim.SGD, "Adam": optim.Adam, "AdamW": optim.AdamW}


def constant(total: int, step: int, *, warmup: int = 0) -> float:
    return _warmth(step, warmup)


def cosine(total: int, step: int, *, warmup: int = 0, floor: float = 0.0) -> float:
    """Half a cosine from 1 to ``floor`` (Loshchilov and Hutter, SGDR, 2017)."""
    wave = (1 + math.cos(math.pi * _progress(total, step, warmup))) / 2
    return _warmth(step, warmup) * (floor + (1 - floor) * wave)


def poly(total: int, step: int, *, warmup: int = 0, power: float = 0.9) -> float:
    """(1 - progress)^power (Chen et al., DeepLab, 2017)."""
    return _warmth(step, warmup) * (1 - _progress(total, step, warmup)) ** power


def stepwise(
    total: int,
    step: int,
    *,
    warmup: int = 0,
    milestones: Sequence[float] = (0.5, 0.75),
    gamma: float = 0.1,
) -> float:
    """``gamma`` once more after each of the milestones, which are shares of all steps."""
    return _warmth(step, warmup) * gamma ** sum(step >= share * total for share in milestones)


_SCHEDULES: dict[str, Callable[..., float]] = {
    "constant": constant,
    "cosine": cosine,
    "poly": poly,
    "step": stepwise,
}


def optimizer_of(section: Section, model: nn.Module) -> optim.Optimizer:
    """The optimizer of a recipe, for the parameters of ``model`` that are trained.

    Raises:
        ValueError: an option is unknown or out of its range.
    """
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    kind = named(_OPTIMIZERS, "optimizer", section)
    optimizer: optim.Optimizer = call(kind, "optimizer", section, params=parameters)
    return optimizer


def schedule_of(
    section: Section, optimizer: optim.Optimizer, total: int
) -> optim.lr_scheduler.LRScheduler:
    """The learning rate's factor as a function of the step, for ``total`` of them.

    Raises:
        ValueError: an option is unknown.
    """
    function = named(_SCHEDULES, "schedule", section)
    call(function, "schedule", section, total=total, step=0)  # an error now names the option
    options: dict[str, Any] = {key: value for key, value in section.items() if key != "name"}
    factor = functools.partial(function, total, **options)
    return optim.lr_scheduler.LambdaLR(optimizer, factor)


def _warmth(step: int, warmup: int) -> float:
    """Grows by equal steps to 1, which is reached after ``warmup`` steps."""
    if warmup < 0:
        raise ValueError(f"warmup must be at least 0, got {warmup}")
    return min(1.0, (step + 1) / (warmup + 1))


def _progress(total: int, step: int, warmup: int) -> float:
    return min(1.0, max(0, step - warmup) / max(1, total - warmup))
