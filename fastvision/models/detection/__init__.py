"""Detection models: a list of {"boxes", "labels", "scores"}, one per image.

In training a dict of losses, of images and targets.
"""

from ._one_stage import FixedShape
from ._selection import Detections
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
from .ssd import SSD, SSDHead, SSDMatcher
from .ssd_small import SquareBoxGenerator, ssd224_small
from .ssd_vgg import ssd300_vgg16
from .ssdlite import ssdlite320_mobilenet_v3_large
from .transform import GeneralizedRCNNTransform

__all__ = [
    "FCOS",
    "SSD",
    "AnchorGenerator",
    "BackboneWithFPN",
    "BalancedPositiveNegativeSampler",
    "BoxCoder",
    "BoxLinearCoder",
    "DefaultBoxGenerator",
    "Detections",
    "FCOSHead",
    "FixedShape",
    "GeneralizedRCNN",
    "GeneralizedRCNNTransform",
    "ImageList",
    "Matcher",
    "RetinaNet",
    "RetinaNetHead",
    "SSDHead",
    "SSDMatcher",
    "SquareBoxGenerator",
    "fcos_resnet50_fpn",
    "mobilenet_backbone",
    "resnet_fpn_backbone",
    "retinanet_resnet50_fpn",
    "retinanet_resnet50_fpn_v2",
    "ssd224_small",
    "ssd300_vgg16",
    "ssdlite320_mobilenet_v3_large",
]
