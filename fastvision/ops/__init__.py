"""The ops, under torchvision.ops' names where it has them."""

from .conv_bn_relu import conv_bn_relu
from .linear_act import linear_act
from .nms import batched_nms, batched_nms_padded, nms
from .poolers import MultiScaleRoIAlign
from .roi_align import RoIAlign, multiscale_roi_align, roi_align

__all__ = [
    "MultiScaleRoIAlign",
    "RoIAlign",
    "batched_nms",
    "batched_nms_padded",
    "conv_bn_relu",
    "linear_act",
    "multiscale_roi_align",
    "nms",
    "roi_align",
]
