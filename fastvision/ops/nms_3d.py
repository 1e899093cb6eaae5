"""Greedy non-maximum suppression of solid boxes."""

from __future__ import annotations

import torch
from torch import Tensor

from .. import reference
from ..reference.box_iou_3d import seen_from_above
from ._library import declare
from ._scored_boxes import fake_kept, scored_boxes
from ._solid_boxes import check_format, with_yaw
from .nms_rotated import nms_rotated

_NMS_3D = declare(
    "nms_3d",
    "(Tensor boxes, Tensor scores, Tensor? idxs, float iou_threshold) -> Tensor",
    fake=fake_kept,
    triton="kernels.nms.launch_nms",
    reference=reference.nms_3d,
    lacks={"cuda": "the Triton kernel serves GPUs"},
    serves=("nms_3d",),
)


def nms_3d(
    boxes: Tensor,
    scores: Tensor,
    iou_threshold: float,
    *,
    fmt: str = "cxcyczdxdydzr",
    idxs: Tensor | None = None,
    bev: bool = False,
    backend: str | None = None,
) -> Tensor:
    """Greedy non-maximum suppression of solid boxes.

    Visits the boxes in order of decreasing score and removes each box whose overlap with a box kept
    before, as in :func:`box_iou_3d`, is greater than ``iou_threshold``.

    Args:
        boxes: [N, 7] (x, y, z, dx, dy, dz, yaw), or [N, 6] in the other format: see
            :func:`box_iou_3d`. float16, bfloat16, float32 or float64.
        scores: [N] in the dtype of ``boxes``. Equal scores are ordered by index, NaN comes first.
        iou_threshold: compared in double precision with the overlap, which is computed in float32
            (float64 for float64 boxes).
        fmt: "cxcyczdxdydzr" or "xyzxyz".
        idxs: [N] class of each box; boxes of different classes never affect each other. Any integer
            or floating-point dtype, any values.
        bev: compares the boxes as seen from above, by :func:`nms_rotated`, whatever their height.
            mmcv's ``nms3d`` does.
        backend: "triton", "cpp" or "reference"; None picks the fastest that can run. An overlap
            within rounding of the threshold may be decided differently by each.

    Returns:
        int64 indices of the kept boxes [K], in order of decreasing score. With thresholds of 0 or
        more, a box that is empty or not finite is kept and removes no box.

    Raises:
        RuntimeError: wrong shape, dtype or device, as in :func:`nms`.
        ValueError: an unknown format; ``backend`` cannot run here.
        TypeError: an argument is not a tensor, or ``fmt`` no string.
        NotImplementedError: a sparse, nested or mkldnn tensor.
    """
    size = check_format(fmt)
    boxes, scores, idxs = scored_boxes(boxes, scores, idxs, size)
    boxes = with_yaw(boxes, fmt)
    if bev:
        # a yaw in degrees has more digits than 16 bits hold
        boxes = seen_from_above(boxes if boxes.dtype == torch.float64 else boxes.float())
    scores = scores.to(boxes.dtype)
    if bev:
        return nms_rotated(boxes, scores, iou_threshold, idxs=idxs, backend=backend)
    kept: Tensor = _NMS_3D.run[_NMS_3D.choose(boxes, backend)](boxes, scores, idxs, iou_threshold)
    return kept
