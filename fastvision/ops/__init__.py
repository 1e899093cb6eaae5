"""The public ops, named as in torchvision.ops where it has them."""

from ._torchscript import refuse_scripting
from .batch_norm_relu import batch_norm_relu
from .box_convert import box_convert
from .box_iou import box_iou, complete_box_iou, distance_box_iou, generalized_box_iou
from .box_iou_3d import box_iou_3d
from .box_iou_rotated import box_iou_rotated
from .boxes import box_area, clip_boxes_to_image, remove_small_boxes
from .chain import Sequential, conv_norm_act, norm_act
from .ciou_loss import complete_box_iou_loss
from .conv.conv2d import conv_bn_relu
from .conv.linear import linear_act
from .conv.transpose import conv_transpose2d, conv_transpose2d_bn_relu
from .deform_conv import DeformConv2d, deform_conv2d
from .diou_loss import distance_box_iou_loss
from .drop_block import DropBlock2d, DropBlock3d, drop_block2d, drop_block3d
from .feature_pyramid_network import FeaturePyramidNetwork
from .focal_loss import (
    SigmoidFocalLoss,
    SoftmaxFocalLoss,
    sigmoid_focal_loss,
    softmax_focal_loss,
)
from .giou_loss import generalized_box_iou_loss
from .mask_iou import mask_iou
from .mask_nms import mask_nms
from .masks_to_boxes import masks_to_boxes
from .matrix_nms import mask_matrix_nms, matrix_nms
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
from .nms_3d import nms_3d
from .nms_match import nms_match
from .nms_rotated import batched_nms_rotated, nms_rotated
from .poolers import MultiScaleRoIAlign
from .ps_roi_align import PSRoIAlign, ps_roi_align
from .ps_roi_pool import PSRoIPool, ps_roi_pool
from .roi_align import RoIAlign, multiscale_roi_align, roi_align
from .roi_align_rotated import RoIAlignRotated, roi_align_rotated
from .roi_pool import RoIPool, roi_pool
from .soft_nms import soft_nms
from .squeeze_excitation import SqueezeExcitation, squeeze_excitation
from .stochastic_depth import StochasticDepth, stochastic_depth
from .weighted_boxes_fusion import weighted_boxes_fusion

__all__ = [
    "MLP",
    "Conv2dNormActivation",
    "Conv3dNormActivation",
    "ConvBNReLU2d",
    "ConvTranspose2dNormActivation",
    "DeformConv2d",
    "DropBlock2d",
    "DropBlock3d",
    "FeaturePyramidNetwork",
    "FrozenBatchNorm2d",
    "MaxPool2d",
    "MaxUnpool2d",
    "MultiScaleRoIAlign",
    "PSRoIAlign",
    "PSRoIPool",
    "Permute",
    "RoIAlign",
    "RoIAlignRotated",
    "RoIPool",
    "Sequential",
    "SigmoidFocalLoss",
    "SoftmaxFocalLoss",
    "SqueezeExcitation",
    "StochasticDepth",
    "batch_norm_relu",
    "batched_nms",
    "batched_nms_padded",
    "batched_nms_rotated",
    "box_area",
    "box_convert",
    "box_iou",
    "box_iou_3d",
    "box_iou_rotated",
    "clip_boxes_to_image",
    "complete_box_iou",
    "complete_box_iou_loss",
    "conv_bn_relu",
    "conv_norm_act",
    "conv_transpose2d",
    "conv_transpose2d_bn_relu",
    "deform_conv2d",
    "distance_box_iou",
    "distance_box_iou_loss",
    "drop_block2d",
    "drop_block3d",
    "generalized_box_iou",
    "generalized_box_iou_loss",
    "linear_act",
    "mask_iou",
    "mask_matrix_nms",
    "mask_nms",
    "masks_to_boxes",
    "matrix_nms",
    "max_pool2d_with_indices",
    "max_unpool2d",
    "multiscale_roi_align",
    "nms",
    "nms_3d",
    "nms_match",
    "nms_rotated",
    "norm_act",
    "ps_roi_align",
    "ps_roi_pool",
    "remove_small_boxes",
    "roi_align",
    "roi_align_rotated",
    "roi_pool",
    "sigmoid_focal_loss",
    "soft_nms",
    "softmax_focal_loss",
    "squeeze_excitation",
    "stochastic_depth",
    "weighted_boxes_fusion",
]

for _name in __all__:
    refuse_scripting(globals()[_name])
