"""Detection models: a list of {"boxes", "labels", "scores"}, one per image.

In training a dict of losses, of images and targets.
"""

from .anchors import AnchorGenerator
from .backbones import BackboneWithFPN, mobilenet_backbone, resnet_fpn_backbone
from .box_coder import BoxCoder, BoxLinearCoder
from .default_boxes import DefaultBoxGenerator
from .fcos import FCOS, FCOSHead, fcos_resnet50_fpn
from .generalized_rcnn import GeneralizedRCNN
from .image_list import ImageList
from .matching import BalancedPositiveNegativeSampler, Matcher
from .retinanet import (
    RetinaNet,
    RetinaNetHead,
    retinanet_resnet50_fpn,
    retinanet_resnet50_fpn_v2,
)
from .small import small_fcos, small_retinanet, small_ssd
from .ssd import SSD, SSDHead, SSDMatcher
from .ssd_vgg import ssd300_vgg16
from .ssdlite import ssdlite320_mobilenet_v3_large
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
    "FCOS",
    "SSD",
    "YOLO",
    "AnchorGenerator",
    "BackboneWithFPN",
    "BalancedPositiveNegativeSampler",
    "BoxCoder",
    "BoxLinearCoder",
    "DefaultBoxGenerator",
    "FCOSHead",
    "GeneralizedRCNN",
    "GeneralizedRCNNTransform",
    "ImageList",
    "Matcher",
    "RetinaNet",
    "RetinaNetHead",
    "SSDHead",
    "SSDMatcher",
    "fcos_resnet50_fpn",
    "kmeans_anchors",
    "mobilenet_backbone",
    "mobilenet_backbone",
    "resnet_fpn_backbone",
    "resnet_fpn_backbone",
    "retinanet_resnet50_fpn",
    "retinanet_resnet50_fpn_v2",
    "small_fcos",
    "small_retinanet",
    "small_ssd",
    "ssd300_vgg16",
    "ssdlite320_mobilenet_v3_large",
    "yolov1",
    "yolov1_tiny",
    "yolov2",
    "yolov2_tiny",
    "yolov3",
    "yolov3_tiny",
]
