"""Fuzzers of the RoI ops."""

from __future__ import annotations

import random

import torch
from inputs import DTYPES, HOSTILE, random_boxes, random_format
from torch import Tensor

from fastvision import ops


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


FUZZERS = (
    fuzz_ps_rois,
    fuzz_roi_align,
    fuzz_roi_pool,
    fuzz_roi_samples,
)
