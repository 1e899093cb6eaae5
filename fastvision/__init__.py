"""Vision kernels for PyTorch: a faster drop-in for torchvision.ops on CPU and GPU."""

from typing import Any

from . import ops
from ._info import info
from ._version import __version__
from .integrations.torchvision import disable, enable, enabled

__all__ = ["__version__", "disable", "enable", "enabled", "fuse", "info", "ops"]


def __getattr__(name: str) -> Any:
    if name == "fuse":  # most programs do without, and it takes time to import
        from .fusion import fuse

        return fuse
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
