"""Progress bar, CSV files and TensorBoard."""

from __future__ import annotations

import contextlib
import csv
import io
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from .._optional import optional
from ._checkpoint import write_whole
from ._run import Run

TRAINING = "training.csv"
EVALUATION = "evaluation.csv"
_COLUMNS = ("step", "epoch", "loss", "learning_rate", "gradient_norm", "samples_per_second")


class Table:
    """A CSV file with a line per step, each of which is written at once.

    Args:
        path: of the file.
        columns: its head, "step" first.
        until: lines of later steps, from before a break, are dropped.
    """

    def __init__(self, path: Path, columns: Sequence[str], until: int) -> None:
        rows = [row for row in read_table(path) if row["step"] <= until] if path.exists() else []
        text = io.StringIO()
        writer = csv.DictWriter(text, columns)
        writer.writeheader()
        writer.writerows(rows)
        write_whole(path, text.getvalue().encode())
        self._file = open(path, "a", encoding="utf-8", newline="")  # noqa: SIM115 - see close()
        self._writer = csv.DictWriter(self._file, columns)

    def add(self, row: Mapping[str, float]) -> None:
        try:
            self._writer.writerow(row)
            self._file.flush()
        except OSError as error:
            reason = f"{self._file.name} could not be written: {error.strerror}"
            raise OSError(error.errno, reason) from error

    def close(self) -> None:
        with contextlib.suppress(OSError):  # lines are there since add(), which has named the file
            self._file.close()


def metrics_in(evaluation: Sequence[Mapping[str, float]]) -> list[str]:
    """The names of the metrics in the rows of evaluation.csv."""
    return [name for name in evaluation[0] if name not in ("step", "epoch", "loss")]


def read_table(path: Path) -> list[dict[str, float]]:
    """The rows of a :class:`Table`, without a last one that a killed process left incomplete."""
    with open(path, encoding="utf-8", newline="") as file:
        lines = [line for line in file if line.endswith("\n")]
    rows = csv.DictReader(lines)
    return [{name: _number(text) for name, text in row.items()} for row in rows]


class Logs:
    """What a run reports while it is going on; nothing in processes other than the first.

    Args:
        folder: of the files.
        run: to report on; lines after its step are dropped.
        progress: whether to show a bar.
    """

    def __init__(self, folder: Path, run: Run, progress: bool) -> None:
        self._run = run
        self._parts: list[Any] = []
        if not run.processes.is_first:
            return
        loss = ("loss",) if run.task.tests_loss else ()
        columns = ("step", "epoch", *loss, *run.task.metric_names)
        self._training = Table(folder / TRAINING, _COLUMNS, run.step)
        self._evaluation = Table(folder / EVALUATION, columns, run.step)
        self._board = None
        if run.recipe.log.tensorboard:
            board = optional("torch.utils.tensorboard", "train").SummaryWriter
            self._board = board(str(folder), purge_step=run.step + 1 if run.step else None)
        self._bar = optional("tqdm", "train").tqdm(
            total=run.total, initial=run.step, disable=not progress, unit="step"
        )
        self._parts = [self._training, self._evaluation, self._board, self._bar]

    def __enter__(self) -> Logs:
        return self

    def __exit__(self, *_: object) -> None:
        for part in self._parts:
            if part is not None:
                part.close()

    def step(self, loss: float, norm: float, learning_rate: float, seconds: float) -> None:
        """After a step, which took ``seconds``."""
        run = self._run
        if not run.processes.is_first:
            return
        self._bar.update()
        if run.step % run.recipe.log.steps and run.step != run.total:
            return
        self._bar.set_postfix(loss=f"{loss:.4g}", **_short(run.metrics.items()))
        values = (loss, learning_rate, norm, run.recipe.batch_size / seconds)
        self._write(self._training, dict(zip(_COLUMNS[2:], values, strict=True)), "training")

    def evaluation(self) -> None:
        """After an evaluation."""
        if self._run.processes.is_first:
            self._write(self._evaluation, self._run.metrics, "evaluation")

    def _write(self, table: Table, values: Mapping[str, float], group: str) -> None:
        step = self._run.step
        table.add({"step": step, "epoch": step / self._run.order.steps_per_epoch, **values})
        if self._board is not None:
            for name, value in values.items():
                self._board.add_scalar(f"{group}/{name}", value, step)
            self._board.flush()


def _short(values: Iterable[tuple[str, float]]) -> dict[str, str]:
    return {name: f"{value:.4g}" for name, value in values if name != "loss"}


def _number(text: str) -> float:
    return int(text) if text.isdigit() else float(text)
