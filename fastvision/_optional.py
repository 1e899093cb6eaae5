"""Packages that only some parts of fastvision need."""

from __future__ import annotations

import importlib
from typing import Any


def optional(name: str, extra: str = "models") -> Any:
    """The module ``name``, or an error that says which extra of fastvision installs its package."""
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        package = name.partition(".")[0]
        if error.name != package:
            raise  # it is there and lacks something itself
        raise ModuleNotFoundError(
            f"{package} is not installed: pip install 'fastvision[{extra}]'", name=error.name
        ) from error
