"""What the losses of boxes share."""

from __future__ import annotations

import torch
from torch import Tensor

from ..reference.box_iou import upcast_non_float
from ._checks import check_tensor


def checked(boxes1: Tensor, boxes2: Tensor) -> tuple[Tensor, Tensor]:
    """Both in float32 or float64, if they fit each other."""
    for name, boxes in (("boxes1", boxes1), ("boxes2", boxes2)):
        check_tensor(boxes, name)
        if boxes.is_complex() or boxes.is_quantized:
            raise TypeError(
                f"{name} must be of a floating-point or integer type, got {boxes.dtype}"
            )
        if boxes.dim() == 0 or boxes.shape[-1] != 4:
            raise ValueError(f"{name} must have shape [..., 4], got {list(boxes.shape)}")
    if boxes1.device != boxes2.device:
        raise ValueError(f"boxes2 must be on {boxes1.device} as boxes1, got {boxes2.device}")
    if boxes1.shape != boxes2.shape:
        try:
            torch.broadcast_shapes(boxes1.shape, boxes2.shape)
        except RuntimeError:
            raise ValueError(
                f"boxes2 must have a shape that broadcasts with that of boxes1, "
                f"{list(boxes1.shape)}, got {list(boxes2.shape)}"
            ) from None
    return upcast_non_float(boxes1), upcast_non_float(boxes2)
