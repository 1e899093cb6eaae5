"""Functions on boxes: Python functions in torchvision, and an operator without a gradient."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ... import ops
from ...ops._checks import FLOATING
from . import devices
from .recording import keeping_torchscript


def fake_box_iou_rotated(boxes1: Tensor, boxes2: Tensor) -> Tensor:
    shape = (boxes1.shape[0], boxes2.shape[0])
    return boxes1.new_empty(shape, dtype=torch.float32)


def box_iou_rotated(boxes1: Tensor, boxes2: Tensor) -> Tensor:
    for name, boxes in (("boxes1", boxes1), ("boxes2", boxes2)):
        if boxes.dim() != 2:
            raise RuntimeError(f"{name} must have shape [N, 5], got {list(boxes.shape)}")
    try:
        return ops.box_iou_rotated(boxes1, boxes2).float()
    except (TypeError, ValueError) as error:
        raise RuntimeError(str(error)) from error  # as torchvision's operator


def of_two_sets_instead_of(stock: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Of a function of boxes1 and boxes2."""
    ours: Callable[..., Tensor] = getattr(ops, stock.__name__)

    @keeping_torchscript(stock)
    def function(boxes1: Tensor, boxes2: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        chosen = ours if devices.takes(boxes1, boxes2) else stock
        return chosen(boxes1, boxes2, *args, **kwargs)

    return function


def masks_to_boxes_instead_of(stock: Callable[..., Tensor]) -> Callable[..., Tensor]:
    dtypes = (torch.bool, torch.uint8, *FLOATING)

    @keeping_torchscript(stock)
    def masks_to_boxes(masks: Tensor) -> Tensor:
        chosen = ops.masks_to_boxes if devices.takes(masks, dtypes=dtypes) else stock
        return chosen(masks)

    return masks_to_boxes
