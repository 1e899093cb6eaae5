"""What ops on every pair of two sets of boxes share: checks, and batches as one dimension."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from ._checks import check_tensor, is_traced, is_transformed, needs_gradient
from ._library import Operator


def _check(boxes: object, name: str, size: int) -> None:
    check_tensor(boxes, name)
    assert isinstance(boxes, Tensor)
    if boxes.dtype == torch.bool or boxes.is_complex() or boxes.is_quantized:
        raise TypeError(f"{name} must be of a floating-point or integer type, got {boxes.dtype}")
    if boxes.dim() == 0 or boxes.shape[-1] != size:
        raise ValueError(f"{name} must have shape [..., {size}], got {list(boxes.shape)}")


def check_sets(boxes1: object, boxes2: object, size: int) -> None:
    """Of boxes with ``size`` numbers. A single box is a set in the first place only."""
    _check(boxes1, "boxes1", size)
    _check(boxes2, "boxes2", size)
    assert isinstance(boxes1, Tensor) and isinstance(boxes2, Tensor)
    if boxes2.dim() == 1:
        raise ValueError(f"boxes2 must have shape [..., M, {size}], got {list(boxes2.shape)}")
    if boxes1.device != boxes2.device:
        raise ValueError(f"boxes2 must be on {boxes1.device} as boxes1, got {boxes2.device}")


def same_floating(boxes1: Tensor, boxes2: Tensor) -> tuple[Tensor, Tensor]:
    """Both in the floating-point type that they promote to; integers in float32."""
    dtype = torch.promote_types(boxes1.dtype, boxes2.dtype)
    if boxes1.dtype == boxes2.dtype and dtype.is_floating_point:
        return boxes1, boxes2
    dtype = dtype if dtype.is_floating_point else torch.float32
    return boxes1.to(dtype), boxes2.to(dtype)


def fake_overlaps(boxes1: Tensor, boxes2: Tensor) -> Tensor:
    """[..., N, M] in float32, or in float64 for such boxes."""
    batch = torch.broadcast_shapes(boxes1.shape[:-2], boxes2.shape[:-2])
    dtype = torch.promote_types(boxes1.dtype, torch.float32)
    return boxes1.new_empty((*batch, boxes1.shape[-2], boxes2.shape[-2]), dtype=dtype)


def fake_gradients(grad: Tensor, boxes1: Tensor, boxes2: Tensor) -> tuple[Tensor, Tensor]:
    """Of the boxes of every image, in the dtype of the overlaps."""
    batch = grad.shape[:-2]
    first, second = (grad.new_empty((*batch, *b.shape[-2:])) for b in (boxes1, boxes2))
    return first, second


def _flat(boxes: Tensor, batch: torch.Size) -> Tensor:
    """[B, N, size] for a batch of B, or [1, N, size] for any."""
    if math.prod(boxes.shape[:-2]) == 1:
        return boxes.reshape(1, *boxes.shape[-2:])
    if boxes.shape[:-2] != batch:
        boxes = boxes.expand(*batch, *boxes.shape[-2:])
    return boxes.reshape(math.prod(batch), *boxes.shape[-2:])


def of_batches(run: Callable[[Tensor, Tensor], Tensor], boxes1: Tensor, boxes2: Tensor) -> Tensor:
    """[..., N, M] from ``run``, which takes [N, size] and [M, size], or [B, N, size] and
    [B, M, size] where either B may be 1."""
    if boxes1.dim() == 1:
        boxes1 = boxes1.unsqueeze(0)
    if boxes1.dim() == 2 and boxes2.dim() == 2:
        return run(boxes1, boxes2)
    try:
        batch = torch.broadcast_shapes(boxes1.shape[:-2], boxes2.shape[:-2])
    except RuntimeError:
        raise ValueError(
            f"boxes2 must have batch dimensions that fit those of boxes1, "
            f"{list(boxes1.shape[:-2])}, got {list(boxes2.shape[:-2])}"
        ) from None
    overlap = run(_flat(boxes1, batch), _flat(boxes2, batch))
    return overlap.reshape(*batch, *overlap.shape[-2:])


def gradients(grads: Sequence[Tensor], boxes: Sequence[Tensor]) -> list[Tensor]:
    """In the shapes and dtypes of the boxes: a set that met each of a batch gets all gradients."""
    return [
        (g.sum(0, keepdim=True) if g.shape != b.shape else g).to(b.dtype)
        for g, b in zip(grads, boxes, strict=True)
    ]


def differentiable(
    operator: Operator,
    backward_operator: Operator,
    reference_backward: Callable[[Tensor, Tensor, Tensor], Sequence[Tensor]],
) -> Callable[[Tensor, Tensor, str | None], Tensor]:
    """[..., N, M] from boxes1 [..., N, size], boxes2 [..., M, size] and a backend.

    Args:
        operator: takes boxes1 and boxes2, with a reference.
        backward_operator: takes the gradient of the overlaps, boxes1 and boxes2.
        reference_backward: the same in eager PyTorch, for higher derivatives.
    """

    class Overlap(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, boxes1: Tensor, boxes2: Tensor, backend: str) -> Tensor:
            ctx.save_for_backward(boxes1, boxes2)
            ctx.backend = backend
            result: Tensor = operator.run[backend](boxes1, boxes2)
            return result

        @staticmethod
        def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
            boxes = ctx.saved_tensors
            if is_transformed() or needs_gradient((grad, *boxes)):
                grads = reference_backward(grad, *boxes)
            else:
                grads = backward_operator.run[ctx.backend](grad, *boxes)
            return *gradients(grads, boxes), None

    def run(boxes1: Tensor, boxes2: Tensor, backend: str | None) -> Tensor:
        chosen = operator.choose(boxes1, backend)
        if chosen == "reference" or is_transformed() or is_traced():
            first = boxes1.unsqueeze(0) if boxes1.dim() == 1 else boxes1
            result: Tensor = operator.run["reference"](first, boxes2)
            return result

        def overlap(b1: Tensor, b2: Tensor) -> Tensor:
            if needs_gradient((b1, b2)):
                return Overlap.apply(b1, b2, chosen)
            result: Tensor = operator.run[chosen](b1, b2)
            return result

        return of_batches(overlap, boxes1, boxes2)

    return run
