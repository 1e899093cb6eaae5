"""Matrix NMS, which lowers all scores at once."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from .. import reference
from ._checks import check_number
from ._library import declare
from ._scored_boxes import scored_boxes
from .mask_iou import mask_iou
from .mask_nms import scored_masks

KERNELS = ("gaussian", "linear")


def _fake(
    boxes: Tensor, scores: Tensor, idxs: Tensor | None, gaussian: bool, sigma: float
) -> Tensor:
    return scores.new_empty(scores.shape)


_OPERATOR = declare(
    "matrix_nms",
    "(Tensor boxes, Tensor scores, Tensor? idxs, bool gaussian, float sigma) -> Tensor",
    fake=_fake,
    triton="kernels.matrix_nms.launch_matrix_nms",
    reference=reference.matrix_nms,
    lacks={"cuda": "the Triton kernel serves GPUs"},
    serves=("matrix_nms",),
)


def _check_options(kernel: object, sigma: float) -> None:
    if kernel not in KERNELS:
        raise ValueError(f"kernel must be one of {KERNELS}, got {kernel!r}")
    check_number(sigma, "sigma")
    if not sigma > 0:
        raise ValueError(f"sigma must be above 0, got {sigma}")


def matrix_nms(
    boxes: Tensor,
    scores: Tensor,
    *,
    idxs: Tensor | None = None,
    kernel: Literal["gaussian", "linear"] = "gaussian",
    sigma: float = 2.0,
    backend: str | None = None,
) -> Tensor:
    """Matrix NMS (Wang et al., "SOLOv2", 2020) of boxes.

    A box lowers the scores of those with a lower score by f(IoU), compensated by how much it is
    overlapped itself: the score of box j is multiplied by the least f(IoU(i, j)) / f(c(i)) of any
    better box i, with c(i) the largest IoU of i and a box better than i. No box waits for another,
    and no pair is stored: memory is O(N).

    Args:
        boxes: [N, 4] corners (x1, y1, x2, y2); float16, bfloat16, float32 or float64.
        scores: [N] in the dtype of ``boxes``, such as probabilities. Equal scores are ordered by
            index, NaN comes first.
        idxs: [N] class of each box, or None for one class. Boxes of different classes never affect
            each other; see :func:`batched_nms`.
        kernel: "gaussian" with f(x) = exp(-sigma x^2), or "linear" with f(x) = 1 - x.
        sigma: of "gaussian", above 0; the method's paper divides by it, its code and mmdetection
            multiply, as here.
        backend: "triton", "cpp" or "reference"; None picks the fastest that can run.

    Returns:
        Decayed scores [N] in the order and dtype of ``scores``; no box is left out. Scores decay in
        float32 (float64 for float64 boxes). An IoU that is NaN counts as 0. No derivative.

    Raises:
        RuntimeError: wrong shape, dtype or device, as in :func:`nms`; a quantized tensor.
        ValueError: an option out of range; ``backend`` cannot run here.
        TypeError: an argument is not a tensor or not a number.
        NotImplementedError: a sparse, nested or mkldnn tensor.
    """
    _check_options(kernel, sigma)
    boxes, scores, idxs = scored_boxes(boxes, scores, idxs)
    run = _OPERATOR.run[_OPERATOR.choose(boxes, backend)]
    decayed: Tensor = run(boxes, scores, idxs, kernel == "gaussian", sigma)
    return decayed


def mask_matrix_nms(
    masks: Tensor,
    scores: Tensor,
    *,
    idxs: Tensor | None = None,
    kernel: Literal["gaussian", "linear"] = "gaussian",
    sigma: float = 2.0,
    backend: str | None = None,
) -> Tensor:
    """:func:`matrix_nms` of masks, with the overlaps of :func:`mask_iou`.

    The overlaps are stored, since a matrix of them is small next to the masks. mmdetection's
    function of this name also sorts, and leaves out masks below its thresholds.

    Args:
        masks: [N, H, W] of type bool.
        scores: [N]; float16, bfloat16, float32 or float64.
        idxs: see :func:`matrix_nms`.
        kernel: see :func:`matrix_nms`.
        sigma: see :func:`matrix_nms`.
        backend: of :func:`mask_iou`.

    Returns:
        Decayed scores [N] in the order and dtype of ``scores``.

    Raises:
        ValueError, TypeError, NotImplementedError: as in :func:`mask_nms`, and for options as in
            :func:`matrix_nms`.
    """
    _check_options(kernel, sigma)
    scores, idxs = scored_masks(masks, scores, idxs)
    overlaps = mask_iou(masks, masks, backend=backend)
    if scores.dtype == torch.float64:
        overlaps = overlaps.double()
    return reference.decayed_scores(overlaps, scores, idxs, kernel == "gaussian", sigma)
