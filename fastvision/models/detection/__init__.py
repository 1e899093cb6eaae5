"""Detection models: a list of {"boxes", "labels", "scores"}, one per image.

In training a dict of losses, of images and targets.
"""

from .anchors import AnchorGenerator
from .backbones import BackboneWithFPN, mobilenet_backbone, resnet_fpn_backbone
from .box_coder import BoxCoder
from .fast_rcnn import FastRCNN, fast_rcnn_vgg16
from .faster_rcnn_vgg import faster_rcnn_vgg16
from .generalized_rcnn import GeneralizedRCNN
from .image_list import ImageList
from .matching import BalancedPositiveNegativeSampler, Matcher
from .rcnn import RCNN, rcnn_alexnet, rcnn_vgg16
from .selective_search import SelectiveSearch
from .transform import GeneralizedRCNNTransform

__all__ = [
    "RCNN",
    "AnchorGenerator",
    "BackboneWithFPN",
    "BalancedPositiveNegativeSampler",
    "BoxCoder",
    "FastRCNN",
    "GeneralizedRCNN",
    "GeneralizedRCNNTransform",
    "ImageList",
    "Matcher",
    "SelectiveSearch",
    "fast_rcnn_vgg16",
    "faster_rcnn_vgg16",
    "mobilenet_backbone",
    "rcnn_alexnet",
    "rcnn_vgg16",
    "resnet_fpn_backbone",
]
