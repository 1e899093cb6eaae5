"""What non-maximum suppression takes, boxes, their scores and their classes, and what it keeps."""

from __future__ import annotations

import torch
from torch import Tensor

from ._checks import FLOATING, check_tensor, is_traced


def fake_kept(
    boxes: Tensor,
    scores: Tensor,
    idxs: Tensor | None,
    iou_threshold: float,
    score_threshold: float | None = None,
    max_output: int | None = None,
) -> Tensor:
    """Any number of indices, none included."""
    kept = torch.library.get_ctx().new_dynamic_size(min=0)
    return boxes.new_empty(kept, dtype=torch.int64)


def check_boxes(
    boxes: Tensor, scores: Tensor, idxs: Tensor | None, dim: int, size: int = 4
) -> None:
    """Boxes of ``size`` numbers, in a tensor of ``dim`` dimensions."""
    # torchvision raises RuntimeError for these, and callers rely on it
    if boxes.dim() != dim or boxes.shape[-1] != size:
        shape = f"[N, {size}]" if dim == 2 else f"[B, N, {size}]"
        raise RuntimeError(f"boxes must have shape {shape}, got {list(boxes.shape)}")
    if boxes.shape != (*scores.shape, size):
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


def class_ids(idxs: Tensor) -> Tensor:
    """Class labels of any dtype as int64; distinct labels stay distinct."""
    if idxs.dtype == torch.int64:
        return idxs
    if idxs.is_complex() or idxs.is_quantized:
        raise RuntimeError(f"idxs must be of an integer or floating-point type, got {idxs.dtype}")
    if idxs.is_floating_point():
        if is_traced():  # traced graphs cannot hold a view of another dtype
            return torch.unique(idxs.double(), return_inverse=True)[1]
        return (idxs.double() + 0.0).view(torch.int64)  # compares bits; + 0.0 turns -0 into 0
    return idxs.to(torch.int64)


def same_dtype(boxes: Tensor, scores: Tensor) -> tuple[Tensor, Tensor]:
    """Casts both to float32 if autocast made their dtypes differ."""
    check_tensor(boxes, "boxes")
    check_tensor(scores, "scores")
    if boxes.dtype != scores.dtype and torch.is_autocast_enabled(boxes.device.type):
        return boxes.float(), scores.float()
    return boxes, scores


def scored_boxes(
    boxes: Tensor, scores: Tensor, idxs: Tensor | None, size: int = 4
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Checked boxes [N, size] and scores [N] without derivatives, and classes [N] as int64."""
    boxes, scores = same_dtype(boxes, scores)
    if idxs is not None:
        check_tensor(idxs, "idxs")
    check_boxes(boxes, scores, idxs, 2, size)
    return boxes.detach(), scores.detach(), None if idxs is None else class_ids(idxs)
