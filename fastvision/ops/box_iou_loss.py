"""Losses from the overlap of boxes one by one, each in one pass."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .. import reference
from ..reference.box_iou import KINDS, upcast_non_float
from ..reference.box_iou_loss import reduce
from ._checks import check_tensor, is_traced, is_transformed, needs_gradient, number
from ._library import declare


def _fake(boxes1: Tensor, boxes2: Tensor, kind: int, eps: float) -> Tensor:
    return boxes1.new_empty(boxes1.shape[:1])


def _fake_backward(
    grad: Tensor, boxes1: Tensor, boxes2: Tensor, kind: int, eps: float
) -> tuple[Tensor, Tensor]:
    return boxes1.new_empty(boxes1.shape), boxes2.new_empty(boxes2.shape)


def _reference(boxes1: Tensor, boxes2: Tensor, kind: int, eps: float) -> Tensor:
    return reference.box_iou_loss(boxes1, boxes2, KINDS[kind], eps)


# boxes [N, 4] in float32 or float64; kind: index in KINDS, without the first
_FORWARD = declare(
    "box_iou_loss",
    "(Tensor boxes1, Tensor boxes2, int kind, float eps) -> Tensor",
    fake=_fake,
    triton="kernels.box_iou_loss.launch_box_iou_loss",
    reference=_reference,
    lacks={"cuda": "the Triton kernel serves GPUs"},
    serves=("generalized_box_iou_loss", "distance_box_iou_loss", "complete_box_iou_loss"),
)
_BACKWARD = declare(
    "box_iou_loss_backward",
    "(Tensor grad, Tensor boxes1, Tensor boxes2, int kind, float eps) -> (Tensor, Tensor)",
    fake=_fake_backward,
    triton="kernels.box_iou_loss.launch_box_iou_loss_backward",
)


class _BoxIouLoss(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, boxes1: Tensor, boxes2: Tensor, kind: int, eps: float, backend: str
    ) -> Tensor:
        ctx.save_for_backward(boxes1, boxes2)
        ctx.kind, ctx.eps, ctx.backend = kind, eps, backend
        result: Tensor = _FORWARD.run[backend](boxes1, boxes2, kind, eps)
        return result

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        boxes1, boxes2 = ctx.saved_tensors
        if is_transformed() or needs_gradient((grad, boxes1, boxes2)):
            grads = reference.box_iou_loss_backward(grad, boxes1, boxes2, KINDS[ctx.kind], ctx.eps)
        else:
            grads = _BACKWARD.run[ctx.backend](grad, boxes1, boxes2, ctx.kind, ctx.eps)
        return *grads, None, None, None


def _check(boxes: object, name: str) -> None:
    check_tensor(boxes, name)
    assert isinstance(boxes, Tensor)
    if boxes.is_complex() or boxes.is_quantized:
        raise TypeError(f"{name} must be of a floating-point or integer type, got {boxes.dtype}")
    if boxes.dim() == 0 or boxes.shape[-1] != 4:
        raise ValueError(f"{name} must have shape [..., 4], got {list(boxes.shape)}")


def box_iou_loss(
    boxes1: Tensor, boxes2: Tensor, reduction: str, kind: str, eps: float, backend: str | None
) -> Tensor:
    """The loss of a public function, with its arguments."""
    if is_traced():  # which records torch's operators, derivatives included
        loss = reference.box_iou_loss(upcast_non_float(boxes1), upcast_non_float(boxes2), kind, eps)
        return reduce(loss, reduction)
    _check(boxes1, "boxes1")
    _check(boxes2, "boxes2")
    eps = number(eps, "eps")
    if boxes1.device != boxes2.device:
        raise ValueError(f"boxes2 must be on {boxes1.device} as boxes1, got {boxes2.device}")
    boxes1, boxes2 = upcast_non_float(boxes1), upcast_non_float(boxes2)
    if boxes1.dtype != boxes2.dtype:
        boxes1, boxes2 = boxes1.double(), boxes2.double()
    if boxes1.shape != boxes2.shape:
        try:
            boxes1, boxes2 = torch.broadcast_tensors(boxes1, boxes2)
        except RuntimeError:
            raise ValueError(
                f"boxes2 must have a shape that broadcasts with that of boxes1, "
                f"{list(boxes1.shape)}, got {list(boxes2.shape)}"
            ) from None
    chosen = _FORWARD.choose(boxes1, backend)
    index = KINDS.index(kind)
    if chosen == "reference" or is_transformed():
        return reduce(reference.box_iou_loss(boxes1, boxes2, kind, eps), reduction)
    shape = boxes1.shape[:-1]
    if boxes1.dim() != 2:
        count = shape.numel()
        boxes1, boxes2 = boxes1.reshape(count, 4), boxes2.reshape(count, 4)
    if needs_gradient((boxes1, boxes2)):
        loss = _BoxIouLoss.apply(boxes1, boxes2, index, eps, chosen)
    else:
        loss = _FORWARD.run[chosen](boxes1, boxes2, index, eps)
    if len(shape) != 1:
        loss = loss.reshape(shape)
    return reduce(loss, reduction)
