"""Fuzzers of the ops on pairs of boxes and on masks."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor

from fastvision import ops

from .inputs import (
    COUNTS,
    DTYPES,
    Call,
    Results,
    Source,
    gradients,
    random_boxes,
    random_layout,
    random_rotated_boxes,
    random_solid_boxes,
    spoil,
)

_MORE = (31, 63, 64, 65, 127, 130, 520)  # tiles of rows and columns, parts of a gradient
_MORE_ROTATED = (63, 64, 65, 130)
_TYPES = (*DTYPES, *DTYPES, torch.int64, torch.uint8)


def _typed(rng: Source, boxes: Tensor, dtype: torch.dtype) -> Tensor:
    if not dtype.is_floating_point:
        return random_layout(rng, boxes.nan_to_num(0, 9, 9).clamp(0, 200).to(dtype))
    return random_layout(rng, boxes.to(dtype)).requires_grad_(rng.chance(0.6))


def overlaps(name: str, rng: Source) -> Call:
    batch = rng.choice(((), (), (), (1,), (3,), (0,)))
    rows, columns = (rng.size(COUNTS, _MORE) for _ in range(2))
    b1, b2 = (
        _typed(rng, random_boxes(rng, n, 40.0), dtype)
        for n, dtype in zip((rows, columns), rng.choices(_TYPES, k=2), strict=True)
    )
    if batch:
        needed = b1.requires_grad
        b1 = b1.detach().expand(*batch, *b1.shape).contiguous().requires_grad_(needed)
    options: dict[str, Any] = {}
    if name == "box_iou":
        options = {"fmt": rng.choice(("xyxy", "xywh", "cxcywh"))}
    function = getattr(ops, name)
    grad = random_layout(rng, torch.rand(*batch, rows, columns))
    spoiled = rng.chance(0.1)
    if spoiled:
        grad = grad.contiguous()
        spoil(rng, grad)

    def call() -> Results:
        overlap = function(b1, b2, **options)
        assert overlap.shape == (*batch, rows, columns)
        grads = gradients(overlap, (b1, b2), grad.to(overlap.dtype))
        return Results([overlap.detach()], grads)

    return call


def losses(name: str, rng: Source) -> Call:
    count = rng.size(COUNTS, (64, 300, 4095, 4097, 8200))
    dtype = rng.choice(DTYPES)
    b1, b2 = (_typed(rng, random_boxes(rng, count, 40.0), dtype) for _ in range(2))
    if rng.chance(0.1):
        b2 = b2[:1] if count else b2  # broadcast
    reduction = rng.choice(("none", "none", "sum", "mean"))
    function = getattr(ops, name)
    grad = random_layout(rng, torch.rand(count)) if reduction == "none" else torch.rand(())

    def call() -> Results:
        loss = function(b1, b2, reduction=reduction)
        grads = gradients(loss, (b1, b2), grad.to(loss.dtype))
        # a sum cancels to few digits, or overflows in 16 bits on one level only
        if reduction == "none":
            return Results([loss.detach()], grads)
        return Results([], [loss.detach(), *grads])

    return call


def box_iou_rotated(rng: Source) -> Call:
    dtype = rng.choice(DTYPES)
    sets = [
        _typed(rng, random_rotated_boxes(rng, rng.size(COUNTS, _MORE_ROTATED)), dtype)
        for _ in range(2)
    ]
    grad = random_layout(rng, torch.rand(len(sets[0]), len(sets[1])))

    def call() -> Results:
        overlap = ops.box_iou_rotated(*sets)
        return Results([overlap.detach()], gradients(overlap, sets, grad.to(overlap.dtype)))

    return call


def box_iou_3d(rng: Source) -> Call:
    dtype, fmt = rng.choice(DTYPES), rng.choice(("cxcyczdxdydzr", "cxcyczdxdydzr", "xyzxyz"))
    sets = [random_solid_boxes(rng, rng.size(COUNTS, _MORE_ROTATED)) for _ in range(2)]
    if fmt == "xyzxyz":
        sets = [boxes[:, :6] for boxes in sets]
    sets = [_typed(rng, boxes, dtype) for boxes in sets]
    grad = random_layout(rng, torch.rand(len(sets[0]), len(sets[1])))

    def call() -> Results:
        overlap = ops.box_iou_3d(*sets, fmt=fmt)
        return Results([overlap.detach()], gradients(overlap, sets, grad.to(overlap.dtype)))

    return call


def masks_to_boxes(rng: Source) -> Call:
    shape = (
        rng.choice((0, 1, 3)),
        rng.size((0, 1, 2, 5, 9), (130,)),
        rng.size((1, 3, 7, 8, 15, 16, 17, 31, 33, 64, 65), (127, 300, 1030)),
    )
    masks = (torch.rand(shape) < rng.choice((0.0, 0.01, 0.1, 1.0))).float()
    masks = masks.to(rng.choice((torch.bool, torch.uint8, torch.int16, torch.int64, *DTYPES)))
    part = masks[:, ::2, rng.choice((0, 1)) :]
    masks = part if rng.chance(0.3) else random_layout(rng, masks)
    return lambda: Results([ops.masks_to_boxes(masks)])


FUZZERS = {
    **{
        name: partial(overlaps, name)
        for name in ("box_iou", "generalized_box_iou", "distance_box_iou", "complete_box_iou")
    },
    **{
        name: partial(losses, name)
        for name in (
            "generalized_box_iou_loss",
            "distance_box_iou_loss",
            "complete_box_iou_loss",
        )
    },
    "box_iou_rotated": box_iou_rotated,
    "box_iou_3d": box_iou_3d,
    "masks_to_boxes": masks_to_boxes,
}
