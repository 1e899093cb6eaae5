"""Weighted boxes fusion of the detections of several models."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from .. import reference
from ._checks import check_floating, check_number, check_tensor
from ._library import declare


def _fake(
    boxes: Tensor, scores: Tensor, labels: Tensor, iou_threshold: float, maximum: bool
) -> tuple[Tensor, Tensor, Tensor]:
    return (
        boxes.new_empty(boxes.shape),
        scores.new_empty(scores.shape),
        labels.new_empty(labels.shape),
    )


# boxes [N, 4] by class and descending score, in float32 or float64; labels in int64
_FUSION = declare(
    "weighted_boxes_fusion",
    "(Tensor boxes, Tensor scores, Tensor labels, float iou_threshold, bool maximum) "
    "-> (Tensor, Tensor, Tensor)",
    fake=_fake,
    triton="kernels.weighted_boxes_fusion.launch_weighted_boxes_fusion",
    reference=reference.weighted_boxes_fusion,
    lacks={"cuda": "the Triton kernel serves GPUs"},
    serves=("weighted_boxes_fusion",),
)
CONF_TYPES = ("avg", "max")


def _check_models(
    boxes: Sequence[Tensor], scores: Sequence[Tensor], labels: Sequence[Tensor]
) -> None:
    lists = {"boxes": boxes, "scores": scores, "labels": labels}
    for name, tensors in lists.items():
        if not isinstance(tensors, (list, tuple)):
            raise TypeError(f"{name} must be a list of tensors, got {type(tensors).__name__}")
        if len(tensors) != len(boxes) or len(tensors) == 0:
            expected = "at least one tensor" if name == "boxes" else f"{len(boxes)} as boxes"
            raise ValueError(f"{name} must have {expected}, got {len(tensors)}")
        for i, tensor in enumerate(tensors):
            check_tensor(tensor, f"{name}[{i}]")
            first = boxes[0] if name == "scores" else tensors[0]
            if name != "labels":
                check_floating(tensor.dtype, f"{name}[{i}]")
            if tensor.dtype != first.dtype or tensor.device != boxes[0].device:
                raise ValueError(
                    f"{name}[{i}] must be of {first.dtype} on {boxes[0].device}, "
                    f"got {tensor.dtype} on {tensor.device}"
                )
    if labels[0].is_complex() or labels[0].is_quantized:
        raise TypeError(
            f"labels must be of an integer or floating-point type, got {labels[0].dtype}"
        )
    for i, box in enumerate(boxes):
        if box.dim() != 2 or box.shape[1] != 4:
            raise ValueError(f"boxes[{i}] must have shape [N, 4], got {list(box.shape)}")
        for name, tensor in (("scores", scores[i]), ("labels", labels[i])):
            if tensor.shape != box.shape[:1]:
                raise ValueError(
                    f"{name}[{i}] must have shape {list(box.shape[:1])} to match boxes[{i}], "
                    f"got {list(tensor.shape)}"
                )


def _check_weights(weights: Sequence[float] | Tensor | None, models: int) -> list[float]:
    if weights is None:
        return [1.0] * models
    if isinstance(weights, Tensor):
        weights = weights.tolist()
    if not hasattr(weights, "__len__"):
        raise TypeError(f"weights must be a list of numbers, got {weights!r}")
    if len(weights) != models:
        raise ValueError(f"weights must have {models} numbers, one per model, got {len(weights)}")
    for i, weight in enumerate(weights):
        check_number(weight, f"weights[{i}]")
        if not 0 <= weight < math.inf:
            raise ValueError(f"weights[{i}] must be finite and at least 0, got {weight}")
    if sum(weights) == 0:
        raise ValueError(f"weights must not all be 0, got {list(weights)}")
    return [float(weight) for weight in weights]


def weighted_boxes_fusion(
    boxes: Sequence[Tensor],
    scores: Sequence[Tensor],
    labels: Sequence[Tensor],
    *,
    weights: Sequence[float] | Tensor | None = None,
    iou_threshold: float = 0.55,
    skip_box_threshold: float = 0.0,
    conf_type: str = "avg",
    allows_overflow: bool = False,
    backend: str | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Fuses the boxes that several models found in an image (Solovyev, Wang and Gabruseva 2021).

    Scores are multiplied by the weight of their model. The boxes of a class are visited by
    decreasing score. Each joins the cluster whose fused box has the largest intersection over union
    (IoU) with it, if that is above ``iou_threshold``, or begins a cluster. The fused box is the
    mean of its boxes weighted by their scores.

    Args:
        boxes: for each of M models, [N, 4] corners (x1, y1, x2, y2); float16, bfloat16, float32 or
            float64. In any unit, where the package ensemble-boxes clips to [0, 1]. Reversed corners
            are swapped; a box without an area, or whose area is not finite, is left out.
        scores: for each model, [N] in the dtype of ``boxes``. A score that is not finite leaves its
            box out. Equal scores are in the order of models and boxes.
        labels: for each model, [N] class of each box; any integer or floating-point dtype.
        weights: of the models, M numbers or a tensor [M]; all 1 by default.
        iou_threshold: compared in double precision with the IoU, which is computed in float32
            (float64 for float64 boxes).
        skip_box_threshold: boxes with a score below it, before its weight, are left out.
        conf_type: "avg", the mean of a cluster's scores times the share of models that found it
            (number of boxes, at most M, by the sum of ``weights``), or "max", the maximum of the
            scores by the largest of ``weights``.
        allows_overflow: whether a cluster of more than M boxes may count as more than M, with
            "avg".
        backend: "triton", "cpp" or "reference"; None picks the fastest that can run.

    Returns:
        Boxes [K, 4], scores [K] and labels [K] in the dtypes given, by decreasing score. Where the
        scores of a cluster sum to 0, its box is its first. Not differentiable.

    Raises:
        TypeError: an argument is no list of tensors, or a tensor or number of the wrong type.
        ValueError: shapes, dtypes, devices or lengths that do not fit; a weight that is negative or
            not finite; an unknown ``conf_type``; ``backend`` cannot run here.
        NotImplementedError: a sparse or nested tensor.
    """
    _check_models(boxes, scores, labels)
    factors = _check_weights(weights, len(boxes))
    check_number(iou_threshold, "iou_threshold")
    check_number(skip_box_threshold, "skip_box_threshold")
    if conf_type not in CONF_TYPES:
        raise ValueError(f"conf_type must be one of {CONF_TYPES}, got {conf_type!r}")
    dtype, wide = boxes[0].dtype, torch.promote_types(boxes[0].dtype, torch.float32)

    corners = torch.cat([b.detach() for b in boxes]).to(wide)
    low = torch.minimum(corners[:, :2], corners[:, 2:])
    high = torch.maximum(corners[:, :2], corners[:, 2:])
    area = (high - low).prod(1)
    given = torch.cat([s.detach() for s in scores]).to(wide)
    weighted = torch.cat(
        [s.detach().to(wide) * factor for s, factor in zip(scores, factors, strict=True)]
    )
    taking_part = (given >= skip_box_threshold) & weighted.isfinite() & (area > 0) & area.isfinite()
    chosen = torch.where(taking_part)[0]
    chosen = chosen[weighted[chosen].argsort(descending=True, stable=True)]
    classes = torch.cat(list(labels))
    _, ids = torch.unique(classes, return_inverse=True)
    chosen = chosen[ids[chosen].argsort(stable=True)]

    run = _FUSION.run[_FUSION.choose(boxes[0], backend)]
    fused, confidence, counts = run(
        torch.cat([low, high], 1)[chosen],
        weighted[chosen],
        ids[chosen],
        iou_threshold,
        conf_type == "max",
    )
    if conf_type == "max":
        confidence = confidence / max(factors)
    else:
        found = counts if allows_overflow else counts.clamp(max=len(boxes))
        confidence = confidence * found / sum(factors)
    clusters = torch.where(counts > 0)[0]
    clusters = clusters[confidence[clusters].argsort(descending=True, stable=True)]
    return (
        fused[clusters].to(dtype),
        confidence[clusters].to(dtype),
        classes[chosen[clusters]],
    )
