"""Curves of a run, and pages of samples, as PNG."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils._pytree import tree_map

from .._optional import optional
from ._checkpoint import write_whole
from ._data import Draws
from ._logs import EVALUATION, TRAINING, metrics_in, read_table
from ._run import Answers
from ._task import Task

_SIDE = 4  # samples in a row, and rows


def draw_curves(folder: Path) -> None:
    """Writes curves.png of the CSV files in ``folder``."""
    training, evaluation = read_table(folder / TRAINING), read_table(folder / EVALUATION)
    names = metrics_in(evaluation)
    figure = optional("matplotlib.figure", "train").Figure((4 * (1 + len(names)), 3))
    axes = figure.subplots(1, 1 + len(names), squeeze=False)[0]
    _plot(axes[0], training, "loss", label="training")
    if "loss" in evaluation[0]:
        _plot(axes[0], evaluation, "loss", label="test", marker=".")
    axes[0].set_yscale("log")
    axes[0].legend()
    for part, name in zip(axes[1:], names, strict=True):
        _plot(part, evaluation, name, marker=".")
    _save(figure, folder / "curves.png")


@torch.no_grad()
def draw_samples(path: Path, task: Task, model: nn.Module, draws: Draws, answers: Answers) -> None:
    """Writes a page of the first samples, with targets and answers."""
    count = min(len(draws), _SIDE**2)
    inputs, targets = task.collate(draws.__getitems__([(0, index) for index in range(count)]))
    was_training = model.training
    outputs = tree_map(lambda x: x.cpu(), answers(model.eval(), inputs))
    model.train(was_training)
    figure = optional("matplotlib.figure", "train").Figure((2.2 * _SIDE, 2.2 * _SIDE))
    for place, sample in enumerate(task.samples(inputs, targets, outputs), 1):
        axes = figure.add_subplot(_SIDE, _SIDE, place)
        axes.set_axis_off()
        task.draw(axes, *sample)
    _save(figure, path)


def _plot(axes: Any, rows: list[dict[str, float]], name: str, **options: Any) -> None:
    axes.plot([row["step"] for row in rows], [row[name] for row in rows], **options)
    axes.set_xlabel("step")
    axes.set_ylabel(name)
    axes.grid(True, alpha=0.3)


def _save(figure: Any, path: Path) -> None:
    figure.set_layout_engine("tight")
    content = io.BytesIO()
    figure.savefig(content, format="png", dpi=110)
    write_whole(path, content.getbuffer())
