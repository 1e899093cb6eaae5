"""The ops, under torchvision.ops' names where it has them."""

from .conv_bn_relu import conv_bn_relu
from .conv_transpose2d import (
    ConvTranspose2dNormActivation,
    conv_transpose2d,
    conv_transpose2d_bn_relu,
)
from .nms import batched_nms, batched_nms_padded, nms
from .poolers import MultiScaleRoIAlign
from .roi_align import RoIAlign, multiscale_roi_align, roi_align

__all__ = [
    "ConvTranspose2dNormActivation",
    "MultiScaleRoIAlign",
    "RoIAlign",
    "batched_nms",
    "batched_nms_padded",
    "conv_bn_relu",
    "conv_transpose2d",
    "conv_transpose2d_bn_relu",
    "multiscale_roi_align",
    "nms",
    "roi_align",
]
