"""Non-maximum suppression that says which box suppressed each of the others."""

from __future__ import annotations

import torch
from torch import Tensor

from .. import reference
from ._library import declare
from ._scored_boxes import scored_boxes


def _fake(
    boxes: Tensor, scores: Tensor, idxs: Tensor | None, iou_threshold: float
) -> tuple[Tensor, Tensor]:
    kept = torch.library.get_ctx().new_dynamic_size(min=0)
    return (
        boxes.new_empty(kept, dtype=torch.int64),
        boxes.new_empty(boxes.shape[0], dtype=torch.int64),
    )


_OPERATOR = declare(
    "nms_match",
    "(Tensor boxes, Tensor scores, Tensor? idxs, float iou_threshold) -> (Tensor, Tensor)",
    fake=_fake,
    triton="kernels.nms.launch_nms_match",
    reference=reference.nms_match,
    lacks={"cuda": "the Triton kernel serves GPUs"},
    serves=("nms_match",),
)


def nms_match(
    boxes: Tensor,
    scores: Tensor,
    iou_threshold: float,
    *,
    idxs: Tensor | None = None,
    backend: str | None = None,
) -> tuple[Tensor, Tensor]:
    """:func:`nms`, and the kept box that suppressed each of the others.

    The groups that mmcv's ``nms_match`` returns are ``[(match == i).nonzero()[:, 0] for i in
    keep]``, each ordered by index instead of score. mmcv suppresses boxes whose IoU equals the
    threshold too.

    Args:
        boxes: [N, 4] corners (x1, y1, x2, y2).
        scores: [N].
        iou_threshold: see :func:`nms`.
        idxs: [N] class of each box, or None for one class; see :func:`batched_nms`.
        backend: "triton", "cpp" or "reference"; None picks the fastest that can run.

    Returns:
        int64 indices of the kept boxes [K], in order of decreasing score, and for every box [N] the
        index of the kept box with the highest score that suppresses it; its own if it is kept.

    Raises:
        RuntimeError, ValueError, TypeError, NotImplementedError: as in :func:`nms`. Quantized boxes
            are not supported.
    """
    boxes, scores, idxs = scored_boxes(boxes, scores, idxs)
    keep, match = _OPERATOR.run[_OPERATOR.choose(boxes, backend)](
        boxes, scores, idxs, iou_threshold
    )
    return keep, match
