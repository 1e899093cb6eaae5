"""Vision kernels for PyTorch: a faster drop-in for torchvision.ops on CPU and GPU."""

import importlib
from typing import Any

from . import ops
from ._info import info
from ._malloc import keep_freed_memory
from ._version import __version__
from .integrations.torchvision import disable, enable, enabled, enabled_names

__all__ = [
    "__version__",
    "disable",
    "enable",
    "enabled",
    "enabled_names",
    "fuse",
    "info",
    "keep_freed_memory",
    "models",
    "ops",
]


def __getattr__(name: str) -> Any:
    # most programs do without, and they take time to import
    if name == "fuse":
        from .fusion import fuse

        return fuse
    if name == "models":
        return importlib.import_module(".models", __name__)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
