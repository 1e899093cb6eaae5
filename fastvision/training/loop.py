"""The training loop of all tasks."""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from signal import SIGINT
from typing import Any

import torch

from ._checkpoint import BEST, LAST, load_checkpoint, save_checkpoint, write_whole
from ._data import batches
from ._interruption import Interrupted, Interruption
from ._logs import Logs
from ._pictures import draw_curves, draw_samples
from ._processes import Processes
from ._random import reproducible
from ._run import Run
from ._start import start_from
from .evaluation import measure
from .recipe import Recipe, recipe_of

# what a run that goes on may change: how long and where it runs, and what it reports
_FREE = {
    "description",
    "epochs",
    "steps",
    "data.root",
    "workers",
    "evaluate_epochs",
    "start",
    "checkpoint",
    "log",
    "bar.value",
    "bar.minutes",
    "short",
}
_MAX_SHARE = 0.05  # of the time, for checkpoints that are due by the clock


class NonFiniteError(RuntimeError):
    """A loss, gradient or parameter is NaN or infinite; the last checkpoint is of before."""


@dataclasses.dataclass
class Outcome:
    """What a run has come to.

    Args:
        step: the last one.
        seconds: of training and evaluation, without breaks.
        losses: of the steps since the start or the break.
        metrics: of the last evaluation, see :func:`evaluate`.
        best: the best value of the recipe's metric.
        reached: whether that is the recipe's bar; None without a bar.
    """

    step: int
    seconds: float
    losses: list[float]
    metrics: dict[str, float]
    best: float
    reached: bool | None

    def fall(self) -> float:
        """By which factor the loss fell, from the first tenth of the steps to the last."""
        count = max(1, len(self.losses) // 10)
        return sum(self.losses[:count]) / max(sum(self.losses[-count:]), 1e-12)


def train(
    recipe: Recipe,
    folder: str | Path,
    *,
    resume: bool = False,
    device: str | None = None,
    progress: bool = False,
) -> Outcome:
    """Trains the model of a recipe.

    Args:
        recipe: what to train.
        folder: for checkpoints, logs and pictures; made if it is not there.
        resume: whether to go on from the checkpoint in ``folder``. Every later loss is what it had
            been without the break, with the same number of processes, device and versions.
        device: "cpu" or "cuda"; None for a GPU if torch sees one.
        progress: whether to show a bar.

    Returns:
        The outcome, the same in each process.

    Under torchrun the processes share each batch. SIGINT and SIGTERM end the run after the step
    that is going on, with a checkpoint.

    Raises:
        ValueError: the recipe names something unknown, or ``folder`` has another run. A run that
            goes on can change its length, and what does not change its steps.
        FileNotFoundError: there is nothing to resume, or to start from.
        NonFiniteError: a loss, gradient or parameter is NaN or infinite.
        OSError: a file cannot be written. The last checkpoint remains.
        Interrupted: a signal came.
    """
    folder = Path(folder)
    checkpoint = _checked(recipe, folder, resume)
    with (
        Processes(device) as processes,
        reproducible(recipe.deterministic),
        Interruption() as interruption,
    ):
        run = Run(recipe, processes)
        if checkpoint is not None:
            run.restore(checkpoint)
        elif recipe.start is not None:
            start_from(run.model, recipe.start)
        if checkpoint is None and processes.is_first:
            write_whole(folder / "recipe.json", json.dumps(recipe.as_dict(), indent=2).encode())
        with Logs(folder, run, progress) as logs:
            losses = _loop(run, folder, logs, interruption)
        if processes.is_first:
            draw_curves(folder)
            samples = folder / "samples.png"
            draw_samples(samples, run.task, run.evaluated, run.test_draws, run.answers)
    reached = None if recipe.bar is None else run.best >= recipe.bar.value
    return Outcome(run.step, run.seconds, losses, run.metrics, run.best, reached)


def _checked(recipe: Recipe, folder: Path, resume: bool) -> dict[str, Any] | None:
    """The checkpoint to resume; makes ``folder`` for a new run."""
    last = folder / LAST
    if not resume:
        if last.exists():
            raise ValueError(f"{folder} has a run already: resume it, or choose another folder")
        folder.mkdir(parents=True, exist_ok=True)
        return None
    if not last.exists():
        raise FileNotFoundError(f"{folder} has no {LAST} to resume")
    checkpoint = load_checkpoint(last)
    name = checkpoint["recipe"]["name"]
    if name != recipe.name:
        raise ValueError(f"{folder} has a run of the recipe {name}, got {recipe.name}")
    before = recipe_of(checkpoint["recipe"]).as_dict()
    for key, old, new in _differences(before, recipe.as_dict()):
        raise ValueError(f"{folder} has a run with {key} = {old!r}, which cannot become {new!r}")
    return checkpoint


def _differences(
    before: Mapping[str, Any], after: Mapping[str, Any], prefix: str = ""
) -> Iterator[tuple[str, Any, Any]]:
    """Keys with their values before and after, without those that may change."""
    for name in sorted(before.keys() | after.keys()):
        key, old, new = f"{prefix}{name}", before.get(name), after.get(name)
        if key in _FREE or old == new:
            continue
        if isinstance(old, Mapping) and isinstance(new, Mapping):
            yield from _differences(old, new, f"{key}.")
        else:
            yield key, old, new


def _loop(run: Run, folder: Path, logs: Logs, interruption: Interruption) -> list[float]:
    recipe, losses = run.recipe, []
    saved = _Saved(run, folder)
    if run.step == 0:
        saved.save()
    order = run.order.between(run.step, run.total)
    parts = batches(run.draws, order, run.task.collate, recipe.workers)
    while run.step < run.total:
        start = time.perf_counter()
        learning_rate = run.optimizer.param_groups[0]["lr"]
        # how to go on is agreed in the one exchange of a step, since signals and clocks differ
        wishes = (interruption.signal, saved.is_due())
        loss, norm, stop, due = _step(run, itertools.islice(parts, recipe.accumulate), wishes)
        seconds = time.perf_counter() - start
        losses.append(loss)
        logs.step(loss, norm, learning_rate, seconds)
        if run.is_evaluation_due():
            _evaluate(run, folder)
            logs.evaluation()
        run.seconds += time.perf_counter() - start
        if due or stop or run.step % recipe.checkpoint.steps == 0 or run.step == run.total:
            saved.save()
        if stop and run.step < run.total:
            raise Interrupted(run.step, interruption.signal or SIGINT)
    return losses


def _step(
    run: Run, parts: Iterator[Any], wishes: tuple[float, float]
) -> tuple[float, float, float, float]:
    """One step of the optimizer: loss, norm of the gradient, and what processes agreed on."""
    recipe, processes = run.recipe, run.processes
    run.forward.train()
    loss = torch.zeros((), device=processes.device)
    for number, (inputs, targets) in enumerate(parts, 1):
        with run.gradients_shared(last=number == recipe.accumulate):
            outputs = run.answers(run.forward, inputs)
            part = run.task.loss(outputs, run.answers.moved(targets)) / recipe.accumulate
            run.scaler.scale(part).backward()
        loss += part.detach()

    run.scaler.unscale_(run.optimizer)
    parameters = [p for group in run.optimizer.param_groups for p in group["params"]]
    norm = torch.nn.utils.clip_grad_norm_(parameters, recipe.clip or math.inf)
    count = processes.count
    agreed = processes.sums(loss / count, norm / count, *wishes)
    _check_finite(run, agreed[0], agreed[1])

    run.scaler.step(run.optimizer)
    run.scaler.update()
    run.optimizer.zero_grad()
    run.schedule.step()
    if run.average is not None:
        run.average.update_parameters(run.model)
    run.step += 1
    return agreed[0], agreed[1], agreed[2], agreed[3]


def _check_finite(run: Run, loss: float, norm: float) -> None:
    if not math.isfinite(loss):
        what = f"the loss is {loss}"
    elif not math.isfinite(norm) and not run.scaler.is_enabled():  # fp16 skips such steps
        what = f"the loss is {loss:.4g}, but the norm of its gradient {norm}"
    else:
        return
    samples = [index for _, index in run.order.samples(run.step)]
    raise NonFiniteError(
        f"step {run.step + 1} (epoch {run.epoch}): {what}. Its batch is of the training samples "
        f"{samples}. {LAST} holds an earlier step; a smaller optimizer.lr or a clip may help"
    )


def _evaluate(run: Run, folder: Path) -> None:
    """Measures, and keeps the weights if they are the best so far."""
    # without sync_batch_norm, statistics differ; those of the first process are kept
    run.processes.share(b for b in run.evaluated.buffers() if b.is_floating_point())
    run.metrics = measure(
        run.task, run.evaluated, run.test_draws, run.recipe, run.processes, run.answers
    )
    value = run.metrics[run.metric]
    if value > run.best:
        run.best = value
        if run.processes.is_first:
            save_checkpoint(folder / BEST, run.best_weights())


class _Saved:
    """The checkpoint of a run, and when it is due by the clock."""

    def __init__(self, run: Run, folder: Path) -> None:
        self._run = run
        self._path = folder / LAST
        self._written = time.monotonic()
        self._took = 0.0

    def is_due(self) -> bool:
        """In the first process, whose clock counts."""
        wait = max(self._run.recipe.checkpoint.seconds, self._took / _MAX_SHARE)
        return self._run.processes.is_first and time.monotonic() - self._written >= wait

    def save(self) -> None:
        run, start = self._run, time.monotonic()
        broken = run.broken()
        if broken:
            raise NonFiniteError(
                f"after step {run.step}, {broken[0]} is not finite; {LAST} holds an earlier step"
            )
        state = run.state()
        if run.processes.is_first:
            save_checkpoint(self._path, state)
        self._written = time.monotonic()
        self._took = self._written - start
