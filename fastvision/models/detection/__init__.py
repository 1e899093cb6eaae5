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
from .pillars import PillarBackbone, PillarFeatures, PointPillars, point_pillars
from .retinanet import (
    RetinaNet,
    RetinaNetHead,
    retinanet_resnet50_fpn,
    retinanet_resnet50_fpn_v2,
)
from .solid_anchors import SolidAnchors
from .ssd import SSD, SSDHead, SSDMatcher
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
    "FCOSHead",
    "GeneralizedRCNN",
    "GeneralizedRCNNTransform",
    "ImageList",
    "Matcher",
    "PillarBackbone",
    "PillarFeatures",
    "PointPillars",
    "RetinaNet",
    "RetinaNetHead",
    "SSDHead",
    "SSDMatcher",
    "SolidAnchors",
    "fcos_resnet50_fpn",
    "mobilenet_backbone",
    "point_pillars",
    "resnet_fpn_backbone",
    "retinanet_resnet50_fpn",
    "retinanet_resnet50_fpn_v2",
    "ssd300_vgg16",
    "ssdlite320_mobilenet_v3_large",
]
