"""Every op in eager PyTorch: the specification, the test oracle and the fallback."""

from .activations import ACTIVATIONS, activate
from .batch_norm_relu import (
    batch_norm_relu,
    batch_norm_relu_backward,
    batch_norm_relu_statistics,
    batch_norm_relu_sums,
)
from .conv_bn_relu import conv_bn_relu, fold_batch_norm
from .conv_transpose2d import conv_transpose2d
from .focal_loss import sigmoid_focal_loss, softmax_focal_loss
from .linear_act import linear_act
from .max_pool2d import max_pool2d_backward, max_pool2d_with_indices
from .max_unpool2d import max_unpool2d, max_unpool2d_backward
from .nms import nms, nms_padded
from .ps_roi_align import ps_roi_align
from .ps_roi_pool import ps_roi_pool
from .roi_align import assign_levels, multiscale_roi_align, roi_align
from .roi_pool import pixels_at, roi_pool
from .squeeze_excitation import squeeze_excitation

__all__ = [
    "ACTIVATIONS",
    "activate",
    "assign_levels",
    "batch_norm_relu",
    "batch_norm_relu_backward",
    "batch_norm_relu_statistics",
    "batch_norm_relu_sums",
    "conv_bn_relu",
    "conv_transpose2d",
    "fold_batch_norm",
    "linear_act",
    "max_pool2d_backward",
    "max_pool2d_with_indices",
    "max_unpool2d",
    "max_unpool2d_backward",
    "multiscale_roi_align",
    "nms",
    "nms_padded",
    "pixels_at",
    "ps_roi_align",
    "ps_roi_pool",
    "roi_align",
    "roi_pool",
    "sigmoid_focal_loss",
    "softmax_focal_loss",
    "squeeze_excitation",
]
