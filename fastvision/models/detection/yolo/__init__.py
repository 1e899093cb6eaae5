"""YOLOv1, v2 and v3, and detectors of Darknet's files."""

from .anchors import kmeans_anchors
from .model import YOLO
from .yolov1 import yolov1, yolov1_tiny
from .yolov2 import yolov2, yolov2_tiny
from .yolov3 import yolov3, yolov3_tiny

__all__ = [
    "YOLO",
    "kmeans_anchors",
    "yolov1",
    "yolov1_tiny",
    "yolov2",
    "yolov2_tiny",
    "yolov3",
    "yolov3_tiny",
]
