"""Greedy non-maximum suppression: of one set of boxes, per class, or of a batch of images."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .. import reference
from ._checks import check_tensor, integer, is_traced
from ._library import declare
from ._plain import MISFITS, is_plain
from ._scored_boxes import check_boxes, class_ids, fake_kept, same_dtype


def _fake_nms_padded(
    boxes: Tensor,
    scores: Tensor,
    idxs: Tensor | None,
    iou_threshold: float,
    score_threshold: float | None,
    max_output: int,
) -> tuple[Tensor, Tensor]:
    images = boxes.shape[0]
    return (
        boxes.new_empty((images, max_output), dtype=torch.int64),
        boxes.new_empty((images,), dtype=torch.int64),
    )


_NMS = declare(
    "nms",
    "(Tensor boxes, Tensor scores, Tensor? idxs, float iou_threshold, "
    "float? score_threshold=None, SymInt? max_output=None) -> Tensor",
    fake=fake_kept, triton="kernels.nms.launch_nms", reference=reference.nms,
    serves=("nms", "batched_nms"),
)  # fmt: skip
_NMS_PADDED = declare(
    "nms_padded",
    "(Tensor boxes, Tensor scores, Tensor? idxs, float iou_threshold, float? score_threshold, "
    "SymInt max_output) -> (Tensor, Tensor)",
    fake=_fake_nms_padded, triton="kernels.nms.launch_nms_padded", reference=reference.nms_padded,
    serves=("batched_nms_padded",),
)  # fmt: skip


def _check_max_output(max_output: Any) -> Any:
    max_output = integer(max_output, "max_output must be an integer")
    if max_output < 0:
        raise ValueError(f"max_output must not be negative, got {max_output}")
    if max_output >= 2**63:
        raise ValueError(f"max_output must fit 64 bits, got {max_output}")
    return max_output


def _is_plain(boxes: Any, scores: Any) -> bool:
    """Whether the op can run at once if it likes the shapes."""
    return (
        is_plain(boxes, (scores,))
        and type(scores) is Tensor
        and scores.is_cpu
        and scores.dtype is boxes.dtype
    )


def _integers(x: Tensor, name: str) -> Tensor:
    """What a quantized tensor holds: of the same order, and with the same IoU."""
    if not x.is_quantized:
        raise TypeError(f"boxes and scores must both be quantized, got {name} in {x.dtype}")
    if x.qscheme() not in (torch.per_tensor_affine, torch.per_tensor_symmetric):
        raise TypeError(f"{name} must be quantized per tensor, got {x.qscheme()}")
    return x.int_repr()


def _as_floats(
    boxes: Tensor, scores: Tensor, score_threshold: float | None
) -> tuple[Tensor, Tensor, float | None]:
    """What gives the result of quantized tensors, in float32 as torchvision computes the IoU."""
    # ranks, since float32 does not tell large integers apart
    ranks = torch.unique(_integers(scores, "scores"), return_inverse=True)[1]
    if score_threshold is not None:
        ranks = torch.where(scores.dequantize() > score_threshold, ranks, -1)
        score_threshold = -1.0
    return _integers(boxes, "boxes").float(), ranks.float(), score_threshold


def nms(
    boxes: Tensor,
    scores: Tensor,
    iou_threshold: float,
    *,
    score_threshold: float | None = None,
    max_output: int | None = None,
    backend: str | None = None,
) -> Tensor:
    """Greedy non-maximum suppression.

    Visits the boxes in order of decreasing score and removes each box whose intersection over union
    (IoU) with a box kept before is greater than ``iou_threshold``. The result equals torchvision's,
    ties included; memory is O(N).

    Args:
        boxes: [N, 4] corners (x1, y1, x2, y2); float16, bfloat16, float32 or float64, or quantized
            per tensor.
        scores: [N] in the dtype of ``boxes``, or quantized with them. Equal scores are ordered by
            index, NaN comes first.
        iou_threshold: compared in double precision with the IoU, which is computed in float32
            (float64 for float64 boxes).
        score_threshold: boxes with a score not greater than this are dropped first.
        max_output: maximum number of boxes kept; the best ones are, and the search ends with them.
        backend: "cuda", "triton", "cpp" or "reference"; None picks the fastest that can run.

    Returns:
        int64 indices of the kept boxes [K], in order of decreasing score. A box with a non-finite
        coordinate has no IoU above 0 with any other box. With thresholds of 0 or more it is kept,
        removes no box and does not affect the others.

    Raises:
        RuntimeError: wrong shape, dtype or device (torchvision's error type).
        ValueError: ``backend`` cannot run here; ``max_output`` is negative.
        TypeError: an argument is not a tensor; ``max_output`` is no integer.
        NotImplementedError: a sparse, nested or mkldnn tensor.
    """
    if max_output is None and (backend is None or backend == "cpp") and _is_plain(boxes, scores):
        try:
            return _NMS.direct(boxes, scores, None, iou_threshold, score_threshold, None)
        except MISFITS:
            pass
    boxes, scores = same_dtype(boxes, scores)
    if max_output is not None:
        max_output = _check_max_output(max_output)
    if boxes.is_quantized or scores.is_quantized:
        boxes, scores, score_threshold = _as_floats(boxes, scores, score_threshold)
    check_boxes(boxes, scores, None, 2)
    run = _NMS.run[_NMS.choose(boxes, backend)]
    return run(boxes, scores, None, iou_threshold, score_threshold, max_output)


def batched_nms(
    boxes: Tensor,
    scores: Tensor,
    idxs: Tensor,
    iou_threshold: float,
    *,
    score_threshold: float | None = None,
    max_output: int | None = None,
    backend: str | None = None,
) -> Tensor:
    """:func:`nms` within each class.

    Boxes of different classes never affect each other, unlike with torchvision's offset by the
    largest coordinate: negative and non-finite coordinates and half precision are exact too. The
    result equals torchvision's per-class loop, ``_batched_nms_vanilla``, except for the order of
    equal scores.

    Args:
        boxes: [N, 4] corners (x1, y1, x2, y2).
        scores: [N].
        idxs: [N] class of each box; any integer or floating-point dtype, any values.
        iou_threshold: see :func:`nms`.
        score_threshold: see :func:`nms`.
        max_output: maximum number of boxes kept of all classes together; the best ones are.
        backend: see :func:`nms`.

    Returns:
        int64 indices of the kept boxes of all classes [K], in order of decreasing score.

    Raises:
        RuntimeError, ValueError, TypeError, NotImplementedError: as in :func:`nms`. Quantized
            boxes are not supported, nor are they by torchvision.
    """
    if (
        max_output is None
        and (backend is None or backend == "cpp")
        and _is_plain(boxes, scores)
        and (type(idxs) is Tensor and idxs.is_cpu and idxs.dtype is torch.int64)
    ):
        try:
            return _NMS.direct(boxes, scores, idxs, iou_threshold, score_threshold, None)
        except MISFITS:
            pass
    if max_output is not None:
        max_output = _check_max_output(max_output)
    # torchvision accepts None for scores and idxs here; in a graph the size may be unknown
    if (
        not torch.compiler.is_compiling()
        and isinstance(boxes, Tensor)
        and boxes.numel() == 0
        and not is_traced()
    ):
        _NMS.choose(boxes, backend)
        return torch.empty(0, dtype=torch.int64, device=boxes.device)
    boxes, scores = same_dtype(boxes, scores)
    check_tensor(idxs, "idxs")
    check_boxes(boxes, scores, idxs, 2)
    run = _NMS.run[_NMS.choose(boxes, backend)]
    return run(boxes, scores, class_ids(idxs), iou_threshold, score_threshold, max_output)


def batched_nms_padded(
    boxes: Tensor,
    scores: Tensor,
    idxs: Tensor | None,
    iou_threshold: float,
    *,
    score_threshold: float | None = None,
    max_output: int,
    backend: str | None = None,
) -> tuple[Tensor, Tensor]:
    """:func:`batched_nms` of a batch of images, with results of a fixed size.

    The call does not synchronize with the device, so it can be captured in a CUDA graph.

    Args:
        boxes: [B, N, 4] corners (x1, y1, x2, y2).
        scores: [B, N].
        idxs: [B, N] class of each box, or None for one class.
        iou_threshold: see :func:`nms`.
        score_threshold: boxes with a score not greater than this are dropped first.
        max_output: maximum number of boxes kept per image; the best ones are.
        backend: see :func:`nms`.

    Returns:
        Indices [B, max_output] into the boxes of each image, in order of decreasing score and
        padded with -1, and counts [B], both int64.

    Raises:
        RuntimeError, ValueError, TypeError, NotImplementedError: as in :func:`nms`; ValueError also
            if ``max_output`` is negative. Quantized boxes are not supported.
    """
    max_output = _check_max_output(max_output)
    boxes, scores = same_dtype(boxes, scores)
    if idxs is not None:
        check_tensor(idxs, "idxs")
    check_boxes(boxes, scores, idxs, 3)
    idxs = None if idxs is None else class_ids(idxs)
    run = _NMS_PADDED.run[_NMS_PADDED.choose(boxes, backend)]
    return run(boxes, scores, idxs, iou_threshold, score_threshold, max_output)
