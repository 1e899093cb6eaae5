"""Boxes from one format to another."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from ..reference.box_iou import FORMATS
from ._checks import check_tensor, is_traced

ROTATED = ("cxcywhr", "xywhr", "xyxyxyxy")
_SIZES = dict.fromkeys(FORMATS, 4) | {"cxcywhr": 5, "xywhr": 5, "xyxyxyxy": 8}


def _cos_sin(degrees: Tensor) -> tuple[Tensor, Tensor]:
    radians = degrees * math.pi / 180.0
    return torch.cos(radians), torch.sin(radians)


def _xywh_to_xyxy(x: Tensor, y: Tensor, w: Tensor, h: Tensor) -> tuple[Tensor, ...]:
    return x, y, x + w, y + h


def _cxcywh_to_xyxy(cx: Tensor, cy: Tensor, w: Tensor, h: Tensor) -> tuple[Tensor, ...]:
    return cx - 0.5 * w, cy - 0.5 * h, cx + 0.5 * w, cy + 0.5 * h


def _xyxy_to_xywh(x1: Tensor, y1: Tensor, x2: Tensor, y2: Tensor) -> tuple[Tensor, ...]:
    return x1, y1, x2 - x1, y2 - y1


def _xyxy_to_cxcywh(x1: Tensor, y1: Tensor, x2: Tensor, y2: Tensor) -> tuple[Tensor, ...]:
    return (x1 + x2) / 2, (y1 + y2) / 2, x2 - x1, y2 - y1


# y points down and angles turn counterclockwise as seen
def _cxcywhr_to_xywhr(
    cx: Tensor, cy: Tensor, w: Tensor, h: Tensor, r: Tensor
) -> tuple[Tensor, ...]:
    cos, sin = _cos_sin(r)
    return cx - w / 2 * cos - h / 2 * sin, cy - h / 2 * cos + w / 2 * sin, w, h, r


def _xywhr_to_cxcywhr(x: Tensor, y: Tensor, w: Tensor, h: Tensor, r: Tensor) -> tuple[Tensor, ...]:
    cos, sin = _cos_sin(r)
    return x + w / 2 * cos + h / 2 * sin, y - w / 2 * sin + h / 2 * cos, w, h, r


def _xywhr_to_xyxyxyxy(
    x1: Tensor, y1: Tensor, w: Tensor, h: Tensor, r: Tensor
) -> tuple[Tensor, ...]:
    cos, sin = _cos_sin(r)
    x2, y2 = x1 + w * cos, y1 - w * sin
    along_x, along_y = h * sin, h * cos  # the left and right sides
    return x1, y1, x2, y2, x2 + along_x, y2 + along_y, x1 + along_x, y1 + along_y


def _xyxyxyxy_to_xywhr(
    x1: Tensor, y1: Tensor, x2: Tensor, y2: Tensor, x3: Tensor, y3: Tensor, _x4: Tensor, _y4: Tensor
) -> tuple[Tensor, ...]:
    r = torch.atan2(y1 - y2, x2 - x1) * 180 / math.pi
    w = ((x2 - x1) ** 2 + (y1 - y2) ** 2).sqrt()
    h = ((x3 - x2) ** 2 + (y3 - y2) ** 2).sqrt()
    return x1, y1, w, h, r


_STEPS: dict[tuple[str, str], tuple[Callable[..., tuple[Tensor, ...]], ...]] = {
    ("xywh", "xyxy"): (_xywh_to_xyxy,),
    ("xywh", "cxcywh"): (_xywh_to_xyxy, _xyxy_to_cxcywh),
    ("cxcywh", "xyxy"): (_cxcywh_to_xyxy,),
    ("cxcywh", "xywh"): (_cxcywh_to_xyxy, _xyxy_to_xywh),
    ("xyxy", "xywh"): (_xyxy_to_xywh,),
    ("xyxy", "cxcywh"): (_xyxy_to_cxcywh,),
    ("cxcywhr", "xywhr"): (_cxcywhr_to_xywhr,),
    ("cxcywhr", "xyxyxyxy"): (_cxcywhr_to_xywhr, _xywhr_to_xyxyxyxy),
    ("xywhr", "cxcywhr"): (_xywhr_to_cxcywhr,),
    ("xywhr", "xyxyxyxy"): (_xywhr_to_xyxyxyxy,),
    ("xyxyxyxy", "xywhr"): (_xyxyxyxy_to_xywhr,),
    ("xyxyxyxy", "cxcywhr"): (_xyxyxyxy_to_xywhr, _xywhr_to_cxcywhr),
}


def box_convert(boxes: Tensor, in_fmt: str, out_fmt: str) -> Tensor:
    """Boxes in another format.

    Args:
        boxes: [..., K] boxes in ``in_fmt``.
        in_fmt, out_fmt: "xyxy" (x1, y1, x2, y2), "xywh" (x1, y1, width, height) or "cxcywh"
            (center, width, height), with K = 4. Rotated: "xywhr" and "cxcywhr" with K = 5, where r
            in degrees turns the box counterclockwise around its center as seen (y points down) and
            x1, y1 is the corner that is upper left at r = 0; "xyxyxyxy" with K = 8, the corners
            upper left, upper right, lower right and lower left.

    Returns:
        [..., K] of ``out_fmt``, a copy if the formats are equal. The dtype is that of ``boxes``,
        except that integer boxes from or to "cxcywh" become floating-point ones, as in torchvision.
        Rotated integer boxes are rounded in each step.

    Differentiable through the operations of PyTorch.

    Raises:
        ValueError: an unknown format, or another K than that of ``in_fmt``.
        NotImplementedError: from a rotated to an axis-aligned format or back; a sparse or nested
            tensor.
        TypeError: ``boxes`` is no tensor, or a format no string.
    """
    for name, fmt in (("in_fmt", in_fmt), ("out_fmt", out_fmt)):
        if not isinstance(fmt, str):
            raise TypeError(f"{name} must be a string, got {fmt!r}")
    if in_fmt not in _SIZES or out_fmt not in _SIZES:
        raise ValueError(
            f"Unsupported Bounding Box Conversions for given in_fmt {in_fmt} and out_fmt {out_fmt}"
        )
    check_tensor(boxes, "boxes")
    if in_fmt == out_fmt:
        return boxes.clone()
    if (in_fmt, out_fmt) not in _STEPS:
        raise NotImplementedError(
            f"Unsupported Bounding Box Conversions for given in_fmt {in_fmt} and out_fmt {out_fmt}"
        )
    # torch.jit.trace would take the size for a constant
    if not is_traced() and (boxes.dim() == 0 or boxes.shape[-1] != _SIZES[in_fmt]):
        raise ValueError(
            f"boxes must have shape [..., {_SIZES[in_fmt]}] in {in_fmt}, got {list(boxes.shape)}"
        )
    rounded = in_fmt in ROTATED and not boxes.is_floating_point()
    dtype = boxes.dtype
    for step in _STEPS[in_fmt, out_fmt]:
        boxes = torch.stack(step(*boxes.unbind(-1)), -1)
        if rounded:
            boxes = boxes.round().to(dtype)
    return boxes
