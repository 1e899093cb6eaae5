"""Vision kernels for PyTorch: a faster drop-in for torchvision.ops on CPU and GPU."""

from . import ops
from ._extension import empty_cache
from ._info import info
from ._version import __version__
from .torchvision_patch import disable, enable, enabled

__all__ = ["__version__", "disable", "empty_cache", "enable", "enabled", "info", "ops"]
