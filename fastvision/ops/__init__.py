"""The public ops, named as in torchvision.ops where it has them."""

from ._torchscript import refuse_scripting
from .batch_norm_relu import batch_norm_relu
from .chain import Sequential, conv_norm_act, norm_act
from .conv.conv2d import conv_bn_relu
from .conv.linear import linear_act
from .conv.transpose import conv_transpose2d, conv_transpose2d_bn_relu
from .drop_block import DropBlock2d, DropBlock3d, drop_block2d, drop_block3d
from .feature_pyramid_network import FeaturePyramidNetwork
from .focal_loss import (
    SigmoidFocalLoss,
    SoftmaxFocalLoss,
    sigmoid_focal_loss,
    softmax_focal_loss,
)
from .max_pool2d import MaxPool2d, max_pool2d_with_indices
from .max_unpool2d import MaxUnpool2d, max_unpool2d
from .misc import (
    MLP,
    Conv2dNormActivation,
    Conv3dNormActivation,
    ConvBNReLU2d,
    ConvTranspose2dNormActivation,
    FrozenBatchNorm2d,
    Permute,
)
from .nms import batched_nms, batched_nms_padded, nms
from .poolers import MultiScaleRoIAlign
from .roi_align import RoIAlign, multiscale_roi_align, roi_align
from .roi_pool import RoIPool, roi_pool
from .squeeze_excitation import SqueezeExcitation, squeeze_excitation
from .stochastic_depth import StochasticDepth, stochastic_depth

__all__ = [
    "MLP",
    "Conv2dNormActivation",
    "Conv3dNormActivation",
    "ConvBNReLU2d",
    "ConvTranspose2dNormActivation",
    "DropBlock2d",
    "DropBlock3d",
    "FeaturePyramidNetwork",
    "FrozenBatchNorm2d",
    "MaxPool2d",
    "MaxUnpool2d",
    "MultiScaleRoIAlign",
    "Permute",
    "RoIAlign",
    "RoIPool",
    "Sequential",
    "SigmoidFocalLoss",
    "SoftmaxFocalLoss",
    "SqueezeExcitation",
    "StochasticDepth",
    "batch_norm_relu",
    "batched_nms",
    "batched_nms_padded",
    "conv_bn_relu",
    "conv_norm_act",
    "conv_transpose2d",
    "conv_transpose2d_bn_relu",
    "drop_block2d",
    "drop_block3d",
    "linear_act",
    "max_pool2d_with_indices",
    "max_unpool2d",
    "multiscale_roi_align",
    "nms",
    "norm_act",
    "roi_align",
    "roi_pool",
    "sigmoid_focal_loss",
    "softmax_focal_loss",
    "squeeze_excitation",
    "stochastic_depth",
]

for _name in __all__:
    refuse_scripting(globals()[_name])
