"""Every op in eager PyTorch: the specification, the test oracle and the fallback."""

from .activations import ACTIVATIONS, activate
from .batch_norm_relu import (
    batch_norm_relu,
    batch_norm_relu_backward,
    batch_norm_relu_gradients,
    batch_norm_relu_statistics,
    batch_norm_relu_sums,
    batch_norm_relu_training,
)
from .box_iou import box_iou, box_iou_backward
from .box_iou_3d import box_iou_3d, box_iou_3d_backward
from .box_iou_loss import box_iou_loss, box_iou_loss_backward
from .box_iou_rotated import box_iou_rotated, box_iou_rotated_backward
from .conv_bn_relu import conv_bn_relu, fold_batch_norm
from .conv_transpose2d import conv_transpose2d
from .deform_conv2d import deform_conv2d, deform_conv2d_backward
from .focal_loss import sigmoid_focal_loss, softmax_focal_loss
from .linear_act import linear_act
from .mask_iou import mask_iou, mask_nms
from .masks_to_boxes import masks_to_boxes
from .matrix_nms import decayed_scores, matrix_nms
from .max_pool2d import max_pool2d_backward, max_pool2d_with_indices
from .max_unpool2d import max_unpool2d, max_unpool2d_backward
from .nms import nms, nms_padded
from .nms_3d import nms_3d
from .nms_match import nms_match
from .nms_rotated import nms_rotated
from .ps_roi_align import ps_roi_align
from .ps_roi_pool import ps_roi_pool
from .roi_align import assign_levels, multiscale_roi_align, roi_align
from .roi_align_max import roi_align_max, samples_at
from .roi_align_rotated import roi_align_rotated
from .roi_pool import pixels_at, roi_pool
from .soft_nms import soft_nms
from .squeeze_excitation import squeeze_excitation
from .topk_above import topk_above
from .weighted_boxes_fusion import weighted_boxes_fusion

__all__ = [
    "ACTIVATIONS",
    "activate",
    "assign_levels",
    "batch_norm_relu",
    "batch_norm_relu_backward",
    "batch_norm_relu_gradients",
    "batch_norm_relu_statistics",
    "batch_norm_relu_sums",
    "batch_norm_relu_training",
    "box_iou",
    "box_iou_3d",
    "box_iou_3d_backward",
    "box_iou_backward",
    "box_iou_loss",
    "box_iou_loss_backward",
    "box_iou_rotated",
    "box_iou_rotated_backward",
    "conv_bn_relu",
    "conv_transpose2d",
    "decayed_scores",
    "deform_conv2d",
    "deform_conv2d_backward",
    "fold_batch_norm",
    "linear_act",
    "mask_iou",
    "mask_nms",
    "masks_to_boxes",
    "matrix_nms",
    "max_pool2d_backward",
    "max_pool2d_with_indices",
    "max_unpool2d",
    "max_unpool2d_backward",
    "multiscale_roi_align",
    "nms",
    "nms_3d",
    "nms_match",
    "nms_padded",
    "nms_rotated",
    "pixels_at",
    "ps_roi_align",
    "ps_roi_pool",
    "roi_align",
    "roi_align_max",
    "roi_align_rotated",
    "roi_pool",
    "samples_at",
    "sigmoid_focal_loss",
    "soft_nms",
    "softmax_focal_loss",
    "squeeze_excitation",
    "topk_above",
    "weighted_boxes_fusion",
]
