"""The public ops, named as in torchvision.ops where it has them."""

from ._torchscript import refuse_scripting
from .batch_norm_relu import batch_norm_relu
from .chain import Sequential, conv_norm_act, norm_act
from .conv.conv2d import conv_bn_relu
from .conv.linear import linear_act
from .conv.transpose import conv_transpose2d, conv_transpose2d_bn_relu
from .focal_loss import (
    SigmoidFocalLoss,
    SoftmaxFocalLoss,
    sigmoid_focal_loss,
    softmax_focal_loss,
)
from .max_pool2d import MaxPool2d, max_pool2d_with_indices
from .max_unpool2d import MaxUnpool2d, max_unpool2d
from .misc import (
    Conv2dNormActivation,
    ConvBNReLU2d,
    ConvTranspose2dNormActivation,
    FrozenBatchNorm2d,
)
from .nms import batched_nms, batched_nms_padded, nms
from .poolers import MultiScaleRoIAlign
from .ps_roi_align import PSRoIAlign, ps_roi_align
from .ps_roi_pool import PSRoIPool, ps_roi_pool
from .roi_align import RoIAlign, multiscale_roi_align, roi_align
from .roi_pool import RoIPool, roi_pool
from .squeeze_excitation import SqueezeExcitation, squeeze_excitation

__all__ = [
    "Conv2dNormActivation",
    "ConvBNReLU2d",
    "ConvTranspose2dNormActivation",
    "FrozenBatchNorm2d",
    "MaxPool2d",
    "MaxUnpool2d",
    "MultiScaleRoIAlign",
    "PSRoIAlign",
    "PSRoIPool",
    "RoIAlign",
    "RoIPool",
    "Sequential",
    "SigmoidFocalLoss",
    "SoftmaxFocalLoss",
    "SqueezeExcitation",
    "batch_norm_relu",
    "batched_nms",
    "batched_nms_padded",
    "conv_bn_relu",
    "conv_norm_act",
    "conv_transpose2d",
    "conv_transpose2d_bn_relu",
    "linear_act",
    "max_pool2d_with_indices",
    "max_unpool2d",
    "multiscale_roi_align",
    "nms",
    "norm_act",
    "ps_roi_align",
    "ps_roi_pool",
    "roi_align",
    "roi_pool",
    "sigmoid_focal_loss",
    "softmax_focal_loss",
    "squeeze_excitation",
]

for _name in __all__:
    refuse_scripting(globals()[_name])
