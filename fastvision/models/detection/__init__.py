"""Detection models: a list of {"boxes", "labels", "scores"}, one per image.

In training a dict of losses, of images and targets.
"""

from ._one_stage import FixedShape
from ._selection import Detections
from .anchors import AnchorGenerator
from .backbones import BackboneWithFPN, mobilenet_backbone, resnet_fpn_backbone
from .box_coder import BoxCoder, BoxLinearCoder
from .default_boxes import DefaultBoxGenerator
from .fast_rcnn import FastRCNN, fast_rcnn_vgg16
from .faster_rcnn import (
    FasterRCNN,
    FastRCNNConvFCHead,
    FastRCNNPredictor,
    TwoMLPHead,
    fasterrcnn_mobilenet_v3_large_320_fpn,
    fasterrcnn_mobilenet_v3_large_fpn,
    fasterrcnn_resnet50_fpn,
    fasterrcnn_resnet50_fpn_v2,
)
from .faster_rcnn_vgg import faster_rcnn_vgg16
from .fcos import FCOS, FCOSHead, fcos_resnet50_fpn
from .generalized_rcnn import GeneralizedRCNN
from .image_list import ImageList
from .keypoint_rcnn import (
    KeypointRCNN,
    KeypointRCNNHeads,
    KeypointRCNNPredictor,
    keypointrcnn_resnet50_fpn,
)
from .mask_rcnn import (
    MaskRCNN,
    MaskRCNNHeads,
    maskrcnn_resnet50_fpn,
    maskrcnn_resnet50_fpn_v2,
)
from .masks import MaskRCNNPredictor
from .matching import BalancedPositiveNegativeSampler, Matcher
from .pillars import PillarBackbone, PillarFeatures, PointPillars, point_pillars
from .rcnn import RCNN, rcnn_alexnet, rcnn_vgg16
from .retinanet import (
    RetinaNet,
    RetinaNetHead,
    retinanet_resnet50_fpn,
    retinanet_resnet50_fpn_v2,
)
from .roi_heads import RoIHeads
from .rpn import RegionProposalNetwork, RPNHead
from .selective_search import SelectiveSearch
from .small import small_faster_rcnn, small_fcos, small_mask_rcnn, small_retinanet, small_ssd
from .solid_anchors import SolidAnchors
from .ssd import SSD, SSDHead, SSDMatcher
from .ssd_small import SquareBoxGenerator, ssd224_small
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
    "RCNN",
    "SSD",
    "YOLO",
    "AnchorGenerator",
    "BackboneWithFPN",
    "BalancedPositiveNegativeSampler",
    "BoxCoder",
    "BoxLinearCoder",
    "DefaultBoxGenerator",
    "Detections",
    "FCOSHead",
    "FastRCNN",
    "FastRCNNConvFCHead",
    "FastRCNNPredictor",
    "FasterRCNN",
    "FixedShape",
    "GeneralizedRCNN",
    "GeneralizedRCNNTransform",
    "ImageList",
    "KeypointRCNN",
    "KeypointRCNNHeads",
    "KeypointRCNNPredictor",
    "MaskRCNN",
    "MaskRCNNHeads",
    "MaskRCNNPredictor",
    "Matcher",
    "PillarBackbone",
    "PillarFeatures",
    "PointPillars",
    "RPNHead",
    "RegionProposalNetwork",
    "RetinaNet",
    "RetinaNetHead",
    "RoIHeads",
    "SSDHead",
    "SSDMatcher",
    "SelectiveSearch",
    "SolidAnchors",
    "SquareBoxGenerator",
    "TwoMLPHead",
    "fast_rcnn_vgg16",
    "faster_rcnn_vgg16",
    "fasterrcnn_mobilenet_v3_large_320_fpn",
    "fasterrcnn_mobilenet_v3_large_fpn",
    "fasterrcnn_resnet50_fpn",
    "fasterrcnn_resnet50_fpn_v2",
    "fcos_resnet50_fpn",
    "keypointrcnn_resnet50_fpn",
    "kmeans_anchors",
    "maskrcnn_resnet50_fpn",
    "maskrcnn_resnet50_fpn_v2",
    "mobilenet_backbone",
    "point_pillars",
    "rcnn_alexnet",
    "rcnn_vgg16",
    "resnet_fpn_backbone",
    "retinanet_resnet50_fpn",
    "retinanet_resnet50_fpn_v2",
    "small_faster_rcnn",
    "small_fcos",
    "small_mask_rcnn",
    "small_retinanet",
    "small_ssd",
    "ssd224_small",
    "ssd300_vgg16",
    "ssdlite320_mobilenet_v3_large",
    "yolov1",
    "yolov1_tiny",
    "yolov2",
    "yolov2_tiny",
    "yolov3",
    "yolov3_tiny",
]
