"""YOLOv2.

Redmon and Farhadi, YOLO9000: better, faster, stronger, 2017.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ....ops._checks import pair
from ..._registry import register
from ...darknet.architectures import Layers, darknet19_body
from ._build import Anchors, Size, build, sizes_of
from .model import YOLO

_STRIDE = 32
# in units of a cell, of Darknet's configuration for COCO
_ANCHORS = (
    0.57273, 0.677385, 1.87446, 2.06253, 3.33843, 5.47434, 7.88282, 3.52778, 9.77052, 9.16828,
)  # fmt: skip


def _region(layers: Layers, anchors: Anchors | None, num_classes: int) -> None:
    """The head, and the 1x1 convolution in front of it."""
    numbers: Sequence[float] = _ANCHORS
    if anchors is not None:
        numbers = [side / _STRIDE for size in sizes_of(anchors) for side in size]
    layers.scores(len(numbers) // 2 * (4 + num_classes))
    layers.add(
        "region", anchors=numbers, classes=num_classes - 1, coords=4, num=len(numbers) // 2,
        softmax=1, rescore=1, object_scale=5, noobject_scale=1, class_scale=1, coord_scale=1,
        thresh=0.6,
    )  # fmt: skip


@register("detection")
def yolov2(
    *,
    weights: Any = None,
    progress: bool = True,
    num_classes: int = 81,
    size: Size = 416,
    width_mult: float = 1.0,
    anchors: Anchors | None = None,
    **options: Any,
) -> YOLO:
    """YOLOv2 (Redmon and Farhadi 2017): 50,962,889 parameters with the 80 classes of COCO,
    50,655,389 with the 20 of VOC; 14.73 G multiply-adds at 416x416.

    Args:
        weights: None, a state dict, a path, or the path of a Darknet .weights file.
        progress: whether a download shows a progress bar.
        num_classes: number of labels, the background included as for the other detectors.
        size: (H, W) of the input, multiples of 32, or one number for both.
        width_mult: factor of all numbers of channels but the head's.
        anchors: widths and heights in pixels of the input, such as :func:`kmeans_anchors` finds;
            None for the five of COCO.
        options: of :class:`YOLO`. The paper trains with ``sizes=range(320, 609, 32)``.
    """
    layers = Layers(*pair(size, "size"), width_mult)
    darknet19_body(layers)
    layers.conv(1024)
    layers.conv(1024)
    layers.add("route", layers=-9)  # the last map of twice the resolution
    layers.conv(64, 1)
    layers.add("reorg", stride=2)
    layers.add("route", layers=(-1, -4))
    layers.conv(1024)
    _region(layers, anchors, num_classes)
    return build("yolov2", layers, weights, progress, options)


@register("detection")
def yolov2_tiny(
    *,
    weights: Any = None,
    progress: bool = True,
    num_classes: int = 81,
    size: Size = 416,
    width_mult: float = 1.0,
    anchors: Anchors | None = None,
    **options: Any,
) -> YOLO:
    """Tiny YOLOv2 (Darknet's yolov2-tiny): 11,232,057 parameters with the 80 classes of COCO.

    Args:
        weights, progress, num_classes, size, width_mult, anchors, options: see :func:`yolov2`.
    """
    layers = Layers(*pair(size, "size"), width_mult)
    tiny_body(layers)
    layers.conv(512)
    _region(layers, anchors, num_classes)
    return build("yolov2_tiny", layers, weights, progress, options)


def tiny_body(layers: Layers) -> None:
    """Seven 3x3 convolutions with poolings between, the last of which keeps the size."""
    for channels in (16, 32, 64, 128, 256):
        layers.conv(channels)
        layers.pool()
    layers.conv(512)
    layers.pool(1)
    layers.conv(1024)
