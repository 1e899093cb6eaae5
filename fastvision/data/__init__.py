"""Data sets, augmentation and loading for training vision models."""

from ._samples import IGNORE
from .coco import CocoDetection
from .digits import Digits8x8, MNIST5k
from .folders import ImageFolder
from .loading import collate_detection, loader
from .photographs import photographs
from .point_clouds import LidarScenes
from .scenes import DigitScenes
from .transforms import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    KeepVisible,
    class_map_only,
    classification_evaluation,
    classification_training,
    detection_evaluation,
    detection_training,
    segmentation_evaluation,
    segmentation_training,
)
from .voc import VOC_CLASSES, VOCDetection, VOCSegmentation

__all__ = [
    "IGNORE",
    "IMAGENET_MEAN",
    "IMAGENET_STD",
    "VOC_CLASSES",
    "CocoDetection",
    "DigitScenes",
    "Digits8x8",
    "ImageFolder",
    "KeepVisible",
    "LidarScenes",
    "MNIST5k",
    "VOCDetection",
    "VOCSegmentation",
    "class_map_only",
    "classification_evaluation",
    "classification_training",
    "collate_detection",
    "detection_evaluation",
    "detection_training",
    "loader",
    "photographs",
    "segmentation_evaluation",
    "segmentation_training",
]
