"""Greedy non-maximum suppression of masks."""

from __future__ import annotations

from torch import Tensor

from .. import reference
from ._checks import check_floating, check_number, check_tensor
from ._library import declare
from ._scored_boxes import class_ids, fake_kept
from .mask_iou import check_masks

_OPERATOR = declare(
    "mask_nms",
    "(Tensor masks, Tensor scores, Tensor? idxs, float iou_threshold) -> Tensor",
    fake=fake_kept,
    triton="kernels.mask_iou.launch_mask_nms",
    reference=reference.mask_nms,
    lacks={"cuda": "the Triton kernel serves GPUs"},
    serves=("mask_nms",),
)


def scored_masks(
    masks: Tensor, scores: Tensor, idxs: Tensor | None
) -> tuple[Tensor, Tensor | None]:
    """Checked scores [N] without derivative, and classes [N] as int64, of masks [N, H, W]."""
    check_masks(masks, "masks")
    check_tensor(scores, "scores")
    check_floating(scores.dtype, "scores")
    if idxs is not None:
        check_tensor(idxs, "idxs")
        idxs = class_ids(idxs)
    for name, tensor in (("scores", scores), ("idxs", idxs)):
        if tensor is None:
            continue
        if tensor.shape != masks.shape[:1]:
            raise ValueError(
                f"{name} must have shape {list(masks.shape[:1])} to match masks, "
                f"got {list(tensor.shape)}"
            )
        if tensor.device != masks.device:
            raise ValueError(f"{name} must be on {masks.device} as masks, got {tensor.device}")
    return scores.detach(), idxs


def mask_nms(
    masks: Tensor,
    scores: Tensor,
    iou_threshold: float,
    *,
    idxs: Tensor | None = None,
    backend: str | None = None,
) -> Tensor:
    """:func:`nms` of masks instead of boxes, with the overlaps of :func:`mask_iou`.

    Args:
        masks: [N, H, W] of type bool.
        scores: [N]; float16, bfloat16, float32 or float64. Equal scores are ordered by index, NaN
            comes first.
        iou_threshold: compared with the intersection over union in double precision.
        idxs: [N] class of each mask, or None for one class; see :func:`batched_nms`.
        backend: "triton", "cpp" or "reference"; None picks the fastest that can run.

    Returns:
        int64 indices of the kept masks [K], in order of decreasing score.

    Raises:
        ValueError: shapes or devices that do not fit; ``backend`` cannot run here.
        TypeError: an argument is not a tensor, or of another type.
        RuntimeError: ``idxs`` of a complex or quantized type.
        NotImplementedError: a sparse, nested or mkldnn tensor.
    """
    scores, idxs = scored_masks(masks, scores, idxs)
    check_number(iou_threshold, "iou_threshold")
    run = _OPERATOR.run[_OPERATOR.choose(masks, backend)]
    kept: Tensor = run(masks, scores, idxs, iou_threshold)
    return kept
