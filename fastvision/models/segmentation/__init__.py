"""Segmentation models: a dict with scores [N, classes, H, W] under "out"."""

from .fcn_vgg import FCN8s, FCN16s, FCN32s, fcn8s_vgg16, fcn16s_vgg16, fcn32s_vgg16
from .segnet import SegNet, segnet
from .unet import UNet, unet

__all__ = [
    "FCN8s",
    "FCN16s",
    "FCN32s",
    "SegNet",
    "UNet",
    "fcn8s_vgg16",
    "fcn16s_vgg16",
    "fcn32s_vgg16",
    "segnet",
    "unet",
]
