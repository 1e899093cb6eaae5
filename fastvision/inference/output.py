"""Drawn copies, and the records of what was found, written as they come."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from PIL import Image

from ..training._checkpoint import write_whole
from .drawing import draw
from .findings import Findings
from .frames import Frame
from .predictor import Predictor
from .results import as_records
from .sources import Source
from .video import VideoWriter

# formats that a copy keeps; others become PNG
_FORMATS = {
    ".bmp": "BMP", ".gif": "GIF", ".jfif": "JPEG", ".jpeg": "JPEG", ".jpg": "JPEG", ".png": "PNG",
    ".tif": "TIFF", ".tiff": "TIFF", ".webp": "WEBP",
}  # fmt: skip
_ANIMATED = frozenset((".gif", ".png", ".tif", ".tiff", ".webp"))


class Output:
    """The files that one process writes.

    Args:
        folder: of all results; folders in it are made.
        copies: path of the drawn copy of each source without suffix, by the source's place.
        predictor: for the names and categories of labels.
        rank: of the process.
        drawn: whether to write copies.

    Records are added to a file of the process at once, so that a process that is killed leaves what
    it has found.
    """

    def __init__(
        self,
        folder: Path,
        copies: Mapping[int, str],
        predictor: Predictor,
        rank: int = 0,
        drawn: bool = True,
    ) -> None:
        self._folder = folder
        self._copies = copies
        self._predictor = predictor
        self._drawn = drawn
        self._writer: _Writer | None = None
        self._writing: Source | None = None
        self._records = open(part_file(folder, rank), "w", encoding="utf-8")  # noqa: SIM115

    def add(self, frame: Frame, findings: Findings) -> None:
        assert frame.picture is not None
        self._turn_to(frame.source)
        source = frame.source
        record: dict[str, Any] = {"order": source.order, "name": source.name, "path": source.path}
        if frame.number is not None:
            record["frame"] = frame.number
        record["width"], record["height"] = frame.picture.size
        records = as_records(findings, self._predictor.category_ids)
        self._write({**record, "findings": records})
        if self._drawn:
            self._draw(frame, findings)

    def fail(self, source: Source, reason: str) -> None:
        """Notes that a source, or the rest of it, could not be done."""
        self._write({"order": source.order, "name": source.name, "error": reason})

    def close(self) -> None:
        self._turn_to(None)
        self._records.close()

    def _turn_to(self, source: Source | None) -> None:
        """Completes the video of another source."""
        if self._writer is not None and source != self._writing:
            self._writer.close()
            self._writer = None
        self._writing = source

    def _write(self, record: Mapping[str, Any]) -> None:
        self._records.write(json.dumps(record) + "\n")
        self._records.flush()

    def _draw(self, frame: Frame, findings: Findings) -> None:
        assert frame.picture is not None
        copy = draw(frame.picture, findings, self._predictor.name)
        suffix = Path(frame.source.name).suffix.lower()
        path = self._folder / self._copies[frame.source.order]
        path.parent.mkdir(parents=True, exist_ok=True)
        if frame.number is None:
            path = path.with_name(path.name + (suffix if suffix in _FORMATS else ".png"))
            write_whole(path, _encoded([copy], _FORMATS[path.suffix]))
            return
        if self._writer is None:
            if frame.source.is_video:
                path = path.with_name(path.name + ".mp4")
                self._writer = VideoWriter(path, copy.size, frame.rate)
            else:
                path = path.with_name(path.name + (suffix if suffix in _ANIMATED else ".gif"))
                self._writer = _AnimationWriter(path, frame.rate)
        self._writer.add(copy)


def part_file(folder: Path, rank: int) -> Path:
    """The records of one process."""
    return folder / f".part-{rank}.jsonl"


def joined_records(folder: Path, processes: int) -> list[dict[str, Any]]:
    """The records of all processes, in the order of sources and frames."""
    records = []
    for rank in range(processes):
        with open(part_file(folder, rank), encoding="utf-8") as file:
            records += [json.loads(line) for line in file]
    return sorted(records, key=lambda record: (record["order"], "error" in record))


def remove_parts(folder: Path) -> None:
    for path in folder.glob(".part-*.jsonl"):
        path.unlink()


class _Writer(Protocol):
    def add(self, picture: Image.Image) -> None: ...

    def close(self) -> None: ...


class _AnimationWriter:
    """A file of several pictures by Pillow, which wants all of them at once."""

    def __init__(self, path: Path, rate: float) -> None:
        self._path = path
        self._rate = rate
        self._pictures: list[Image.Image] = []

    def add(self, picture: Image.Image) -> None:
        self._pictures.append(picture)

    def close(self) -> None:
        options = {"save_all": True, "append_images": self._pictures[1:]}
        if self._path.suffix not in (".tif", ".tiff"):
            options |= {"duration": round(1000 / self._rate), "loop": 0}
        kind = _FORMATS[self._path.suffix]
        write_whole(self._path, _encoded(self._pictures, kind, **options))


def _encoded(pictures: list[Image.Image], kind: str, **options: Any) -> memoryview:
    if kind in ("JPEG", "WEBP"):
        options["quality"] = 95
    buffer = io.BytesIO()
    pictures[0].save(buffer, kind, **options)
    return buffer.getbuffer()
