"""YOLOv3.

Redmon and Farhadi, YOLOv3: an incremental improvement, 2018.
"""

from __future__ import annotations

from typing import Any

from ....ops._checks import pair
from ..._registry import register
from ...darknet.architectures import Layers, darknet53_body
from ._build import Anchors, Size, build, sizes_of
from .model import YOLO
from .yolov2 import tiny_body

# width and height in pixels, of Darknet's configurations for COCO
_ANCHORS = (
    (10, 13), (16, 30), (33, 23), (30, 61), (62, 45), (59, 119), (116, 90), (156, 198), (373, 326),
)  # fmt: skip
_TINY_ANCHORS = ((10, 14), (23, 27), (37, 58), (81, 82), (135, 169), (344, 319))


def _yolo(layers: Layers, anchors: Anchors, level: int, levels: int, num_classes: int) -> None:
    """A head, and the 1x1 convolution in front of it.

    ``level``: 0 for the smallest anchors.
    """
    sizes = sizes_of(anchors)
    count, rest = divmod(len(sizes), levels)
    if rest or not count:
        raise ValueError(f"anchors must be as many for each of {levels} maps, got {len(sizes)}")
    layers.scores(count * (4 + num_classes))
    layers.add(
        "yolo", mask=range(level * count, (level + 1) * count),
        anchors=[side for size in sizes for side in size], classes=num_classes - 1,
        num=len(sizes), ignore_thresh=0.5, truth_thresh=1,
    )  # fmt: skip


@register("detection")
def yolov3(
    *,
    weights: Any = None,
    progress: bool = True,
    num_classes: int = 81,
    size: Size = 416,
    width_mult: float = 1.0,
    anchors: Anchors = _ANCHORS,
    **options: Any,
) -> YOLO:
    """YOLOv3 (Redmon and Farhadi 2018): 61,949,149 parameters with the 80 classes of COCO,
    61,626,049 with the 20 of VOC; 32.93 G multiply-adds at 416x416.

    Args:
        weights: None, a state dict, a path, or the path of a Darknet .weights file.
        progress: whether a download shows a progress bar.
        num_classes: number of labels, the background included as for the other detectors.
        size: (H, W) of the input, multiples of 32, or one number for both.
        width_mult: factor of all numbers of channels but the heads'.
        anchors: widths and heights in pixels of the input by ascending area, such as
            :func:`kmeans_anchors` finds, a third for each map; COCO's by default.
        options: of :class:`YOLO`.
    """
    layers = Layers(*pair(size, "size"), width_mult)
    darknet53_body(layers)
    # channels, and the last map of the body with twice the resolution of the one before
    for level, channels, source in ((2, 1024, None), (1, 512, 61), (0, 256, 36)):
        if source is not None:
            layers.add("route", layers=-4)
            layers.conv(channels // 2, 1)
            layers.add("upsample", stride=2)
            layers.add("route", layers=(-1, source))
        for _ in range(3):
            layers.conv(channels // 2, 1)
            layers.conv(channels)
        _yolo(layers, anchors, level, 3, num_classes)
    return build("yolov3", layers, weights, progress, options)


@register("detection")
def yolov3_tiny(
    *,
    weights: Any = None,
    progress: bool = True,
    num_classes: int = 81,
    size: Size = 416,
    width_mult: float = 1.0,
    anchors: Anchors = _TINY_ANCHORS,
    **options: Any,
) -> YOLO:
    """Tiny YOLOv3 (Darknet's yolov3-tiny): 8,852,366 parameters with the 80 classes of COCO.

    Args:
        weights, progress, num_classes, size, width_mult, options: see :func:`yolov3`.
        anchors: half of them for each map; see :func:`yolov3`.
    """
    layers = Layers(*pair(size, "size"), width_mult)
    tiny_body(layers)
    layers.conv(256, 1)
    layers.conv(512)
    _yolo(layers, anchors, 1, 2, num_classes)
    layers.add("route", layers=-4)
    layers.conv(128, 1)
    layers.add("upsample", stride=2)
    layers.add("route", layers=(-1, 8))
    layers.conv(256)
    _yolo(layers, anchors, 0, 2, num_classes)
    return build("yolov3_tiny", layers, weights, progress, options)
