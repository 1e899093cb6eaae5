"""Random and hostile inputs through the public ops, for a library built with sanitizers.

A read or write outside a buffer and undefined behaviour end the process; all the ops may do with
nonsense is to refuse it with an exception that names the argument. Run by
tests/kernels/test_sanitizers.py.

Over 450 lines because each op adds one function to the same tools.
"""

from __future__ import annotations

import argparse
import math
import random
import time
from collections.abc import Callable

import torch
from torch import Tensor

from fastvision import _extension, ops
from fastvision.reference import ACTIVATIONS
from fastvision.reference.activations import activate
from fastvision.testing.deform_conv2d import Problem, leaves
from fastvision.testing.numerics import assert_matches

DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
HOSTILE = (float("nan"), float("inf"), -float("inf"), 1e30, -1e30, 1e9, -1.0, -0.0, 1e-40, 65504.0)


def random_boxes(rng: random.Random, count: int, extent: float) -> Tensor:
    """[count, 4] boxes; some have sides that are negative, zero, huge or not a number."""
    corner = torch.rand(count, 2) * extent * 1.5 - extent * 0.25
    boxes = torch.cat([corner, corner + torch.rand(count, 2) * extent], 1)
    kind = rng.choice(("ordinary", "degenerate", "reversed", "whole pixels", "hostile"))
    if kind == "degenerate":
        boxes[::2, 2:] = boxes[::2, :2]
    elif kind == "reversed":
        boxes[::3] = boxes[::3].flip(1)
    elif kind == "whole pixels":
        boxes = boxes.round()
    elif kind == "hostile":
        for _ in range(count):
            boxes[rng.randrange(count), rng.randrange(4)] = rng.choice(HOSTILE)
    return boxes


def random_format(rng: random.Random, x: Tensor) -> Tensor:
    kind = rng.choice(("contiguous", "channels_last", "strided"))
    if kind == "channels_last":
        return x.contiguous(memory_format=torch.channels_last)
    return x.mT.contiguous().mT if kind == "strided" else x


def fuzz_roi_align(rng: random.Random) -> list[Tensor]:
    levels = rng.choice((1, 1, 2, 4))
    images, channels = rng.randint(0, 3), rng.choice((0, 1, 3, 8, 17, 33, 64))
    height, width = rng.choice((0, 1, 2, 7, 16, 40)), rng.choice((1, 2, 5, 16, 40))
    dtype = rng.choice(DTYPES)
    features = [
        random_format(rng, torch.randn(images, channels, height >> i, max(width >> i, 1)).to(dtype))
        for i in range(levels)
    ]
    for feature in features:
        feature.requires_grad_(rng.random() < 0.8)
    count = rng.choice((0, 1, 2, 9, 30))
    boxes = random_boxes(rng, count, 8.0 * max(height, width)) if count else torch.zeros(0, 4)
    image = torch.randint(0, max(images, 1), (count, 1)).float()
    if count and rng.random() < 0.2:
        image[rng.randrange(count)] = rng.choice((*HOSTILE, float(images), -0.5))
    rois = torch.cat([image, boxes], 1)
    size = (rng.choice((0, 1, 2, 7, 14)), rng.choice((1, 3, 7)))
    sampling_ratio, aligned = rng.choice((-1, 0, 1, 2, 5)), rng.random() < 0.5
    scales = [2.0**-i / rng.choice((1, 8)) for i in range(levels)]
    if levels == 1:
        pooled = ops.roi_align(features[0], rois, size, scales[0], sampling_ratio, aligned)
    else:
        pooled = ops.multiscale_roi_align(
            features, rois, size, scales, sampling_ratio, aligned, canonical_scale=32
        )
    assert pooled.shape == (count, channels, *size) and pooled.dtype == dtype
    if pooled.requires_grad:
        grad = random_format(rng, torch.randn(pooled.shape).to(dtype))
        pooled.backward(grad)
        for feature in features:
            assert feature.grad is None or feature.grad.shape == feature.shape
    return [pooled.detach(), *(f.grad for f in features if f.grad is not None)]


def fuzz_roi_samples(rng: random.Random) -> list[Tensor]:
    """Both roi_align_rotated and the maximum of roi_align."""
    images, channels = rng.randint(0, 3), rng.choice((0, 1, 3, 8, 17, 33, 64, 150))
    height, width = rng.choice((0, 1, 2, 7, 16, 40)), rng.choice((0, 1, 2, 5, 16, 40))
    dtype = rng.choice(DTYPES)
    x = random_format(rng, torch.randn(images, channels, height, width).to(dtype))
    if x.numel() and rng.random() < 0.2:
        x.flatten()[rng.randrange(x.numel())] = rng.choice(HOSTILE)
    x.requires_grad_(rng.random() < 0.8)
    count = rng.choice((0, 1, 2, 9, 30))
    boxes = random_boxes(rng, count, 8.0 * max(height, width)) if count else torch.zeros(0, 4)
    image = torch.randint(0, max(images, 1), (count, 1)).float()
    if count and rng.random() < 0.2:
        image[rng.randrange(count)] = rng.choice((*HOSTILE, float(images), -0.5))
    size = (rng.choice((0, 1, 2, 7)), rng.choice((1, 3, 7)))
    options = (rng.choice((1, 1 / 8, -0.5)), rng.choice((-1, 0, 1, 2, 5, 11)), rng.random() < 0.5)
    if rng.random() < 0.5:
        pooled = ops.roi_align(x, torch.cat([image, boxes], 1), size, *options, pool_mode="max")
    else:
        angles = torch.randn(count, 1) * rng.choice((0, 1, 90, 1e4, 1e30))
        if count and rng.random() < 0.1:
            angles[rng.randrange(count)] = rng.choice(HOSTILE)
        rois = torch.cat([image, boxes, angles], 1)
        pooled = ops.roi_align_rotated(x, rois, size, *options, clockwise=rng.random() < 0.5)
    assert pooled.shape == (count, channels, *size) and pooled.dtype == dtype
    if not pooled.requires_grad:
        return [pooled]
    pooled.backward(random_format(rng, torch.randn(pooled.shape).to(dtype)))
    assert x.grad is not None and x.grad.shape == x.shape
    return [pooled.detach(), x.grad]


def fuzz_roi_pool(rng: random.Random) -> list[Tensor]:
    images, channels = rng.randint(0, 3), rng.choice((0, 1, 3, 8, 17, 33, 64, 150))
    height, width = rng.choice((0, 1, 2, 7, 16, 40)), rng.choice((0, 1, 2, 5, 16, 40))
    dtype = rng.choice(DTYPES)
    x = random_format(rng, torch.randn(images, channels, height, width).to(dtype))
    if x.numel() and rng.random() < 0.3:
        x.flatten()[rng.randrange(x.numel())] = rng.choice(HOSTILE)
    x.requires_grad_(rng.random() < 0.8)
    count = rng.choice((0, 1, 2, 9, 30))
    boxes = random_boxes(rng, count, 8.0 * max(height, width)) if count else torch.zeros(0, 4)
    image = torch.randint(0, max(images, 1), (count, 1)).float()
    if count and rng.random() < 0.2:
        image[rng.randrange(count)] = rng.choice((*HOSTILE, float(images), -0.5))
    size = (rng.choice((0, 1, 2, 7, 14, 40)), rng.choice((1, 3, 7, 300)))
    pooled = ops.roi_pool(x, torch.cat([image, boxes], 1), size, rng.choice((1, 1 / 8, -0.5, 1e30)))
    assert pooled.shape == (count, channels, *size) and pooled.dtype == dtype
    if not pooled.requires_grad:
        return [pooled]
    pooled.backward(random_format(rng, torch.randn(pooled.shape).to(dtype)))
    assert x.grad is not None and x.grad.shape == x.shape
    return [pooled.detach(), x.grad]


def fuzz_ps_rois(rng: random.Random) -> list[Tensor]:
    """Both ps_roi_align and ps_roi_pool."""
    size = rng.choice(((1, 1), (2, 3), (7, 7), (1, 20), (40, 1)))
    images, channels = rng.randint(0, 3), rng.choice((0, 1, 3, 8, 17, 33)) * size[0] * size[1]
    height, width = rng.choice((0, 1, 2, 7, 16, 40)), rng.choice((0, 1, 2, 5, 16, 40))
    dtype = rng.choice(DTYPES)
    x = random_format(rng, torch.randn(images, channels, height, width).to(dtype))
    x.requires_grad_(rng.random() < 0.8)
    count = rng.choice((0, 1, 2, 9, 70, 150))
    boxes = random_boxes(rng, count, 8.0 * max(height, width)) if count else torch.zeros(0, 4)
    image = torch.randint(0, max(images, 1), (count, 1)).float()
    if count and rng.random() < 0.2:
        image[rng.randrange(count)] = rng.choice((*HOSTILE, float(images), -0.5))
    rois, scale = torch.cat([image, boxes], 1), rng.choice((1, 1 / 8, -0.5, 1e30))
    if rng.random() < 0.5:
        pooled = ops.ps_roi_pool(x, rois, size, scale)  # type: ignore[arg-type]
    else:
        ratio = rng.choice((-1, 1, 2, 5))
        pooled = ops.ps_roi_align(x, rois, size, scale, ratio)  # type: ignore[arg-type]
    assert pooled.shape == (count, channels // (size[0] * size[1]), *size)
    if not pooled.requires_grad:
        return [pooled]
    pooled.backward(random_format(rng, torch.randn(pooled.shape).to(dtype)))
    assert x.grad is not None and x.grad.shape == x.shape
    return [pooled.detach(), x.grad]


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


def fuzz_conv_bn_relu(rng: random.Random) -> list[Tensor]:
    if rng.random() < 0.3:  # Winograd's
        groups, C, K, window = 1, rng.choice((32, 33, 64)), rng.choice((16, 39, 64, 130)), (3, 3)
        stride, dilation = (1, 1), (1, 1)
        images, height, width = rng.randint(1, 2), rng.randint(12, 17), rng.randint(12, 17)
    else:
        groups = rng.choice((1, 1, 2, 5, 8, 33))
        C, K = rng.choice(((1, 1), (1, 1), (2, 2), (4, 4), (8, 8), (3, 5), (16, 17), (1, 2)))
        window = rng.choice(((1, 1), (3, 3), (1, 4), (5, 5), (7, 2)))
        stride, dilation = (rng.randint(1, 3), rng.randint(1, 2)), (1, rng.choice((1, 1, 3)))
        images, height, width = rng.randint(0, 3), rng.choice((0, 1, 5, 16)), rng.choice((1, 7, 30))
    dtype = rng.choice(DTYPES)
    x = random_format(rng, torch.randn(images, C * groups, height, width).to(dtype))
    if x.numel() and rng.random() < 0.2:
        # a huge number's rounding errors would hide the others of its tile
        hostile = HOSTILE if C < 32 else HOSTILE[:3]
        x[tuple(rng.randrange(size) for size in x.shape)] = rng.choice(hostile)
    weight = torch.randn(K * groups, C, *window).to(dtype) / (C * window[0] * window[1]) ** 0.5
    norm = {"running_mean": torch.randn(K * groups), "running_var": torch.rand(K * groups)}
    options = {
        "bias": torch.randn(K * groups).to(dtype) if rng.random() < 0.5 else None,
        "stride": stride,
        "padding": tuple(rng.randint(0, 3) for _ in range(4)),
        "dilation": dilation,
        "groups": groups,
        "activation": rng.choice(ACTIVATIONS),
        **(norm if rng.random() < 0.5 else {}),
    }
    try:
        y = ops.conv_bn_relu(x, weight, **options)
    except ValueError as error:
        assert "does not fit into input" in str(error)
        return []
    residual = random_format(rng, torch.randn(y.shape).to(dtype))
    return [y, ops.conv_bn_relu(x, weight, residual=residual, **options)]


def random_layout(rng: random.Random, x: Tensor) -> Tensor:
    """The same values in memory of another order, or with gaps."""
    kind = rng.choice(("contiguous", "transposed", "gaps"))
    if kind == "transposed" and x.dim() > 1:
        return x.mT.contiguous().mT
    return torch.stack([x, x], -1)[..., 0] if kind == "gaps" else x


def random_logits(rng: random.Random, *shape: int) -> Tensor:
    x = torch.randn(shape) * rng.choice((1, 10, 200))
    for _ in range(rng.choice((0, 0, 3)) if x.numel() else 0):
        x.view(-1)[rng.randrange(x.numel())] = rng.choice(HOSTILE)
    return random_layout(rng, x.to(rng.choice(DTYPES)))


def random_labels(rng: random.Random, shape: tuple[int, ...], classes: int) -> Tensor:
    labels = torch.randint(-3, classes, shape) if classes > 0 else torch.full(shape, -1)
    if labels.numel() and rng.random() < 0.1:
        wrong = rng.choice((classes, classes + 1, 1 << 40, -(1 << 62)))
        labels.view(-1)[rng.randrange(labels.numel())] = wrong
    return random_layout(rng, labels)


def fuzz_focal_loss(rng: random.Random) -> list[Tensor]:
    classes = rng.choice((0, 1, 2, 7, 8, 9, 17, 80, 91))
    gamma = rng.choice((0, 0.5, 1, 1.5, 2, 3, 5.5))
    reduction = rng.choice(("none", "sum", "mean"))
    kind = rng.choice(("numbers", "labels", "levels", "softmax"))
    rows = rng.choice((0, 1, 3, 40, 1000))
    if kind == "levels":
        reduction = "sum" if reduction == "none" else reduction
        sizes = [rng.choice((0, 1, 5, 60)) for _ in range(rng.randint(1, 8))]
        inputs = [random_logits(rng, 2, size, classes) for size in sizes]
        targets: Tensor | list[Tensor] = random_labels(rng, (2, sum(sizes)), classes)
    else:
        inputs = [random_logits(rng, rows, classes)]
        targets = random_labels(rng, (rows,), classes)
    for x in inputs:
        x.requires_grad_(rng.random() < 0.8)
    if kind == "softmax":
        weights = torch.rand(classes) if rng.random() < 0.5 else None
        ignore_index = rng.choice((-100, -1, 0))
        if rng.random() < 0.7:  # most labels are no class otherwise
            assert isinstance(targets, Tensor)
            targets = targets.clamp(min=0) if classes else torch.full((rows,), ignore_index)
        loss = ops.softmax_focal_loss(inputs[0], targets, weights, gamma, reduction, ignore_index)
    else:
        alpha = rng.choice((-1, 0, 0.25, 1))
        if kind == "numbers":
            t = torch.rand(rows, classes)
            t = (t > 0.9).float() if rng.random() < 0.5 else t
            if t.numel() and rng.random() < 0.2:
                t.view(-1)[rng.randrange(t.numel())] = rng.choice(HOSTILE)
            targets = random_layout(rng, t.to(inputs[0].dtype))
        arguments = inputs if kind == "levels" else inputs[0]
        loss = ops.sigmoid_focal_loss(arguments, targets, alpha, gamma, reduction)
    wanted = [x for x in inputs if x.requires_grad]
    grads: list[Tensor] = []
    if wanted:
        grad = torch.rand_like(loss)
        grads = list(torch.autograd.grad(loss, wanted, grad, retain_graph=True))
        again = torch.autograd.grad(loss, wanted, grad)
        assert all(g.shape == x.shape for g, x in zip(grads, wanted, strict=True))
        for one, other in zip(grads, again, strict=True):
            assert torch.equal(one.isnan(), other.isnan())
            assert torch.equal(one.nan_to_num(), other.nan_to_num())
    return [loss.detach(), *grads]


def fuzz_batch_norm_relu(rng: random.Random) -> list[Tensor]:
    dtype = rng.choice(DTYPES)
    channels = rng.choice((1, 2, 3, 8, 17, 33, 64, 130))
    sizes = ((), (1, 1), (1, 7), (5, 5), (7, 16), (40, 60))
    shape = (rng.choice((0, 1, 2, 3, 9)), channels, *rng.choice(sizes))
    training = rng.random() < 0.7 and shape[0] * math.prod(shape[2:]) != 1
    x = torch.randn(shape)
    if x.numel() and rng.random() < 0.2:
        x.view(-1)[rng.randrange(x.numel())] = rng.choice(HOSTILE)

    def in_some_format(t: Tensor) -> Tensor:
        return (random_format(rng, t) if len(shape) == 4 else t).to(dtype)

    x, residual, grad = (in_some_format(t) for t in (x, torch.randn(shape), torch.randn(shape)))
    wide = torch.promote_types(dtype, torch.float32)
    mean, weight, bias = torch.randn(3, channels).to(wide)
    var = torch.rand(channels).to(wide) + 0.1
    inputs = [t.requires_grad_(rng.random() < 0.8) for t in (x, weight, bias, residual)]
    activation = rng.choice(ACTIVATIONS)
    y = ops.batch_norm_relu(
        x, mean, var,
        weight if rng.random() < 0.8 else None,
        bias if rng.random() < 0.8 else None,
        training, residual=residual if rng.random() < 0.5 else None, activation=activation,
        negative_slope=rng.choice((0.01, 0.0, -0.5)),
    )  # fmt: skip
    assert y.shape == shape and y.dtype == dtype
    if y.requires_grad:
        y.backward(grad)
    grads = [t.grad for t in inputs if t.grad is not None]
    # a sum of thousands of terms in 16 bits has few digits, and a kink has two sides
    smooth = activation in ("none", "silu", "sigmoid", "hardswish") and dtype.itemsize > 2
    return [y.detach(), mean, var, *(grads if smooth else [])]


def fuzz_conv_transpose2d(rng: random.Random) -> list[Tensor]:
    dtype = rng.choice(DTYPES)
    groups = rng.choice((1, 1, 2, 5))
    C, K = groups * rng.choice((1, 2, 3, 8, 17)), groups * rng.choice((1, 2, 8, 9, 33))
    window = [(rng.randint(1, 6), rng.randint(1, 4), rng.randint(0, 3)) for _ in range(2)]
    kernel, stride, padding = zip(*window, strict=True)
    dilation = (rng.choice((1, 1, 2, 3)), rng.choice((1, 1, 2, 4)))
    extra = tuple(rng.randrange(max(s, d)) for s, d in zip(stride, dilation, strict=True))
    kind = rng.choice(("dense", "separable", "hostile"))
    if kind == "separable":
        K, groups, dilation = C, C, (1, 1)
        extra = tuple(rng.randrange(s) for s in stride)
    weight = torch.randn(C, K // groups, *kernel)
    if kind == "separable":
        weight = torch.randn(C, 1, 1, 1) * torch.randn(kernel[0], 1) * torch.randn(kernel[1])
        if rng.random() < 0.5:  # the same between all channels
            weight, groups = weight * torch.eye(C)[:, :, None, None], 1
    x = torch.randn(rng.randint(0, 3), C, rng.randint(1, 9), rng.choice((1, 2, 7, 30)))
    if kind == "hostile":
        x.view(-1)[: rng.randint(0, 9)] = rng.choice(HOSTILE)
    x, weight = random_format(rng, x.to(dtype)), weight.to(dtype)
    sizes = [
        (n - 1) * s - 2 * p + d * (r - 1) + e + 1
        for n, r, s, p, e, d in zip(
            x.shape[2:], kernel, stride, padding, extra, dilation, strict=True
        )
    ]
    if min(sizes) < 1:
        return []  # refused in Python before any kernel
    residual = torch.randn(x.shape[0], K, *sizes).to(dtype) if rng.random() < 0.5 else None
    y = ops.conv_transpose2d_bn_relu(
        x,
        weight,
        torch.randn(K).to(dtype) if rng.random() < 0.5 else None,
        stride=stride,
        padding=padding,
        output_padding=extra,
        groups=groups,
        dilation=dilation,
        residual=residual,
        activation=rng.choice(ACTIVATIONS),
    )
    assert y.shape == (x.shape[0], K, *sizes) and y.dtype == dtype
    return [] if kind == "hostile" else [y]  # infinities may cancel in another order


def fuzz_max_pool2d(rng: random.Random) -> list[Tensor]:
    images, channels = rng.randint(0, 2), rng.choice((0, 1, 3, 16, 33, 70))
    height, width = rng.choice((1, 2, 7, 20)), rng.choice((1, 2, 9, 16, 33, 70))
    x = torch.randn(images, channels, height, width).mul(2).round().to(rng.choice(DTYPES))
    for _ in range(rng.randrange(4) if x.numel() else 0):
        x.view(-1)[rng.randrange(x.numel())] = rng.choice(HOSTILE)
    x = random_format(rng, x).requires_grad_()
    kernel = [min(rng.randint(1, 4), size) for size in (height, width)]
    padding = tuple(rng.randint(0, size // 2) for size in kernel)
    window = (tuple(kernel), (rng.randint(1, 4), rng.randint(1, 4)), padding)
    window = (*window, (rng.choice((1, 1, 2)), rng.choice((1, 1, 3))))
    args = (*window, rng.random() < 0.5)
    values, indices = ops.max_pool2d_with_indices(x, *args)
    if x.numel():
        expected, places = torch.nn.functional.max_pool2d(x, *args, return_indices=True)
        assert_matches(values, expected)
        assert torch.equal(indices, places)
    values.nan_to_num(0, 0, 0).sum().backward()
    assert x.grad is not None
    if rng.random() < 0.5:  # other indices, which may be outside of the result
        bad = rng.choice((0, 0, 1, 1 << 40))
        indices = torch.randint(-bad, height * width + bad, indices.shape)
    leaf = values.detach().requires_grad_()
    stride = rng.choice(((2, 2), (1 << 20, 1 << 20)))
    kernel = [
        n - (m - 1) * s for n, m, s in zip((height, width), leaf.shape[2:], stride, strict=True)
    ]
    plane = ops.max_unpool2d(leaf, indices, kernel, stride)
    (grad,) = torch.autograd.grad(plane.nan_to_num(0, 0, 0).sum(), leaf)
    return [values, indices, x.grad, plane, grad]


def fuzz_linear_act(rng: random.Random) -> list[Tensor]:
    rows, features = rng.choice((0, 1, 2, 5, 17)), rng.choice((1, 7, 512, 520, 1024))
    dtype = rng.choice(DTYPES)
    x = torch.randn(rng.choice((1, 3)), rows, features).to(dtype)
    # large enough to be packed, at times
    weight = (torch.randn(rng.choice((1, 9, 300, 520)), features) / features**0.5).to(dtype)
    bias = torch.randn(weight.shape[0]).to(dtype) if rng.random() < 0.5 else None
    hostile = rng.random() < 0.3
    if hostile and x.numel():
        x.view(-1)[rng.randrange(x.numel())] = rng.choice(HOSTILE)
    activation = rng.choice(ACTIVATIONS)
    y = ops.linear_act(x, weight, bias, activation=activation)
    if not hostile:
        z = torch.nn.functional.linear(
            x.double(), weight.double(), None if bias is None else bias.double()
        )
        assert_matches(y, activate(z, activation, 0.01), scale=20)
    return [y]


def fuzz_squeeze_excitation(rng: random.Random) -> list[Tensor]:
    images, channels = rng.randint(0, 3), rng.choice((0, 1, 3, 8, 17, 70))
    height, width = rng.choice((0, 1, 2, 7)), rng.choice((1, 2, 5, 16))
    dtype, squeeze = rng.choice(DTYPES), rng.choice((1, 2, 9, 33))
    x = torch.randn(images, channels, height, width).to(dtype)
    weights = [
        torch.randn(squeeze, channels).to(dtype),
        torch.randn(squeeze).to(dtype) if rng.random() < 0.5 else None,
        torch.randn(channels, squeeze, 1, 1).to(dtype),
        torch.randn(channels).to(dtype) if rng.random() < 0.5 else None,
    ]
    hostile = rng.random() < 0.3
    if hostile and x.numel():
        for t in (x, weights[0], weights[2]):
            t.view(-1)[rng.randrange(t.numel())] = rng.choice(HOSTILE)
    names = rng.choice(("relu", "silu")), rng.choice(("sigmoid", "hardsigmoid"))
    y = ops.squeeze_excitation(random_format(rng, x), *weights, *names)
    if not hostile and y.numel():
        expected = ops.squeeze_excitation(x, *weights, *names, backend="reference")
        assert_matches(y, expected, scale=10)
    return [y]


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


def random_rotated_boxes(rng: random.Random, count: int) -> Tensor:
    """[count, 5] boxes whose angle may be anything too."""
    boxes = random_boxes(rng, max(count, 1), 40.0)[:count]
    angle = torch.rand(count, 1) * 720 - 360
    if count and rng.random() < 0.3:
        angle[rng.randrange(count)] = rng.choice(HOSTILE)
    return torch.cat([boxes, angle], 1)


def fuzz_box_iou_rotated(rng: random.Random) -> list[Tensor]:
    dtype = rng.choice(DTYPES)
    sets = [
        random_rotated_boxes(rng, rng.choice((0, 1, 3, 17, 70))).to(dtype).requires_grad_()
        for _ in range(2)
    ]
    overlap = ops.box_iou_rotated(*sets)
    torch.autograd.grad(overlap.nan_to_num(0, 0, 0).sum(), sets)
    return [overlap.detach()]


def random_solid_boxes(rng: random.Random, count: int) -> Tensor:
    """[count, 7] boxes whose heights and yaws may be anything too."""
    flat, upright = (random_boxes(rng, max(count, 1), 40.0)[:count] for _ in range(2))
    yaw = random_rotated_boxes(rng, count)[:, 4:] / 57
    return torch.cat([flat[:, :2], upright[:, :1], flat[:, 2:], upright[:, 2:3], yaw], 1)


def fuzz_box_iou_3d(rng: random.Random) -> list[Tensor]:
    dtype, fmt = rng.choice(DTYPES), rng.choice(("cxcyczdxdydzr", "xyzxyz"))
    sets = [random_solid_boxes(rng, rng.choice((0, 1, 3, 17, 70))).to(dtype) for _ in range(2)]
    if fmt == "xyzxyz":
        sets = [boxes[:, :6] for boxes in sets]
    sets = [boxes.requires_grad_() for boxes in sets]
    overlap = ops.box_iou_3d(*sets, fmt=fmt)
    torch.autograd.grad(overlap.nan_to_num(0, 0, 0).sum(), sets)
    return [overlap.detach()]


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


def fuzz_masks_to_boxes(rng: random.Random) -> list[Tensor]:
    shape = (rng.choice((0, 1, 3)), rng.choice((0, 1, 2, 9)), rng.choice((1, 7, 64, 65, 300)))
    masks = (torch.rand(shape) < rng.choice((0.0, 0.001, 0.1, 1.0))).float()
    masks = masks.to(rng.choice((torch.bool, torch.uint8, torch.int16, torch.int64, *DTYPES)))
    if rng.random() < 0.3:
        masks = masks[:, ::2, rng.choice((0, 1)) :]
    elif rng.random() < 0.3:
        masks = masks.mT
    return [ops.masks_to_boxes(masks)]


def fuzz_deform_conv2d(rng: random.Random) -> list[Tensor]:
    """All gradients, at offsets that may be anything."""
    groups, offset_groups = rng.choice((1, 1, 2, 4)), rng.choice((1, 1, 2, 3))
    channels = groups * offset_groups * rng.choice((1, 2, 5, 8, 17))
    problem = Problem(
        (rng.randint(0, 3), channels, rng.choice((1, 2, 7, 20)), rng.choice((1, 2, 9, 33))),
        groups * rng.choice((0, 1, 3, 8, 33)),
        kernel=(rng.randint(1, 3), rng.randint(1, 3)),
        stride=(rng.randint(1, 3), rng.randint(1, 3)),
        padding=(rng.randint(0, 3), rng.randint(0, 3)),
        dilation=(rng.randint(1, 2), rng.randint(1, 2)),
        groups=groups,
        offset_groups=offset_groups,
        mask=rng.random() < 0.6,
        bias=rng.random() < 0.6,
    )
    if min(problem.size) < 1:
        return []  # refused in Python before any kernel
    dtype = rng.choice(DTYPES)
    reach = rng.choice((0.0, 1.0, 10.0))
    tensors = problem.tensors(dtype, reach=reach)
    kind = rng.choice(("ordinary", "offsets", "all"))
    if kind != "ordinary":
        for t in leaves(tensors) if kind == "all" else leaves(tensors)[1:2]:
            for _ in range(rng.randrange(20) if t.numel() else 0):
                t.view(-1)[rng.randrange(t.numel())] = rng.choice(HOSTILE)
    for i in (0, 1, 4):
        t = tensors[i]
        tensors[i] = None if t is None else random_format(rng, t)
    # any part of the gradients, of which at least one is wanted
    wanted = [t for t in leaves(tensors) if rng.random() < 0.7] or [leaves(tensors)[0]]
    for t in wanted:
        t.requires_grad_()
    y = problem.call(ops.deform_conv2d, tensors)
    grads = torch.autograd.grad(y, wanted, torch.ones_like(y))
    assert all(g.shape == t.shape for g, t in zip(grads, wanted, strict=True))
    if kind == "all":  # sums may overflow in another order
        return []
    if dtype in (torch.float32, torch.float64):
        expected = problem.call(ops.deform_conv2d, tensors, backend="reference")
        assert_matches(y, expected, scale=10)
        for g, other in zip(
            grads, torch.autograd.grad(expected, wanted, torch.ones_like(y)), strict=True
        ):
            scale = max(1.0, other.abs().max().item()) if other.numel() else 1.0
            assert_matches(g, other, scale=10 * scale)
    return [y.detach()]


FUZZERS = (
    fuzz_box_iou,
    fuzz_box_iou_3d,
    fuzz_box_iou_loss,
    fuzz_box_iou_rotated,
    fuzz_masks_to_boxes,
    fuzz_roi_align,
    fuzz_roi_samples,
    fuzz_roi_pool,
    fuzz_ps_rois,
    fuzz_mask_iou,
    fuzz_mask_nms,
    fuzz_matrix_nms,
    fuzz_nms,
    fuzz_nms_match,
    fuzz_nms_rotated,
    fuzz_soft_nms,
    fuzz_weighted_boxes_fusion,
    fuzz_focal_loss,
    fuzz_conv_bn_relu,
    fuzz_batch_norm_relu,
    fuzz_conv_transpose2d,
    fuzz_deform_conv2d,
    fuzz_max_pool2d,
    fuzz_linear_act,
    fuzz_squeeze_excitation,
)


# of arguments that may be nonsense
REFUSALS = (
    "rois: ",
    "targets: ",
    "indices must",
    "padding must",
    "output_size must",
    "does not fit",
    "has none of",
)


def outcome(fuzz: Callable[[random.Random], list[Tensor]], seed: int) -> list[Tensor] | str:
    """What one input gives, or why it is refused."""
    torch.manual_seed(seed)
    try:
        return fuzz(random.Random(seed))
    except (RuntimeError, ValueError) as error:
        if not any(name in str(error) for name in REFUSALS):
            raise
        return str(error)


def assert_same(actual: list[Tensor] | str, expected: list[Tensor] | str) -> None:
    if isinstance(actual, str) or isinstance(expected, str):
        assert actual == expected
        return
    for one, other in zip(actual, expected, strict=True):
        if one.is_floating_point():  # levels differ in fused multiply-adds
            assert_matches(one, other, scale=8)
        else:
            assert torch.equal(one, other)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--seconds", type=float, default=20)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    assert _extension.missing is None, _extension.missing
    levels = _extension.cpu_levels()
    levels = levels[: levels.index(_extension.cpu_level_supported()) + 1]
    torch.set_num_threads(2)

    done = refused = 0
    start = time.monotonic()
    while done < 40 or time.monotonic() - start < options.seconds:
        seed = options.seed + done
        fuzz = random.Random(-seed).choice(FUZZERS)
        print(f"seed {seed} {fuzz.__name__}", flush=True)
        results = []
        for level in levels:
            _extension.set_cpu_level(level)
            results.append(outcome(fuzz, seed))
            assert_same(results[-1], results[0])
        refused += isinstance(results[0], str)
        done += 1
    print(f"fuzzed {done} inputs on {', '.join(levels)}; {refused} were refused")


if __name__ == "__main__":
    main()
