"""The commands ``fastvision detect``, ``segment`` and ``classify``."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, TextIO

from ..data.coco import read_categories
from ..training._processes import Processes
from ..training.recipe import parse_assignments
from .demo import write_scene
from .loading import load_predictor
from .predictor import Predictor
from .results import RESULTS
from .run import PATIENCE, Report, run
from .sources import find_sources

_TASKS = {"detect": "detection", "segment": "segmentation", "classify": "classification"}
_LISTED = 20  # pictures whose findings are printed one by one


def execute(options: argparse.Namespace) -> int:
    """Runs the command that has been parsed into ``options``; returns its exit code.

    0: all is done; 1: an error, or something could not be done; more than 128: a signal.
    """
    try:
        return _execute(options)
    except (ValueError, OSError, ModuleNotFoundError) as error:
        if isinstance(error, OSError) and error.strerror:
            error = OSError(error.strerror if error.filename is None else error)
        _print(f"fastvision {options.command}: error: {error}", sys.stderr)
        return 1


def _execute(options: argparse.Namespace) -> int:
    if options.batch_size < 1:
        raise ValueError(f"--batch-size must be at least 1, got {options.batch_size}")
    if options.frames is not None and options.frames < 1:
        raise ValueError(f"--frames must be at least 1, got {options.frames}")
    folder = Path(options.out)
    if folder.exists() and not folder.is_dir():
        raise NotADirectoryError(f"--out must be a folder, but {folder} is a file")
    demo = getattr(options, "demo", False)
    if demo and options.images:
        raise ValueError(f"--demo makes its own picture, got {options.images[0]}")
    sources = [] if demo else find_sources(options.images, folder)
    with Processes(options.device, PATIENCE) as processes:
        predictor = _predictor(options, demo, processes)
        if demo:
            if processes.is_first:
                write_scene(folder / "demo")
            processes.gathered(None)  # until it is there
            sources = find_sources([str(folder / "demo" / "scene.png")], folder)
        report = run(
            predictor,
            sources,
            folder,
            processes,
            batch_size=options.batch_size,
            limit=options.frames,
            drawn=not options.no_pictures,
            progress=processes.is_first and not options.quiet,
        )
    if processes.is_first:
        _print("\n".join(_lines(report, predictor, folder)), sys.stdout)
        for record in report.records:
            if "error" in record:
                _print(f"fastvision {options.command}: not done: {record['error']}", sys.stderr)
    return 128 + report.signal if report.signal else int(report.failures > 0)


def _predictor(options: argparse.Namespace, demo: bool, processes: Processes) -> Predictor:
    classes, category_ids = _classes(options.classes)
    settings: dict[str, Any] = {"device": processes.device, "bf16": options.bf16}
    for name in ("nms", "score", "top"):
        if getattr(options, name, None) is not None:
            settings[name] = getattr(options, name)
    return load_predictor(
        _TASKS[options.command],
        options.model,
        "digits" if demo and options.weights is None else options.weights,
        options=parse_assignments(options.set),
        classes=classes,
        category_ids=category_ids,
        **settings,
    )


def _classes(file: str | None) -> tuple[Sequence[str] | None, Sequence[int] | None]:
    """Names of the labels, and the ids of their categories, that a file gives."""
    if file is None:
        return None, None
    path = Path(file)
    if not path.is_file():
        raise FileNotFoundError(f"--classes: there is no file {file}")
    if path.suffix == ".json":
        return read_categories(path)
    try:
        names = [name.strip() for name in path.read_text(encoding="utf-8").split("\n")]
    except UnicodeDecodeError as error:
        raise ValueError(f"--classes: {file} is no text in UTF-8 ({error})") from error
    while names and not names[-1]:
        names.pop()
    if not names:
        raise ValueError(f"--classes: {file} has no names")
    return names, None


def _lines(report: Report, predictor: Predictor, folder: Path) -> Iterator[str]:
    """The findings of each picture, if there are few, and the table of classes."""
    done = [record for record in report.records if "error" not in record]
    if len(done) <= _LISTED:
        for record in done:
            frame = f" frame {record['frame']}" if "frame" in record else ""
            found = (
                f"{predictor.name(finding['label'])} {finding['score']:.2f}"
                for finding in record["findings"]
            )
            yield f"{record['name']}{frame}: {', '.join(found) or 'nothing'}"
        yield ""
    yield from report.summary
    yield ""
    left = "" if not report.signal else "stopped by a signal; what was done is kept, "
    yield f"{left}pictures and {RESULTS} are in {folder}"


def _print(text: str, stream: TextIO) -> None:
    """Names of files may have characters that the stream has not."""
    encoding = stream.encoding or "utf-8"
    print(text.encode(encoding, "backslashreplace").decode(encoding), file=stream)
