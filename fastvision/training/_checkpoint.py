"""Files that are either whole or not there."""

from __future__ import annotations

import contextlib
import io
import os
from pathlib import Path
from typing import Any

import torch

from ..models._weights import reason_of

LAST = "last.pt"  # all that is needed to go on
BEST = "best.pt"  # the weights with the best metric
FORMAT = 1


def write_whole(path: Path, content: bytes | memoryview) -> None:
    """Replaces a file, or leaves it as it was if that fails or the process ends.

    Raises:
        OSError: it cannot be written, as on a full disk. The error names the file.
    """
    temporary = path.with_name(f".{path.name}.part")
    try:
        with open(temporary, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        _sync_folder(path.parent)
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink()
        kept = f"; the older {path.name} is still there" if path.exists() else ""
        reason = f"{path} could not be written: {error.strerror}{kept}"
        raise OSError(error.errno, reason) from error


def save_checkpoint(path: Path, content: dict[str, Any]) -> None:
    """Writes tensors and plain values with :func:`write_whole`."""
    # in memory first: writing a file bit by bit, torch has other errors for a full disk
    buffer = io.BytesIO()
    torch.save({"format": FORMAT, **content}, buffer)
    write_whole(path, buffer.getbuffer())


def find_checkpoint(path: Path) -> Path:
    """The checkpoint with the best weights of a run's folder, else its last; a file is its own.

    Raises:
        FileNotFoundError: there is none.
    """
    files = (path / BEST, path / LAST) if path.is_dir() else (path,)
    found = next((file for file in files if file.exists()), None)
    if found is None:
        what = f"the folder {path} has no {BEST} or {LAST}" if path.is_dir() else f"no file {path}"
        raise FileNotFoundError(what)
    return found


def load_checkpoint(path: Path, device: torch.device | str = "cpu") -> dict[str, Any]:
    """What :func:`save_checkpoint` has written; a file from elsewhere cannot run code.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no checkpoint of this format.
    """
    if path.is_file() and not path.stat().st_size:
        raise ValueError(f"{path} is not a checkpoint (it is empty)")
    try:
        content = torch.load(path, map_location=device, weights_only=True)
    except OSError:
        raise
    except Exception as error:  # torch raises errors of every type for a damaged file
        raise ValueError(f"{path} is not a checkpoint ({reason_of(error)})") from error
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise ValueError(f"{path} is not a checkpoint of fastvision.training, format {FORMAT}")
    return content


def _sync_folder(folder: Path) -> None:
    """Makes the new name of a file last, too."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
