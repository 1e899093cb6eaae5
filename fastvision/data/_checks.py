"""Argument checks shared by the data sets."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

SPLITS = ("train", "test")


def check_split(split: str) -> None:
    if split not in SPLITS:
        raise ValueError(f"split must be one of {', '.join(SPLITS)}, got {split!r}")


def check_number(value: float, name: str, low: float, high: float) -> None:
    if not low <= value <= high:
        raise ValueError(f"{name} must be from {low:g} to {high:g}, got {value!r}")


def check_range(value: Sequence[float], name: str, low: float, high: float) -> None:
    """``value`` has to be two numbers in order, both within ``low`` and ``high``."""
    if len(value) != 2 or not low <= value[0] <= value[1] <= high:
        wanted = f"two numbers in ascending order from {low:g} to {high:g}"
        raise ValueError(f"{name} must be {wanted}, got {value!r}")


def check_folder(folder: Path) -> None:
    if folder.is_dir():
        return
    parent = next(path for path in folder.parents if path.is_dir())
    inside = sorted(path.name for path in parent.iterdir())[:10]
    raise FileNotFoundError(
        f"no folder {folder}; {parent} contains {', '.join(inside) or 'nothing'}"
    )


def check_file(path: Path) -> None:
    if not path.is_file():
        raise FileNotFoundError(f"no file {path}")
