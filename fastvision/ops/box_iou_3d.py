"""Overlap of every solid box of one set with every box of another."""

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
from ._solid_boxes import check_format, with_yaw

# boxes [N, 7] and [M, 7], or [B, N, 7] and [B, M, 7] where either B may be 1
_FORWARD = declare(
    "box_iou_3d",
    "(Tensor boxes1, Tensor boxes2) -> Tensor",
    fake=fake_overlaps,
    triton="kernels.box_iou_rotated.launch_box_iou_3d",
    reference=reference.box_iou_3d,
    lacks={"cuda": "the Triton kernel serves GPUs"},
    serves=("box_iou_3d",),
)
_BACKWARD = declare(
    "box_iou_3d_backward",
    "(Tensor grad, Tensor boxes1, Tensor boxes2) -> (Tensor, Tensor)",
    fake=fake_gradients,
    triton="kernels.box_iou_rotated.launch_box_iou_3d_backward",
)
_overlap = differentiable(_FORWARD, _BACKWARD, reference.box_iou_3d_backward)


def box_iou_3d(
    boxes1: Tensor, boxes2: Tensor, *, fmt: str = "cxcyczdxdydzr", backend: str | None = None
) -> Tensor:
    """Intersection over union of every solid box of one set with every box of another.

    The boxes stand upright: what two of them share is the area that :func:`box_iou_rotated`
    computes, seen from above, times the height. Pairs whose upright bounding boxes do not meet are
    skipped.

    Args:
        boxes1: [..., N, 7] (x, y, z, dx, dy, dz, yaw): the center, the sides, and the angle in
            radians by which the box turns around z, from x towards y. As in mmcv and OpenPCDet;
            mmdet3d has the center of the bottom, to whose z half of dz is to be added. float16,
            bfloat16, float32, float64 or integers. Or [..., N, 6] in the other format.
        boxes2: [..., M, 7] or [..., M, 6]; leading dimensions broadcast with those of ``boxes1``.
        fmt: "cxcyczdxdydzr", or "xyzxyz" for the corners (x1, y1, z1, x2, y2, z2) of boxes that are
            not turned.
        backend: "triton", "cpp" or "reference"; None picks the fastest that can run.

    Returns:
        [..., N, M] in float32 (float64 for float64 boxes). 0 where a box has a side that is not
        positive, a volume below 1e-14, or a center or yaw that is not finite; otherwise NaN where a
        side is NaN.

    Differentiable in both sets, any number of times. Where faces coincide the gradient is one of
    several one-sided ones.

    Raises:
        TypeError: an argument is no tensor, or of a complex, boolean or quantized type; ``fmt`` is
            no string.
        ValueError: an unknown format; shapes or devices that do not fit; ``backend`` cannot run
            here.
        NotImplementedError: a sparse or nested tensor.
    """
    size = check_format(fmt)
    if not is_traced():  # which would take sizes for constants
        check_sets(boxes1, boxes2, size)
    boxes1, boxes2 = same_floating(boxes1, boxes2)
    boxes1, boxes2 = with_yaw(boxes1, fmt), with_yaw(boxes2, fmt)
    return _overlap(boxes1, boxes2, backend)
