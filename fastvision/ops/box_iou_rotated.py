"""Overlap of every rotated box of one set with every box of another."""

from __future__ import annotations

from torch import Tensor

from .. import reference
from ._box_pairs import (
    check_sets,
    differentiable,
    fake_gradients,
    fake_overlaps,
    same_floating,
)
from ._checks import is_traced
from ._library import declare

# boxes [N, 5] and [M, 5], or [B, N, 5] and [B, M, 5] where either B may be 1
_FORWARD = declare(
    "box_iou_rotated",
    "(Tensor boxes1, Tensor boxes2) -> Tensor",
    fake=fake_overlaps,
    triton="kernels.box_iou_rotated.launch_box_iou_rotated",
    reference=reference.box_iou_rotated,
    lacks={"cuda": "the Triton kernel serves GPUs"},
    serves=("box_iou_rotated",),
)
_BACKWARD = declare(
    "box_iou_rotated_backward",
    "(Tensor grad, Tensor boxes1, Tensor boxes2) -> (Tensor, Tensor)",
    fake=fake_gradients,
    triton="kernels.box_iou_rotated.launch_box_iou_rotated_backward",
)
_overlap = differentiable(_FORWARD, _BACKWARD, reference.box_iou_rotated_backward)


def box_iou_rotated(boxes1: Tensor, boxes2: Tensor, *, backend: str | None = None) -> Tensor:
    """Intersection over union of every rotated box of one set with every box of another.

    In the frame of one box, the area of the other inside of it is a sum of integrals along edges
    (Green's theorem), which is continuous in the boxes: no list of corners has to be sorted. Pairs
    whose upright bounding boxes do not meet are skipped.

    Args:
        boxes1: [..., N, 5] (cx, cy, width, height, angle); the angle in degrees turns the box
            counterclockwise as seen, with y pointing down. float16, bfloat16, float32, float64 or
            integers. detectron2 has the same convention; mmcv has radians, and turns clockwise
            unless told otherwise.
        boxes2: [..., M, 5]; leading dimensions broadcast with those of ``boxes1``.
        backend: "triton", "cpp" or "reference"; None picks the fastest that can run.

    Returns:
        [..., N, M] in float32 (float64 for float64 boxes, where torchvision's has float32). 0 where
        a box has an area below 1e-14 (a negative side) or a center or angle that is not finite, NaN
        where a side is NaN.

    Differentiable in both sets, any number of times. Where edges coincide the gradient is one of
    several one-sided ones.

    Raises:
        TypeError: an argument is no tensor, or of a complex, boolean or quantized type.
        ValueError: shapes or devices that do not fit; ``backend`` cannot run here.
        NotImplementedError: a sparse or nested tensor.
    """
    if not is_traced():  # which would take sizes for constants
        check_sets(boxes1, boxes2, 5)
    boxes1, boxes2 = same_floating(boxes1, boxes2)
    return _overlap(boxes1, boxes2, backend)
