"""Soft non-maximum suppression, which lowers the scores of overlapping boxes."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from .. import reference
from ._checks import check_number
from ._library import declare
from ._scored_boxes import scored_boxes

METHODS = ("linear", "gaussian")


def _fake(
    boxes: Tensor,
    scores: Tensor,
    idxs: Tensor | None,
    iou_threshold: float,
    gaussian: bool,
    sigma: float,
    min_score: float,
) -> tuple[Tensor, Tensor]:
    kept = torch.library.get_ctx().new_dynamic_size(min=0)
    return boxes.new_empty(kept, dtype=torch.int64), scores.new_empty(kept)


_OPERATOR = declare(
    "soft_nms",
    "(Tensor boxes, Tensor scores, Tensor? idxs, float iou_threshold, bool gaussian, float sigma, "
    "float min_score) -> (Tensor, Tensor)",
    fake=_fake,
    triton="kernels.soft_nms.launch_soft_nms",
    reference=reference.soft_nms,
    lacks={"cuda": "the Triton kernel serves GPUs"},
    serves=("soft_nms",),
)


def soft_nms(
    boxes: Tensor,
    scores: Tensor,
    iou_threshold: float = 0.3,
    *,
    method: Literal["linear", "gaussian"] = "linear",
    sigma: float = 0.5,
    min_score: float = 1e-3,
    idxs: Tensor | None = None,
    backend: str | None = None,
) -> tuple[Tensor, Tensor]:
    """Soft non-maximum suppression (Bodla et al., "Soft-NMS", 2017).

    Keeps the box with the highest score, lowers the scores of the boxes that overlap with it, and
    goes on with the best of the others, whose scores are lower by then. Boxes leave once their
    score is below ``min_score``.

    Args:
        boxes: [N, 4] corners (x1, y1, x2, y2); float16, bfloat16, float32 or float64.
        scores: [N] in the dtype of ``boxes``, such as probabilities; negative ones leave at once.
            Equal scores are ordered by index, NaN comes first and stays.
        iou_threshold: with "linear", scores decay where the intersection over union (IoU) is
            greater than this, as :func:`nms` removes boxes; in the paper and mmcv also where it is
            equal. See :func:`nms` for its precision.
        method: "linear" multiplies a score by 1 - IoU, "gaussian" by exp(-IoU^2 / sigma).
        sigma: of "gaussian"; above 0.
        min_score: boxes with a score below it are not kept; 0 or more.
        idxs: [N] class of each box, or None for one class. Boxes of different classes never affect
            each other; see :func:`batched_nms`.
        backend: "triton", "cpp" or "reference"; None picks the fastest that can run.

    Returns:
        int64 indices of the kept boxes [K], in order of decreasing decayed score (equal ones by
        index), and these scores [K] in the dtype of ``scores``. Scores decay in float32 (float64
        for float64 boxes). No derivative. mmcv's ``soft_nms`` keeps a box with a score below
        ``min_score`` if it is the only one left.

    Raises:
        RuntimeError: wrong shape, dtype or device, as in :func:`nms`; a quantized tensor.
        ValueError: an option out of range; ``backend`` cannot run here.
        TypeError: an argument is not a tensor or not a number.
        NotImplementedError: a sparse, nested or mkldnn tensor.
    """
    if method not in METHODS:
        raise ValueError(f"method must be one of {METHODS}, got {method!r}")
    check_number(iou_threshold, "iou_threshold")
    check_number(sigma, "sigma")
    check_number(min_score, "min_score")
    if not sigma > 0:
        raise ValueError(f"sigma must be above 0, got {sigma}")
    if not min_score >= 0:
        raise ValueError(f"min_score must be 0 or more, got {min_score}")
    boxes, scores, idxs = scored_boxes(boxes, scores, idxs)
    keep, decayed = _OPERATOR.run[_OPERATOR.choose(boxes, backend)](
        boxes, scores, idxs, iou_threshold, method == "gaussian", sigma, min_score
    )
    return keep, decayed
