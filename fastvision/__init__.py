"""Vision kernels for PyTorch: a faster drop-in for torchvision.ops on CPU and GPU."""

from . import ops
from ._info import info
from ._version import __version__

__all__ = ["__version__", "info", "ops"]
