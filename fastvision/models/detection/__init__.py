"""Detection models: a list of {"boxes", "labels", "scores"}, one per image.

In training a dict of losses, of images and targets.
"""

from .anchors import AnchorGenerator
from .backbones import BackboneWithFPN, mobilenet_backbone, resnet_fpn_backbone
from .box_coder import BoxCoder
from .generalized_rcnn import GeneralizedRCNN
from .image_list import ImageList
from .matching import BalancedPositiveNegativeSampler, Matcher
from .transform import GeneralizedRCNNTransform
from .yolo import (
    YOLO,
    kmeans_anchors,
    yolov1,
    yolov1_tiny,
    yolov2,
    yolov2_tiny,
    yolov3,
    yolov3_tiny,
)

__all__ = [
    "YOLO",
    "AnchorGenerator",
    "BackboneWithFPN",
    "BalancedPositiveNegativeSampler",
    "BoxCoder",
    "GeneralizedRCNN",
    "GeneralizedRCNNTransform",
    "ImageList",
    "Matcher",
    "kmeans_anchors",
    "mobilenet_backbone",
    "resnet_fpn_backbone",
    "yolov1",
    "yolov1_tiny",
    "yolov2",
    "yolov2_tiny",
    "yolov3",
    "yolov3_tiny",
]
