"""Models that classify every pixel."""

from .full_resolution import FullResolutionFCN, fcn_full_resolution
from .sliding_window import fully_convolutional, patch_classifier, sliding_window

__all__ = [
    "FullResolutionFCN",
    "fcn_full_resolution",
    "fully_convolutional",
    "patch_classifier",
    "sliding_window",
]
