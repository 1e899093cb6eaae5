"""The models by name."""

from __future__ import annotations

import fnmatch
import functools
import inspect
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple, TypeVar, cast

from torch import nn

Builder = TypeVar("Builder", bound=Callable[..., nn.Module])


class _Entry(NamedTuple):
    builder: Callable[..., nn.Module]
    task: str


_ENTRIES: dict[str, _Entry] = {}


def register(task: str) -> Callable[[Builder], Builder]:
    """Lists the decorated builder under its name, and checks its ``num_classes``."""

    def add(builder: Builder) -> Builder:
        if builder.__name__ in _ENTRIES:
            raise ValueError(f"there is a model {builder.__name__!r} already")
        checked = _checking_classes(builder)
        _ENTRIES[builder.__name__] = _Entry(checked, task)
        return cast(Builder, checked)

    return add


def _checking_classes(builder: Callable[..., nn.Module]) -> Callable[..., nn.Module]:
    """Torch would build a layer of no scores, or fail without naming the argument."""
    parameter = inspect.signature(builder).parameters.get("num_classes")
    may_be_none = parameter is not None and parameter.default is None

    @functools.wraps(builder)
    def build(*args: Any, **options: Any) -> nn.Module:
        if "num_classes" in options:
            value = options["num_classes"]
            if not (value is None and may_be_none):
                _check_classes(value)
        return builder(*args, **options)

    return build


def _check_classes(value: Any) -> None:
    if isinstance(value, bool) or not hasattr(value, "__index__"):
        raise TypeError(f"num_classes must be an int, got {value!r}")
    if value < 1:
        raise ValueError(f"num_classes must be at least 1, got {value}")


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
