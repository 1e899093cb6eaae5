"""Fuzzers of the ops on pairs of boxes and on masks."""

from __future__ import annotations

import random

import torch
from inputs import DTYPES, random_boxes, random_rotated_boxes, random_solid_boxes
from torch import Tensor

from fastvision import ops


def fuzz_box_iou(rng: random.Random) -> list[Tensor]:
    batch = rng.choice(((), (), (0,), (1,), (3,)))
    counts = [rng.choice((0, 1, 3, 16, 17, 70, 520)) for _ in range(2)]
    dtype = rng.choice(DTYPES)
    b1, b2 = (random_boxes(rng, max(n, 1), 40.0)[:n].to(dtype) for n in counts)
    b1 = b1.expand(*batch, *b1.shape).clone()
    b1.requires_grad_(rng.random() < 0.7)
    fmt = rng.choice(("xyxy", "xywh", "cxcywh"))
    calls = (
        lambda: ops.box_iou(b1, b2, fmt),
        lambda: ops.generalized_box_iou(b1, b2),
        lambda: ops.distance_box_iou(b1, b2),
        lambda: ops.complete_box_iou(b1, b2),
    )
    overlap = rng.choice(calls)()
    assert overlap.shape == (*batch, *counts)
    if overlap.requires_grad:
        torch.autograd.grad(overlap.nan_to_num(0, 0, 0).sum(), b1)
    return [overlap.detach()]


def fuzz_box_iou_loss(rng: random.Random) -> list[Tensor]:
    count, dtype = rng.choice((0, 1, 3, 17, 300)), rng.choice(DTYPES)
    b1, b2 = (random_boxes(rng, max(count, 1), 40.0)[:count].to(dtype) for _ in range(2))
    b1.requires_grad_()
    losses = (
        ops.generalized_box_iou_loss,
        ops.distance_box_iou_loss,
        ops.complete_box_iou_loss,
    )
    loss = rng.choice(losses)(b1, b2)
    torch.autograd.grad(loss.nan_to_num(0, 0, 0).sum(), b1)
    return [loss.detach()]


def fuzz_box_iou_rotated(rng: random.Random) -> list[Tensor]:
    dtype = rng.choice(DTYPES)
    sets = [
        random_rotated_boxes(rng, rng.choice((0, 1, 3, 17, 70))).to(dtype).requires_grad_()
        for _ in range(2)
    ]
    overlap = ops.box_iou_rotated(*sets)
    torch.autograd.grad(overlap.nan_to_num(0, 0, 0).sum(), sets)
    return [overlap.detach()]


def fuzz_box_iou_3d(rng: random.Random) -> list[Tensor]:
    dtype, fmt = rng.choice(DTYPES), rng.choice(("cxcyczdxdydzr", "xyzxyz"))
    sets = [random_solid_boxes(rng, rng.choice((0, 1, 3, 17, 70))).to(dtype) for _ in range(2)]
    if fmt == "xyzxyz":
        sets = [boxes[:, :6] for boxes in sets]
    sets = [boxes.requires_grad_() for boxes in sets]
    overlap = ops.box_iou_3d(*sets, fmt=fmt)
    torch.autograd.grad(overlap.nan_to_num(0, 0, 0).sum(), sets)
    return [overlap.detach()]


def fuzz_masks_to_boxes(rng: random.Random) -> list[Tensor]:
    shape = (rng.choice((0, 1, 3)), rng.choice((0, 1, 2, 9)), rng.choice((1, 7, 64, 65, 300)))
    masks = (torch.rand(shape) < rng.choice((0.0, 0.001, 0.1, 1.0))).float()
    masks = masks.to(rng.choice((torch.bool, torch.uint8, torch.int16, torch.int64, *DTYPES)))
    if rng.random() < 0.3:
        masks = masks[:, ::2, rng.choice((0, 1)) :]
    elif rng.random() < 0.3:
        masks = masks.mT
    return [ops.masks_to_boxes(masks)]


FUZZERS = (
    fuzz_box_iou,
    fuzz_box_iou_3d,
    fuzz_box_iou_loss,
    fuzz_box_iou_rotated,
    fuzz_masks_to_boxes,
)
