"""Fuzzers of the ops that keep some of many boxes or masks."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from fastvision import ops, reference
from fastvision.ops._topk_above import topk_above as topk

from .inputs import (
    COUNTS,
    DTYPES,
    THRESHOLDS,
    Call,
    Results,
    Source,
    random_boxes,
    random_layout,
    random_rotated_boxes,
    random_scores,
    random_solid_boxes,
    spoil,
)

_MORE = (63, 65, 130, 400, 1030, 1500)
_MORE_ROTATED = (63, 65, 300)


def _classes(rng: Source, *shape: int) -> Tensor:
    labels = rng.choice((1, 2, 3, 80, 1 << 62))
    idxs = torch.randint(-labels, labels, shape)
    return idxs if rng.chance(0.8) else idxs.to(rng.choice((torch.float32, torch.int8)))


def _scored_boxes(rng: Source) -> tuple[Tensor, Tensor]:
    dtype = rng.choice(DTYPES)
    count = rng.size(COUNTS, _MORE)
    boxes = random_layout(rng, random_boxes(rng, count, 60.0).to(dtype))
    return boxes, random_scores(rng, count, dtype)


def _limits(rng: Source) -> dict[str, Any]:
    if rng.chance(0.7):
        return {}
    return {
        "max_output": rng.choice((0, 1, 5, 2000)),
        "score_threshold": rng.choice((0.2, 0.0, float("nan"))),
    }


def _check_kept(kept: Tensor, count: int) -> None:
    places = kept.tolist()
    assert len(set(places)) == len(places) and all(0 <= place < count for place in places)


def nms(rng: Source) -> Call:
    boxes, scores = _scored_boxes(rng)
    threshold, limits = rng.choice(THRESHOLDS), _limits(rng)

    def call() -> Results:
        kept = ops.nms(boxes, scores, threshold, **limits)
        _check_kept(kept, len(boxes))
        return Results([kept])

    return call


def batched_nms(rng: Source) -> Call:
    boxes, scores = _scored_boxes(rng)
    idxs, threshold, limits = _classes(rng, len(boxes)), rng.choice(THRESHOLDS), _limits(rng)

    def call() -> Results:
        kept = ops.batched_nms(boxes, scores, idxs, threshold, **limits)
        _check_kept(kept, len(boxes))
        return Results([kept])

    return call


def batched_nms_padded(rng: Source) -> Call:
    boxes, scores = _scored_boxes(rng)
    images, count, most = rng.randint(0, 3), len(boxes), rng.choice((0, 1, 5, 40))
    batch = boxes.expand(images, count, 4), scores.expand(images, count)
    if rng.chance(0.5):  # images that differ
        batch = batch[0].contiguous(), torch.rand(images, count).to(boxes.dtype)
    idxs = _classes(rng, images, count) if rng.chance(0.6) else None
    threshold, lowest = rng.choice(THRESHOLDS), rng.choice((None, 0.2, float("nan")))

    def call() -> Results:
        indices, counts = ops.batched_nms_padded(
            *batch, idxs, threshold, score_threshold=lowest, max_output=most
        )
        assert indices.shape == (images, most) and counts.shape == (images,)
        for row, number in zip(indices, counts.tolist(), strict=True):
            _check_kept(row[:number], count)
            assert (row[number:] == -1).all()
        return Results([indices, counts])

    return call


def nms_match(rng: Source) -> Call:
    boxes, scores = _scored_boxes(rng)
    idxs = _classes(rng, len(boxes)) if rng.chance(0.5) else None
    threshold = rng.choice(THRESHOLDS)

    def call() -> Results:
        keep, match = ops.nms_match(boxes, scores, threshold, idxs=idxs)
        _check_kept(keep, len(boxes))
        assert match.shape == scores.shape and torch.equal(match[keep], keep)
        assert set(match.tolist()) == set(keep.tolist())
        return Results([keep, match])

    return call


def matrix_nms(rng: Source) -> Call:
    boxes, scores = _scored_boxes(rng)
    options: dict[str, Any] = {
        "idxs": _classes(rng, len(boxes)) if rng.chance(0.5) else None,
        "kernel": rng.choice(("gaussian", "linear")),
        "sigma": rng.choice((1e-300, 0.5, 2.0, 1e300)),
    }

    def call() -> Results:
        decayed = ops.matrix_nms(boxes, scores, **options)
        assert decayed.shape == scores.shape
        return Results([decayed])

    return call


def soft_nms(rng: Source) -> Call:
    boxes, scores = _scored_boxes(rng)
    method = rng.choice(("linear", "gaussian"))
    options: dict[str, Any] = {
        "sigma": rng.choice((1e-300, 0.5, 1e300)),
        "min_score": rng.choice((0.0, 1e-3, 0.5, 1e300)),
        "idxs": _classes(rng, len(boxes)) if rng.chance(0.5) else None,
    }
    threshold = rng.choice(THRESHOLDS)

    def call() -> Results:
        keep, decayed = ops.soft_nms(boxes, scores, threshold, method=method, **options)
        assert keep.numel() == decayed.numel()
        _check_kept(keep, len(boxes))
        # levels round exponentials differently, so near-equal scores could change places
        results = [keep, decayed]
        return Results(results) if method == "linear" else Results([], results)

    return call


def _scored_turned_boxes(rng: Source, solid: bool) -> tuple[Tensor, Tensor]:
    dtype, count = rng.choice(DTYPES), rng.size(COUNTS, _MORE_ROTATED)
    boxes = (random_solid_boxes if solid else random_rotated_boxes)(rng, count).to(dtype)
    return random_layout(rng, boxes), random_scores(rng, count, dtype)


def nms_rotated(rng: Source) -> Call:
    boxes, scores = _scored_turned_boxes(rng, solid=False)
    threshold = rng.choice(THRESHOLDS)

    def call() -> Results:
        kept = ops.nms_rotated(boxes, scores, threshold)
        _check_kept(kept, len(boxes))
        return Results([], [kept])  # levels may round an overlap near the threshold differently

    return call


def batched_nms_rotated(rng: Source) -> Call:
    boxes, scores = _scored_turned_boxes(rng, solid=False)
    idxs, threshold = _classes(rng, len(boxes)), rng.choice(THRESHOLDS)

    def call() -> Results:
        kept = ops.batched_nms_rotated(boxes, scores, idxs, threshold)
        _check_kept(kept, len(boxes))
        return Results([], [kept])

    return call


def nms_3d(rng: Source) -> Call:
    boxes, scores = _scored_turned_boxes(rng, solid=True)
    fmt = rng.choice(("cxcyczdxdydzr", "cxcyczdxdydzr", "xyzxyz"))
    boxes = boxes[:, :6] if fmt == "xyzxyz" else boxes
    options: dict[str, Any] = {
        "fmt": fmt,
        "idxs": _classes(rng, len(boxes)) if rng.chance(0.5) else None,
        "bev": rng.chance(0.2),
    }
    threshold = rng.choice(THRESHOLDS)

    def call() -> Results:
        kept = ops.nms_3d(boxes, scores, threshold, **options)
        _check_kept(kept, len(boxes))
        return Results([], [kept])

    return call


def _masks(rng: Source) -> Tensor:
    count = rng.size((0, 1, 2, 3, 5, 8, 9), (17, 40))
    height = rng.size((0, 1, 2, 3, 5), (20,))
    width = rng.choice((0, 1, 7, 8, 9, 31, 63, 64, 65, 127, 130))
    masks = torch.rand(count, height, width) < torch.rand(count, 1, 1)
    if rng.chance(0.5):
        masks[:, height // 2 :, : width // 3] = False
    return masks


def mask_iou(rng: Source) -> Call:
    masks = _masks(rng)
    other = masks if rng.chance(0.3) else torch.rand(rng.randint(0, 9), *masks.shape[1:]) < 0.5
    masks, other = random_layout(rng, masks), random_layout(rng, other)

    def call() -> Results:
        iou = ops.mask_iou(masks, other)
        assert iou.shape == (len(masks), len(other)) and ((iou >= 0) & (iou <= 1)).all()
        return Results([iou])

    return call


def mask_nms(rng: Source) -> Call:
    masks = random_layout(rng, _masks(rng))
    scores = random_scores(rng, len(masks), rng.choice(DTYPES))
    idxs = _classes(rng, len(masks)) if rng.chance(0.5) else None
    threshold = rng.choice(THRESHOLDS)

    def call() -> Results:
        kept = ops.mask_nms(masks, scores, threshold, idxs=idxs)
        _check_kept(kept, len(masks))
        return Results([kept])

    return call


def mask_matrix_nms(rng: Source) -> Call:
    masks = random_layout(rng, _masks(rng))
    scores = random_scores(rng, len(masks), rng.choice(DTYPES))
    options: dict[str, Any] = {
        "idxs": _classes(rng, len(masks)) if rng.chance(0.5) else None,
        "kernel": rng.choice(("gaussian", "linear")),
        "sigma": rng.choice((0.5, 2.0)),
    }
    return lambda: Results([ops.mask_matrix_nms(masks, scores, **options)])


def weighted_boxes_fusion(rng: Source) -> Call:
    dtype = rng.choice(DTYPES)
    boxes, scores, labels = [], [], []
    classes = rng.choice((1, 3, 200))
    for _ in range(rng.randint(1, 4)):
        count = rng.size(COUNTS, (65, 300, 1030))
        boxes.append(random_layout(rng, random_boxes(rng, count, 40.0).to(dtype)))
        found = torch.rand(count)
        if rng.chance(0.3):
            spoil(rng, found)
        scores.append(found.to(dtype))
        labels.append(torch.randint(-classes, classes, (count,)))
    options: dict[str, Any] = {
        "weights": [rng.choice((1, 0.5, 1e30)) for _ in boxes],
        "iou_threshold": rng.choice((0.0, 0.55, 0.9, -1.0, float("nan"))),
        "skip_box_threshold": rng.choice((0.0, 0.3, -1e30)),
        "conf_type": rng.choice(("avg", "max")),
        "allows_overflow": rng.chance(0.3),
    }

    def call() -> Results:
        fused, confidence, of_class = ops.weighted_boxes_fusion(boxes, scores, labels, **options)
        assert len(fused) == len(confidence) == len(of_class) <= sum(map(len, boxes))
        return Results([fused, confidence, of_class])

    return call


def topk_above(rng: Source) -> Call:
    batch, columns = rng.choice((0, 1, 1, 2, 3)), rng.size((0, 1, 1, 2, 3, 15, 16, 17, 33), (91,))
    rows = rng.size(COUNTS, (63, 64, 65, 300, 1030, 70_000 if columns < 4 else 1500))
    x = random_scores(rng, batch * rows * columns, rng.choice(DTYPES))
    x = x.contiguous().view(batch, rows, columns)
    if rng.chance(0.2):  # none is ever better than what was found
        x = x.sort(dim=1).values
    x = random_layout(rng, x[..., 1:] if rng.chance(0.3) else x)
    k, least = rng.choice((0, 1, 2, 7, 64, 400, 2000)), rng.choice((-math.inf, 0.0, 0.5, math.nan))

    def call() -> Results:
        values, indices = topk(x, k, least)
        for one, other in zip((values, indices), reference.topk_above(x, k, least), strict=True):
            assert torch.equal(one.nan_to_num(nan=-math.inf), other.nan_to_num(nan=-math.inf))
        return Results([values, indices])

    return call


FUZZERS = {
    function.__name__: function
    for function in (
        batched_nms,
        batched_nms_padded,
        batched_nms_rotated,
        mask_iou,
        mask_matrix_nms,
        mask_nms,
        matrix_nms,
        nms,
        nms_3d,
        nms_match,
        nms_rotated,
        soft_nms,
        topk_above,
        weighted_boxes_fusion,
    )
}
