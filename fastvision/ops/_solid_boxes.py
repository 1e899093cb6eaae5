"""Formats of solid boxes."""

from __future__ import annotations

import torch
from torch import Tensor

FORMATS = {"cxcyczdxdydzr": 7, "xyzxyz": 6}  # numbers of a box


def check_format(fmt: object) -> int:
    """How many numbers a box has."""
    if not isinstance(fmt, str):
        raise TypeError(f"fmt must be one of {tuple(FORMATS)}, got {fmt!r}")
    if fmt not in FORMATS:
        raise ValueError(f"fmt must be one of {tuple(FORMATS)}, got {fmt!r}")
    return FORMATS[fmt]


def with_yaw(boxes: Tensor, fmt: str) -> Tensor:
    """[..., 7] (center, sides, yaw). 16-bit corners give float32: a center has one bit more."""
    if fmt == "cxcyczdxdydzr":
        return boxes
    boxes = boxes if boxes.dtype == torch.float64 else boxes.float()
    low, high = boxes[..., :3], boxes[..., 3:]
    return torch.cat([(low + high) / 2, high - low, torch.zeros_like(boxes[..., :1])], -1)
