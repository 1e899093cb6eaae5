"""Semantic segmentation: models that give each pixel the scores of the classes."""

from .deeplabv3 import (
    DeepLabV3,
    deeplabv3_mobilenet_v3_large,
    deeplabv3_resnet50,
    deeplabv3_resnet101,
)
from .fcn import FCN, fcn_resnet50, fcn_resnet101
from .full_resolution import FullResolutionFCN, fcn_full_resolution
from .lraspp import LRASPP, lraspp_mobilenet_v3_large
from .sliding_window import fully_convolutional, patch_classifier, sliding_window

__all__ = [
    "FCN",
    "LRASPP",
    "DeepLabV3",
    "FullResolutionFCN",
    "deeplabv3_mobilenet_v3_large",
    "deeplabv3_resnet50",
    "deeplabv3_resnet101",
    "fcn_full_resolution",
    "fcn_resnet50",
    "fcn_resnet101",
    "fully_convolutional",
    "lraspp_mobilenet_v3_large",
    "patch_classifier",
    "sliding_window",
]
