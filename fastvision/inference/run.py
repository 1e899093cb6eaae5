"""A predictor over files, videos and cameras, in one process or several."""

from __future__ import annotations

import contextlib
import datetime
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from .._optional import optional
from ..training._interruption import Interruption
from ..training._processes import Processes
from .findings import Findings
from .frames import Frame, read_frames
from .output import Output, joined_records, remove_parts
from .predictor import Predictor
from .results import write_results
from .sources import Source, copy_names
from .video import opencv

# a process may have the only long video
PATIENCE = datetime.timedelta(days=30)


class Report(NamedTuple):
    """How a run went.

    Args:
        summary: lines of the table of classes; in the first process only.
        records: of all pictures and failures, in order; in the first process only.
        failures: number of pictures and sources that could not be done, over all processes.
        signal: number of the signal that ended it; 0 for none.
    """

    summary: list[str]
    records: list[dict[str, Any]]
    failures: int
    signal: int


def run(
    predictor: Predictor,
    sources: Sequence[Source],
    folder: Path,
    processes: Processes,
    *,
    batch_size: int = 1,
    limit: int | None = None,
    drawn: bool = True,
    progress: bool = False,
) -> Report:
    """Finds what is in the sources, of which process r of n takes every n-th from the r-th on.

    Args:
        folder: for the drawn copies, results.json (COCO's results), images.json (the images and
            categories that it refers to) and summary.txt.
        processes: an entered context.
        batch_size: largest number of pictures that run at once; all of them are of one size.
        limit: largest number of pictures of a video, an animation or a camera.
        drawn: whether to write copies.
        progress: whether to show a bar.

    SIGINT and SIGTERM end the run after the batch that is going on; what is done is written.

    Raises:
        ValueError: a copy would replace a source.
        OSError: a file cannot be written.
        ModuleNotFoundError: a package that reads a source is not installed.
    """
    if any(source.is_video for source in sources):
        opencv()  # before the first picture
    copies = copy_names(sources)
    _check_copies(sources, copies, folder)
    folder.mkdir(parents=True, exist_ok=True)
    mine = sources[processes.rank :: processes.count]
    output = Output(folder, copies, predictor, processes.rank, drawn)
    tqdm = optional("tqdm", "detect").tqdm
    failures = 0
    with (
        Interruption() as interruption,
        contextlib.closing(output),
        tqdm(total=len(mine), unit="file", disable=not progress) as bar,
    ):
        for batch in _batches(read_frames(mine, limit), batch_size):
            failures += _do(predictor, batch, output)
            number = batch[-1].number
            of_video = "" if number is None else f"frame {number + 1}"
            bar.set_postfix_str(of_video, refresh=bool(of_video))
            bar.update(batch[-1].source.order // processes.count - bar.n)
            if interruption.signal:
                break
        else:
            bar.update(len(mine) - bar.n)
    outcomes = processes.gathered((failures, interruption.signal))
    summary: list[str] = []
    records: list[dict[str, Any]] = []
    if processes.is_first:
        records = joined_records(folder, processes.count)
        summary = write_results(folder, records, predictor.classes, predictor.category_ids)
        remove_parts(folder)
    return Report(
        summary,
        records,
        failures=sum(failures for failures, _ in outcomes),
        signal=max(signal for _, signal in outcomes),
    )


def _do(predictor: Predictor, batch: Sequence[Frame], output: Output) -> int:
    """Writes what is in a batch; returns how many of its pictures failed."""
    failures = 0
    for frame, found in zip(batch, _found(predictor, batch), strict=True):
        if isinstance(found, Findings):
            output.add(frame, found)
        else:
            output.fail(frame.source, found)
            failures += 1
    return failures


def _found(predictor: Predictor, batch: Sequence[Frame]) -> list[Findings | str]:
    """The findings of each picture, or why there are none."""
    if batch[0].picture is None:
        return [batch[0].error]
    pictures = [frame.picture for frame in batch if frame.picture is not None]
    try:
        return list(predictor(pictures))
    except (RuntimeError, ValueError) as error:  # such as memory that is not there
        if len(batch) == 1:
            return [f"the model failed on {batch[0].source.path}: {error}"]
    return [found for frame in batch for found in _found(predictor, [frame])]


def _batches(frames: Iterator[Frame], size: int) -> Iterator[list[Frame]]:
    """Successive pictures of one size; a frame without a picture is alone."""
    batch: list[Frame] = []
    for frame in frames:
        if batch and (len(batch) == size or not _fit(batch[0], frame)):
            yield batch
            batch = []
        batch.append(frame)
    if batch:
        yield batch


def _fit(first: Frame, second: Frame) -> bool:
    if first.picture is None or second.picture is None:
        return False
    return first.picture.size == second.picture.size


def _check_copies(sources: Sequence[Source], copies: dict[int, str], folder: Path) -> None:
    files = {Path(source.path).with_suffix("").resolve(): source for source in sources}
    for copy in copies.values():
        source = files.get((folder / copy).resolve())
        if source is not None and source.camera is None:
            raise ValueError(
                f"the drawn copy {folder / copy} would replace {source.path}; choose another folder"
            )
