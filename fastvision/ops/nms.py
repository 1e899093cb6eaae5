"""Greedy non-maximum suppression: one set of boxes, per class, or a padded batch of images."""

from __future__ import annotations

import torch
from torch import Tensor

from .. import reference
from ._checks import FLOATING, check_tensor, integer, is_traced, of_torchvision
from ._library import declare


def _fake_nms(boxes: Tensor, scores: Tensor, idxs: Tensor | None, iou_threshold: float) -> Tensor:
    kept = torch.library.get_ctx().new_dynamic_size(min=0)
    return boxes.new_empty(kept, dtype=torch.int64)


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
    "nms", "(Tensor boxes, Tensor scores, Tensor? idxs, float iou_threshold) -> Tensor",
    fake=_fake_nms, triton="kernels.nms.launch_nms", reference=reference.nms,
    serves=("nms", "batched_nms"),
)  # fmt: skip
_NMS_PADDED = declare(
    "nms_padded",
    "(Tensor boxes, Tensor scores, Tensor? idxs, float iou_threshold, float? score_threshold, "
    "SymInt max_output) -> (Tensor, Tensor)",
    fake=_fake_nms_padded, triton="kernels.nms.launch_nms_padded", reference=reference.nms_padded,
    serves=("batched_nms_padded",),
)  # fmt: skip


def _check_boxes(boxes: Tensor, scores: Tensor, idxs: Tensor | None, dim: int) -> None:
    # torchvision raises RuntimeError for these, and callers rely on it
    if boxes.dim() != dim or boxes.shape[-1] != 4:
        shape = "[N, 4]" if dim == 2 else "[B, N, 4]"
        raise RuntimeError(f"boxes must have shape {shape}, got {list(boxes.shape)}")
    if boxes.shape != (*scores.shape, 4):
        raise RuntimeError(
            f"scores must have shape {list(boxes.shape[:-1])} to match boxes, "
            f"got {list(scores.shape)}"
        )
    if boxes.dtype not in FLOATING:
        raise RuntimeError(f"boxes must be of a floating-point type, got {boxes.dtype}")
    if scores.dtype != boxes.dtype:
        raise RuntimeError(f"scores must have the type of boxes, {boxes.dtype}, got {scores.dtype}")
    if scores.device != boxes.device:
        raise RuntimeError(f"scores must be on {boxes.device} as boxes, got {scores.device}")
    if idxs is not None:
        if idxs.shape != scores.shape:
            raise RuntimeError(
                f"idxs must have shape {list(scores.shape)} to match scores, got {list(idxs.shape)}"
            )
        if idxs.device != boxes.device:
            raise RuntimeError(f"idxs must be on {boxes.device} as boxes, got {idxs.device}")


def _class_ids(idxs: Tensor) -> Tensor:
    """Class labels of any dtype as int64, distinct labels staying distinct."""
    if idxs.dtype == torch.int64:
        return idxs
    if idxs.is_complex() or idxs.is_quantized:
        raise RuntimeError(f"idxs must be of an integer or floating-point type, got {idxs.dtype}")
    if idxs.is_floating_point():
        if is_traced():  # whose graphs cannot hold a view of another type
            return torch.unique(idxs.double(), return_inverse=True)[1]
        return (idxs.double() + 0.0).view(torch.int64)  # the bits tell labels apart; -0 becomes 0
    return idxs.to(torch.int64)


def _autocast(boxes: Tensor, scores: Tensor) -> tuple[Tensor, Tensor]:
    """In one dtype: under autocast they may come from layers of different precision."""
    check_tensor(boxes, "boxes")
    check_tensor(scores, "scores")
    if boxes.dtype != scores.dtype and torch.is_autocast_enabled(boxes.device.type):
        return boxes.float(), scores.float()
    return boxes, scores


def nms(
    boxes: Tensor, scores: Tensor, iou_threshold: float, *, backend: str | None = None
) -> Tensor:
    """Greedy non-maximum suppression.

    Goes through the boxes by falling score and drops each one whose intersection over union with an
    earlier kept box is greater than ``iou_threshold``.

    Args:
        boxes: [N, 4] corners (x1, y1, x2, y2); float16, bfloat16, float32 or float64.
        scores: [N], of the boxes' dtype. Equal scores go by index, NaN comes first.
        iou_threshold: compared, unrounded, with the IoU in float32 (float64 for float64 boxes).
        backend: "cuda", "triton", "cpp" or "reference"; None takes the fastest that can run.

    Returns:
        int64 indices of the kept boxes, by falling score. A box with a NaN or infinite coordinate
        has no IoU above 0 with any other: for thresholds from 0 on it is kept and drops none, and
        the others are not disturbed.

    Raises:
        RuntimeError: shapes, dtypes or devices that do not fit (torchvision's error type).
        ValueError: ``backend`` cannot run here.
        TypeError: an argument is no tensor.
        NotImplementedError: sparse, nested or mkldnn tensors; quantized ones unless torchvision is
            imported, whose kernel then takes them.

    The answer is torchvision's, ties included; memory is O(N).
    """
    boxes, scores = _autocast(boxes, scores)
    if boxes.is_quantized:
        return of_torchvision("nms", "boxes")(boxes, scores, iou_threshold)
    _check_boxes(boxes, scores, None, 2)
    return _NMS.run[_NMS.choose(boxes, backend)](boxes, scores, None, iou_threshold)


def batched_nms(
    boxes: Tensor,
    scores: Tensor,
    idxs: Tensor,
    iou_threshold: float,
    *,
    backend: str | None = None,
) -> Tensor:
    """:func:`nms` within each class.

    Args:
        boxes: [N, 4] corners (x1, y1, x2, y2).
        scores: [N].
        idxs: [N] class of each box; any integer or floating-point dtype, any values.
        iou_threshold: see :func:`nms`.
        backend: see :func:`nms`.

    Returns:
        int64 indices of the kept boxes of all classes, by falling score.

    Raises:
        RuntimeError, ValueError, TypeError, NotImplementedError: as :func:`nms`; quantized boxes
            are refused, by torchvision as well.

    Exact per class, unlike torchvision's offset by the largest coordinate: negative, infinite and
    NaN coordinates and half precision do not mix the classes (its ``_batched_nms_vanilla`` agrees).
    """
    # torchvision takes None for scores and idxs here; in a graph the size may not be known yet
    if (
        not torch.compiler.is_compiling()
        and isinstance(boxes, Tensor)
        and boxes.numel() == 0
        and not is_traced()
    ):
        return torch.empty(0, dtype=torch.int64, device=boxes.device)
    boxes, scores = _autocast(boxes, scores)
    check_tensor(idxs, "idxs")
    _check_boxes(boxes, scores, idxs, 2)
    return _NMS.run[_NMS.choose(boxes, backend)](boxes, scores, _class_ids(idxs), iou_threshold)


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
    """:func:`batched_nms` of several images in one call, with results of a fixed size.

    Args:
        boxes: [B, N, 4] corners (x1, y1, x2, y2).
        scores: [B, N].
        idxs: [B, N] class of each box, or None for one class.
        iou_threshold: see :func:`nms`.
        score_threshold: boxes whose score is not greater take no part.
        max_output: how many boxes to keep per image at most, the best ones.
        backend: see :func:`nms`.

    Returns:
        indices [B, max_output] into each image's boxes, by falling score, padded with -1, and
        counts [B], both int64. Nothing waits for the device, so a CUDA graph can hold the call.

    Raises:
        RuntimeError, ValueError, TypeError, NotImplementedError: as :func:`nms`; ValueError for a
            negative ``max_output``.
    """
    max_output = integer(max_output, "max_output must be an integer")
    if max_output < 0:
        raise ValueError(f"max_output must not be negative, got {max_output}")
    if max_output >= 2**63:
        raise ValueError(f"max_output must fit 64 bits, got {max_output}")
    boxes, scores = _autocast(boxes, scores)
    if idxs is not None:
        check_tensor(idxs, "idxs")
    _check_boxes(boxes, scores, idxs, 3)
    idxs = None if idxs is None else _class_ids(idxs)
    run = _NMS_PADDED.run[_NMS_PADDED.choose(boxes, backend)]
    return run(boxes, scores, idxs, iou_threshold, score_threshold, max_output)
