"""YOLOv1 and Fast YOLO.

Redmon, Divvala, Girshick and Farhadi, You only look once: unified, real-time object detection,
2016.
"""

from __future__ import annotations

from typing import Any

from ....ops._checks import pair
from ..._blocks import make_divisible
from ..._registry import register
from ...darknet.architectures import Layers, extraction_body
from ._build import Size, build
from .model import YOLO

_STRIDE = 64  # of the last map
_HIDDEN = 4096  # outputs of the first linear layer


def _grid(
    layers: Layers, size: Size, hidden: list[int], dropout: float, boxes: int, num_classes: int
) -> None:
    """Linear layers, and the head: classes and boxes for each cell of the last map."""
    height, width = pair(size, "size")
    if height != width or height % _STRIDE:
        raise ValueError(f"size must be one multiple of {_STRIDE}, got {size}")
    side = height // _STRIDE
    for outputs in hidden:
        outputs = make_divisible(outputs * layers.width_mult)
        layers.add("connected", output=outputs, activation="leaky")
    layers.add("dropout", probability=dropout)
    outputs = side * side * (num_classes - 1 + 5 * boxes)
    layers.add("connected", output=outputs, activation="linear")
    layers.add(
        "detection", classes=num_classes - 1, coords=4, rescore=1, side=side, num=boxes, softmax=0,
        sqrt=1, object_scale=1, noobject_scale=0.5, class_scale=1, coord_scale=5,
    )  # fmt: skip


@register("detection")
def yolov1(
    *,
    weights: Any = None,
    progress: bool = True,
    num_classes: int = 21,
    size: Size = 448,
    width_mult: float = 1.0,
    boxes: int = 2,
    batch_norm: bool = False,
    dropout: float = 0.5,
    **options: Any,
) -> YOLO:
    """YOLOv1 (Redmon et al. 2016): 24 convolutions and 2 linear layers, 271,703,550 parameters with
    the 20 classes of VOC, 20.29 G multiply-adds at 448x448.

    Args:
        weights: None, a state dict, a path, or the path of a Darknet .weights file.
        progress: whether a download shows a progress bar.
        num_classes: number of labels, the background included as for the other detectors.
        size: height and width of the input, a multiple of 64; the grid has 64 pixels per cell.
        width_mult: factor of all numbers of channels but the head's.
        boxes: that each cell predicts, the paper's B.
        batch_norm: whether batch normalizations follow the convolutions; none in the paper.
        dropout: probability that training zeroes an input of the last layer.
        options: of :class:`YOLO`.
    """
    layers = Layers(*pair(size, "size"), width_mult, batch_norm)
    extraction_body(layers)
    for stride in (1, 2, 1, 1):
        layers.conv(1024, 3, stride)
    _grid(layers, size, [_HIDDEN], dropout, boxes, num_classes)
    return build("yolov1", layers, weights, progress, options)


@register("detection")
def yolov1_tiny(
    *,
    weights: Any = None,
    progress: bool = True,
    num_classes: int = 21,
    size: Size = 448,
    width_mult: float = 1.0,
    boxes: int = 2,
    batch_norm: bool = False,
    dropout: float = 0.5,
    **options: Any,
) -> YOLO:
    """Fast YOLO (Redmon et al. 2016): 9 convolutions, 45,089,374 parameters with the 20 classes of
    VOC.

    Args:
        weights, progress, num_classes, size, width_mult, boxes, batch_norm, dropout, options: see
            :func:`yolov1`.
    """
    layers = Layers(*pair(size, "size"), width_mult, batch_norm)
    for channels in (16, 32, 64, 128, 256, 512):
        layers.conv(channels)
        layers.pool()
    for _ in range(3):
        layers.conv(1024)
    _grid(layers, size, [256, _HIDDEN], dropout, boxes, num_classes)
    return build("yolov1_tiny", layers, weights, progress, options)
