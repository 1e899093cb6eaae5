"""Fuzzers of the ops that keep some of many boxes or masks."""

from __future__ import annotations

import random

import torch
from inputs import DTYPES, HOSTILE, random_boxes, random_rotated_boxes, random_solid_boxes
from torch import Tensor

from fastvision import ops


def random_scored_boxes(rng: random.Random) -> tuple[Tensor, Tensor, Tensor, float]:
    """Boxes, scores, classes and a threshold, for non-maximum suppression."""
    dtype = rng.choice(DTYPES)
    count = rng.choice((0, 1, 2, 15, 16, 17, 65, 400, 1500))
    boxes = random_boxes(rng, count, 60.0).to(dtype) if count else torch.zeros(0, 4, dtype=dtype)
    scores = torch.rand(count).to(dtype)
    if count and rng.random() < 0.3:
        scores[torch.randint(0, count, (count // 3 + 1,))] = rng.choice(HOSTILE)
    if rng.random() < 0.3:
        scores = scores.round(decimals=1)  # ties
    threshold = rng.choice((0.0, 0.3, 0.5, 0.9, 1.0, -1.0, 2.0, float("nan"), float("inf")))
    labels = rng.choice((1, 2, 80, 1 << 62))
    idxs = torch.randint(-labels, labels, (count,))
    return boxes, scores, idxs, threshold


def fuzz_nms(rng: random.Random) -> list[Tensor]:
    boxes, scores, idxs, threshold = random_scored_boxes(rng)
    count = len(boxes)
    kind = rng.choice(("nms", "batched", "padded"))
    most = rng.choice((0, 1, 5, 2000))
    limits = {"max_output": most, "score_threshold": 0.2} if rng.random() < 0.3 else {}
    if kind == "nms":
        kept = ops.nms(boxes, scores, threshold, **limits)
    elif kind == "batched":
        kept = ops.batched_nms(boxes, scores, idxs, threshold, **limits)
    else:
        images = rng.randint(0, 3)
        indices, counts = ops.batched_nms_padded(
            boxes.expand(images, count, 4),
            scores.expand(images, count),
            idxs.expand(images, count) if rng.random() < 0.7 else None,
            threshold,
            score_threshold=rng.choice((None, 0.2, float("nan"))),
            max_output=most,
        )
        assert indices.shape == (images, most) and counts.shape == (images,)
        for row, number in zip(indices, counts.tolist(), strict=True):
            assert (row[number:] == -1).all()
            assert row[:number].unique().numel() == number
            assert ((row[:number] >= 0) & (row[:number] < count)).all()
        return [indices, counts]
    assert kept.unique().numel() == kept.numel() <= count
    assert ((kept >= 0) & (kept < count)).all()
    return [kept]


def random_masks(rng: random.Random) -> Tensor:
    count = rng.choice((0, 1, 5, 40))
    height, width = rng.choice((0, 1, 3, 20)), rng.choice((0, 1, 63, 64, 65, 130))
    masks = torch.rand(count, height, width) < torch.rand(count, 1, 1)
    if rng.random() < 0.5:
        masks[:, height // 2 :, : width // 3] = False
    return masks


def fuzz_mask_iou(rng: random.Random) -> list[Tensor]:
    masks = random_masks(rng)
    other = masks if rng.random() < 0.3 else torch.rand(7, *masks.shape[1:]) < 0.5
    x = masks.mT.contiguous().mT if rng.random() < 0.3 else masks
    iou = ops.mask_iou(x, other)
    assert iou.shape == (len(masks), len(other)) and ((iou >= 0) & (iou <= 1)).all()
    return [iou]


def fuzz_mask_nms(rng: random.Random) -> list[Tensor]:
    masks = random_masks(rng)
    count = len(masks)
    scores = torch.rand(count).to(rng.choice(DTYPES))
    if count and rng.random() < 0.3:
        scores[torch.randint(0, count, (count // 3 + 1,))] = rng.choice(HOSTILE)
    idxs = torch.randint(-2, 2, (count,)) if rng.random() < 0.5 else None
    kept = ops.mask_nms(masks, scores, rng.choice((-1.0, 0.0, 0.5, float("nan"))), idxs=idxs)
    assert kept.unique().numel() == kept.numel() <= count
    return [kept, ops.mask_matrix_nms(masks, scores, idxs=idxs)]


def fuzz_matrix_nms(rng: random.Random) -> list[Tensor]:
    boxes, scores, idxs, _ = random_scored_boxes(rng)
    decayed = ops.matrix_nms(
        boxes,
        scores,
        idxs=idxs if rng.random() < 0.5 else None,
        kernel=rng.choice(("gaussian", "linear")),
        sigma=rng.choice((1e-300, 0.5, 2.0, 1e300)),
    )
    assert decayed.shape == scores.shape
    return [decayed]


def fuzz_nms_match(rng: random.Random) -> list[Tensor]:
    boxes, scores, idxs, threshold = random_scored_boxes(rng)
    classes = idxs if rng.random() < 0.5 else None
    keep, match = ops.nms_match(boxes, scores, threshold, idxs=classes)
    assert match.shape == scores.shape and torch.equal(match[keep], keep)
    assert torch.isin(match, keep).all() and torch.isin(keep, match).all()
    return [keep, match]


def fuzz_soft_nms(rng: random.Random) -> list[Tensor]:
    boxes, scores, idxs, threshold = random_scored_boxes(rng)
    lowest = rng.choice((0.0, 1e-3, 0.5, 1e300))
    keep, decayed = ops.soft_nms(
        boxes,
        scores,
        threshold,
        # levels round exponentials differently, so near-equal scores could change places
        method="linear",
        min_score=lowest,
        idxs=idxs if rng.random() < 0.5 else None,
    )
    assert keep.unique().numel() == keep.numel() == decayed.numel() <= len(boxes)
    ops.soft_nms(boxes, scores, method="gaussian", sigma=rng.choice((1e-300, 0.5, 1e300)))
    return [keep, decayed]


def fuzz_nms_rotated(rng: random.Random) -> list[Tensor]:
    """nms_rotated, batched_nms_rotated and nms_3d. No indices are compared: the levels may round an
    overlap near the threshold differently."""
    dtype, solid = rng.choice(DTYPES), rng.random() < 0.4
    count = rng.choice((0, 1, 2, 15, 16, 17, 65, 300, 800))
    boxes = (random_solid_boxes if solid else random_rotated_boxes)(rng, count).to(dtype)
    scores = torch.rand(count).to(dtype)
    if count and rng.random() < 0.3:
        scores[torch.randint(0, count, (count // 3 + 1,))] = rng.choice(HOSTILE)
    threshold = rng.choice((0.0, 0.3, 0.5, 0.9, 1.0, -1.0, 2.0, float("nan"), float("inf")))
    if solid:
        kept = ops.nms_3d(boxes, scores, threshold, bev=rng.random() < 0.3)
    elif rng.random() < 0.5:
        kept = ops.nms_rotated(boxes, scores, threshold)
    else:
        kept = ops.batched_nms_rotated(boxes, scores, torch.randint(-3, 3, (count,)), threshold)
    assert kept.unique().numel() == kept.numel() <= count
    assert ((kept >= 0) & (kept < count)).all()
    return []


def fuzz_weighted_boxes_fusion(rng: random.Random) -> list[Tensor]:
    dtype, boxes, scores, labels = rng.choice(DTYPES), [], [], []
    classes = rng.choice((1, 3, 200))
    for _ in range(rng.randint(1, 4)):
        count = rng.choice((0, 1, 2, 17, 65, 300))
        boxes.append(random_boxes(rng, max(count, 1), 40.0)[:count].to(dtype))
        scores.append(torch.rand(count).to(dtype))
        if count and rng.random() < 0.3:
            scores[-1][rng.randrange(count)] = rng.choice(HOSTILE)
        labels.append(torch.randint(-classes, classes, (count,)))
    fused, confidence, of_class = ops.weighted_boxes_fusion(
        boxes,
        scores,
        labels,
        weights=[rng.choice((1, 0.5, 1e30)) for _ in boxes],
        iou_threshold=rng.choice((0.0, 0.55, 0.9, -1.0, float("nan"))),
        skip_box_threshold=rng.choice((0.0, 0.3, -1e30)),
        conf_type=rng.choice(("avg", "max")),
    )
    assert len(fused) == len(confidence) == len(of_class) <= sum(map(len, boxes))
    return [fused, confidence, of_class]


FUZZERS = (
    fuzz_mask_iou,
    fuzz_mask_nms,
    fuzz_matrix_nms,
    fuzz_nms,
    fuzz_nms_match,
    fuzz_nms_rotated,
    fuzz_soft_nms,
    fuzz_weighted_boxes_fusion,
)
