"""The models by name."""

from __future__ import annotations

import fnmatch
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple, TypeVar

from torch import nn

Builder = TypeVar("Builder", bound=Callable[..., nn.Module])


class _Entry(NamedTuple):
    builder: Callable[..., nn.Module]
    task: str


_ENTRIES: dict[str, _Entry] = {}


def register(task: str) -> Callable[[Builder], Builder]:
    """Lists the decorated builder under its name."""

    def add(builder: Builder) -> Builder:
        if builder.__name__ in _ENTRIES:
            raise ValueError(f"there is a model {builder.__name__!r} already")
        _ENTRIES[builder.__name__] = _Entry(builder, task)
        return builder

    return add


def list_models(
    task: str | None = None,
    *,
    include: str | Iterable[str] | None = None,
    exclude: str | Iterable[str] | None = None,
) -> list[str]:
    """Names of the models, sorted.

    Args:
        task: only models of this task: "classification", "segmentation", "detection",
            "instance_segmentation", "keypoints", "detection_3d", "localization" or "sequence"; None
            for all.
        include: shell patterns; only names that match one of them.
        exclude: shell patterns; no names that match one of them.

    Raises:
        ValueError: no model has this task.
    """
    tasks = sorted({entry.task for entry in _ENTRIES.values()})
    if task is not None and task not in tasks:
        raise ValueError(f"task must be one of {tasks}, got {task!r}")
    names = [name for name, entry in _ENTRIES.items() if task in (None, entry.task)]
    if include is not None:
        names = [name for name in names if _matches(name, include)]
    if exclude is not None:
        names = [name for name in names if not _matches(name, exclude)]
    return sorted(names)


def _matches(name: str, patterns: str | Iterable[str]) -> bool:
    patterns = [patterns] if isinstance(patterns, str) else patterns
    return any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)


def get_model_builder(name: str) -> Callable[..., nn.Module]:
    """The function that builds the model of this name.

    Raises:
        ValueError: there is none.
    """
    entry = _ENTRIES.get(name)
    if entry is None:
        raise ValueError(f"name must be one of fastvision.models.list_models(), got {name!r}")
    return entry.builder


def get_model(name: str, **options: Any) -> nn.Module:
    """Builds a model: ``get_model("resnet50", num_classes=10)``.

    Raises:
        ValueError: there is no model of this name.
    """
    return get_model_builder(name)(**options)
