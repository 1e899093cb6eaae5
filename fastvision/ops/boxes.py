"""Boxes: the module that takes the place of torchvision.ops.boxes."""

from __future__ import annotations

import torch
from torch import Tensor

from ..reference.box_iou import FORMATS
from ..reference.box_iou import corners as _corners
from ..reference.box_iou import upcast as _upcast
from ._checks import check_number, check_tensor, is_traced
from .box_convert import box_convert
from .box_iou import box_iou, complete_box_iou, distance_box_iou, generalized_box_iou
from .box_iou_rotated import box_iou_rotated
from .masks_to_boxes import masks_to_boxes
from .nms import batched_nms, nms

__all__ = [
    "batched_nms",
    "box_area",
    "box_convert",
    "box_iou",
    "box_iou_rotated",
    "clip_boxes_to_image",
    "complete_box_iou",
    "distance_box_iou",
    "generalized_box_iou",
    "masks_to_boxes",
    "nms",
    "remove_small_boxes",
]


def _check_boxes(boxes: object) -> None:
    check_tensor(boxes, "boxes")
    assert isinstance(boxes, Tensor)
    if boxes.dim() == 0 or boxes.shape[-1] != 4:
        raise ValueError(f"boxes must have shape [..., 4], got {list(boxes.shape)}")


def box_area(boxes: Tensor, fmt: str = "xyxy") -> Tensor:
    """Areas of boxes.

    Args:
        boxes: [..., 4] in ``fmt``.
        fmt: "xyxy" (x1, y1, x2, y2), "xywh" (x1, y1, width, height) or "cxcywh" (center, width,
            height).

    Returns:
        [...] in float32 for 16-bit floats, int32 for smaller integers, otherwise in the dtype of
        ``boxes``. Differentiable through the operations of PyTorch.

    Raises:
        ValueError: an unknown format or another shape.
        TypeError, NotImplementedError: ``boxes`` is no dense tensor.
    """
    if fmt not in FORMATS:
        raise ValueError(f"Unsupported Bounding Box area for given format {fmt}")
    _check_boxes(boxes)
    boxes = _upcast(boxes)
    if fmt == "xyxy":
        return (boxes[..., 2] - boxes[..., 0]) * (boxes[..., 3] - boxes[..., 1])
    return boxes[..., 2] * boxes[..., 3]


def clip_boxes_to_image(boxes: Tensor, size: tuple[int, int]) -> Tensor:
    """Boxes with their corners moved into an image.

    Args:
        boxes: [..., 4] corners (x1, y1, x2, y2).
        size: (height, width) of the image.

    Returns:
        [..., 4] with x from 0 to the width and y from 0 to the height; NaN stays. Differentiable
        through the operations of PyTorch.

    Raises:
        TypeError, NotImplementedError: ``boxes`` is no dense tensor.
        ValueError: an odd number of coordinates.
    """
    check_tensor(boxes, "boxes")
    # torch.jit.trace would take the size for a constant
    if not is_traced() and (boxes.dim() == 0 or boxes.shape[-1] % 2 == 1):
        raise ValueError(f"boxes must have shape [..., 4], got {list(boxes.shape)}")
    height, width = size
    x, y = boxes[..., 0::2].clamp(0, width), boxes[..., 1::2].clamp(0, height)
    return torch.stack((x, y), boxes.dim()).reshape(boxes.shape)


def remove_small_boxes(boxes: Tensor, min_size: float) -> Tensor:
    """Indices of the boxes with no side below a size.

    Args:
        boxes: [N, 4] corners (x1, y1, x2, y2). With more dimensions the indices are those along the
            first, as in torchvision.
        min_size: least width and height.

    Returns:
        int64 indices [K], ascending.

    Raises:
        TypeError, NotImplementedError: ``boxes`` is no dense tensor, ``min_size`` no number.
        ValueError: another shape.
    """
    _check_boxes(boxes)
    if not isinstance(min_size, Tensor):
        check_number(min_size, "min_size")
    width, height = boxes[..., 2] - boxes[..., 0], boxes[..., 3] - boxes[..., 1]
    return torch.where((width >= min_size) & (height >= min_size))[0]


def _box_inter_union(boxes1: Tensor, boxes2: Tensor, fmt: str = "xyxy") -> tuple[Tensor, Tensor]:
    """Intersections and unions [..., N, M], which torchvision's users import."""
    if fmt not in FORMATS:
        raise ValueError(f"Unsupported Box IoU Calculation for given fmt {fmt}.")
    low1, high1, area1 = _corners(_upcast(boxes1).unsqueeze(-2), fmt)
    low2, high2, area2 = _corners(_upcast(boxes2).unsqueeze(-3), fmt)
    width, height = (torch.min(high1, high2) - torch.max(low1, low2)).clamp(min=0).unbind(-1)
    inter = width * height
    return inter, area1 + area2 - inter


def _batched_nms_coordinate_trick(
    boxes: Tensor, scores: Tensor, idxs: Tensor, iou_threshold: float
) -> Tensor:
    """:func:`batched_nms`, exact where torchvision's shifts the boxes by class."""
    return batched_nms(boxes, scores, idxs, iou_threshold)


def _batched_nms_vanilla(
    boxes: Tensor, scores: Tensor, idxs: Tensor, iou_threshold: float
) -> Tensor:
    """:func:`batched_nms`, which needs no loop over the classes."""
    return batched_nms(boxes, scores, idxs, iou_threshold)
