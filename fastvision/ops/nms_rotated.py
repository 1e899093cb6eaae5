"""Greedy non-maximum suppression of rotated boxes: of one set, or per class."""

from __future__ import annotations

from torch import Tensor

from .. import reference
from ._checks import check_tensor
from ._library import declare
from ._scored_boxes import fake_kept, scored_boxes

_NMS_ROTATED = declare(
    "nms_rotated",
    "(Tensor boxes, Tensor scores, Tensor? idxs, float iou_threshold) -> Tensor",
    fake=fake_kept,
    triton="kernels.nms.launch_nms",
    reference=reference.nms_rotated,
    lacks={"cuda": "the Triton kernel serves GPUs"},
    serves=("nms_rotated", "batched_nms_rotated"),
)


def nms_rotated(
    boxes: Tensor,
    scores: Tensor,
    iou_threshold: float,
    *,
    idxs: Tensor | None = None,
    backend: str | None = None,
) -> Tensor:
    """Greedy non-maximum suppression of rotated boxes.

    Visits the boxes in order of decreasing score and removes each box whose overlap with a box kept
    before, as in :func:`box_iou_rotated`, is greater than ``iou_threshold``.

    Args:
        boxes: [N, 5] (cx, cy, width, height, angle); the angle in degrees turns the box
            counterclockwise as seen, with y pointing down. float16, bfloat16, float32 or float64.
            detectron2's ``nms_rotated`` has the same convention; mmcv's has radians, and turns
            clockwise unless told otherwise.
        scores: [N] in the dtype of ``boxes``. Equal scores are ordered by index, NaN comes first.
        iou_threshold: compared in double precision with the overlap, which is computed in float32
            (float64 for float64 boxes).
        idxs: [N] class of each box; boxes of different classes never affect each other. Any integer
            or floating-point dtype, any values.
        backend: "triton", "cpp" or "reference"; None picks the fastest that can run. An overlap
            within rounding of the threshold may be decided differently by each.

    Returns:
        int64 indices of the kept boxes [K], in order of decreasing score. With thresholds of 0 or
        more, a box that is empty or not finite is kept and removes no box.

    Raises:
        RuntimeError: wrong shape, dtype or device, as in :func:`nms`.
        ValueError: ``backend`` cannot run here.
        TypeError: an argument is not a tensor.
        NotImplementedError: a sparse, nested or mkldnn tensor.
    """
    boxes, scores, idxs = scored_boxes(boxes, scores, idxs, 5)
    kept: Tensor = _NMS_ROTATED.run[_NMS_ROTATED.choose(boxes, backend)](
        boxes, scores, idxs, iou_threshold
    )
    return kept


def batched_nms_rotated(
    boxes: Tensor,
    scores: Tensor,
    idxs: Tensor,
    iou_threshold: float,
    *,
    backend: str | None = None,
) -> Tensor:
    """:func:`nms_rotated` within each class, with detectron2's order of arguments.

    Unlike there, boxes are not moved apart by class, so that any coordinates are exact.

    Args:
        boxes: [N, 5] (cx, cy, width, height, degrees).
        scores: [N].
        idxs: [N] class of each box.
        iou_threshold: see :func:`nms_rotated`.
        backend: see :func:`nms_rotated`.

    Returns:
        int64 indices of the kept boxes of all classes [K], in order of decreasing score.

    Raises:
        RuntimeError, ValueError, TypeError, NotImplementedError: as in :func:`nms_rotated`.
    """
    check_tensor(idxs, "idxs")
    return nms_rotated(boxes, scores, iou_threshold, idxs=idxs, backend=backend)
