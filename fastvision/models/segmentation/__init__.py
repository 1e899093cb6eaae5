"""Segmentation models: a dict with scores [N, classes, H, W] under "out"."""

from .deeplabv3 import (
    DeepLabV3,
    deeplabv3_mobilenet_v3_large,
    deeplabv3_resnet50,
    deeplabv3_resnet101,
)
from .fcn import FCN, fcn_resnet50, fcn_resnet101
from .fcn_vgg import FCN8s, FCN16s, FCN32s, fcn8s_vgg16, fcn16s_vgg16, fcn32s_vgg16
from .full_resolution import FullResolutionFCN, fcn_full_resolution
from .lraspp import LRASPP, lraspp_mobilenet_v3_large
from .segnet import SegNet, segnet
from .sliding_window import fully_convolutional, patch_classifier, sliding_window
from .unet import UNet, unet

__all__ = [
    "FCN",
    "LRASPP",
    "DeepLabV3",
    "FCN8s",
    "FCN16s",
    "FCN32s",
    "FullResolutionFCN",
    "SegNet",
    "UNet",
    "deeplabv3_mobilenet_v3_large",
    "deeplabv3_resnet50",
    "deeplabv3_resnet101",
    "fcn8s_vgg16",
    "fcn16s_vgg16",
    "fcn32s_vgg16",
    "fcn_full_resolution",
    "fcn_resnet50",
    "fcn_resnet101",
    "fully_convolutional",
    "lraspp_mobilenet_v3_large",
    "patch_classifier",
    "segnet",
    "sliding_window",
    "unet",
]
