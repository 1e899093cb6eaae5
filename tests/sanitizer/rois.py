"""Fuzzers of the RoI ops."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor

from fastvision import ops

from .inputs import (
    CHANNELS,
    DTYPES,
    HOSTILE,
    MORE_CHANNELS,
    Call,
    Results,
    Source,
    gradients,
    random_boxes,
    random_format,
    random_layout,
    random_map,
    spoil,
)

_SIDES, _LONG_SIDES = (0, 1, 2, 3, 5, 7, 9), (16, 33, 40)
_SCALES = (1, 1 / 8, 1 / 8, -0.5, 1e30)


def _rois(rng: Source, images: int, extent: float) -> Tensor:
    count = rng.size((0, 1, 2, 3, 5), (9, 17, 30, 70))
    boxes = random_boxes(rng, count, extent)
    image = torch.randint(0, max(images, 1), (count, 1)).float()
    if rng.chance(0.15):
        spoil(rng, image, 1, (*HOSTILE, float(images), -0.5, 1e9))
    return random_layout(rng, torch.cat([image, boxes], 1))


def _maps(
    rng: Source, channels: tuple[int, ...], more: tuple[int, ...], levels: int = 1
) -> list[Tensor]:
    images = rng.choice((0, 1, 1, 2, 3))
    depth = rng.size(channels, more)
    height, width = (rng.size(_SIDES, _LONG_SIDES) for _ in range(2))
    dtype = rng.choice(DTYPES)
    return [
        random_map(
            rng, (images, depth, height >> i, max(width >> i, min(width, 1))), dtype, 0.15
        ).requires_grad_(rng.chance(0.8))
        for i in range(levels)
    ]


def _pooling(rng: Source, function: Any, maps: list[Tensor], shape: tuple[int, ...]) -> Call:
    """The call of ``function`` with its result [K, C, PH, PW], and its derivatives."""
    wanted = any(x.requires_grad for x in maps)
    grad = random_format(rng, torch.randn(shape).to(maps[0].dtype)) if wanted else torch.empty(0)

    def call() -> Results:
        pooled = function()
        assert pooled.shape == shape and pooled.dtype == maps[0].dtype
        return Results([pooled.detach(), *gradients(pooled, maps, grad)])

    return call


def _bins(rng: Source) -> tuple[int, int]:
    return (
        rng.size((0, 1, 2, 3, 7), (14, 40)),
        rng.size((1, 2, 3, 5, 7), (15, 16, 17, 33)),
    )


def roi_align(rng: Source) -> Call:
    maps = _maps(rng, CHANNELS, MORE_CHANNELS)
    rois, size = _rois(rng, len(maps[0]), 8.0 * max(maps[0].shape[2:])), _bins(rng)
    options = (rng.choice(_SCALES), rng.choice((-1, 0, 1, 2, 5)), rng.chance(0.5))
    mode: Any = "avg" if rng.chance(0.7) else "max"
    return _pooling(
        rng,
        lambda: ops.roi_align(maps[0], rois, size, *options, pool_mode=mode),
        maps,
        (len(rois), maps[0].shape[1], *size),
    )


def multiscale_roi_align(rng: Source) -> Call:
    levels = rng.choice((1, 2, 3, 4))
    maps = _maps(rng, CHANNELS, MORE_CHANNELS, levels)
    rois, size = _rois(rng, len(maps[0]), 8.0 * max(maps[0].shape[2:])), _bins(rng)
    scales = [2.0**-i / rng.choice((1, 8)) for i in range(levels)]
    options = (rng.choice((-1, 0, 1, 2, 5)), rng.chance(0.5))
    mode: Any = "avg" if rng.chance(0.7) else "max"
    return _pooling(
        rng,
        lambda: ops.multiscale_roi_align(
            maps, rois, size, scales, *options, canonical_scale=32, pool_mode=mode
        ),
        maps,
        (len(rois), maps[0].shape[1], *size),
    )


def roi_align_rotated(rng: Source) -> Call:
    maps = _maps(rng, CHANNELS, MORE_CHANNELS)
    rois, size = _rois(rng, len(maps[0]), 8.0 * max(maps[0].shape[2:])), _bins(rng)
    angles = torch.randn(len(rois), 1) * rng.choice((0, 1, 90, 1e4, 1e30))
    if rng.chance(0.1):
        spoil(rng, angles)
    rois = torch.cat([rois, angles], 1)
    options = (rng.choice(_SCALES), rng.choice((-1, 0, 1, 2, 5)), rng.chance(0.5))
    clockwise = rng.chance(0.5)
    return _pooling(
        rng,
        lambda: ops.roi_align_rotated(maps[0], rois, size, *options, clockwise=clockwise),
        maps,
        (len(rois), maps[0].shape[1], *size),
    )


def roi_pool(rng: Source) -> Call:
    maps = _maps(rng, CHANNELS, MORE_CHANNELS)
    rois, size = _rois(rng, len(maps[0]), 8.0 * max(maps[0].shape[2:])), _bins(rng)
    scale = rng.choice(_SCALES)
    return _pooling(
        rng,
        lambda: ops.roi_pool(maps[0], rois, size, scale),
        maps,
        (len(rois), maps[0].shape[1], *size),
    )


def _sensitive(name: str, rng: Source) -> Call:
    size = rng.size(((1, 1), (2, 3), (3, 2), (1, 5)), ((7, 7), (1, 20), (40, 1)))
    bins = size[0] * size[1]
    channels, more = ([bins * c for c in sizes] for sizes in ((0, 1, 2, 3, 5, 8), (9, 17, 33)))
    maps = _maps(rng, tuple(channels), tuple(more))
    rois = _rois(rng, len(maps[0]), 8.0 * max(maps[0].shape[2:]))
    options: tuple[Any, ...] = (rng.choice(_SCALES),)
    if name == "ps_roi_align":
        options = (*options, rng.choice((-1, 0, 1, 2, 5)))
    function = getattr(ops, name)
    return _pooling(
        rng,
        lambda: function(maps[0], rois, size, *options),
        maps,
        (len(rois), maps[0].shape[1] // bins, *size),
    )


FUZZERS = {
    "multiscale_roi_align": multiscale_roi_align,
    "ps_roi_align": partial(_sensitive, "ps_roi_align"),
    "ps_roi_pool": partial(_sensitive, "ps_roi_pool"),
    "roi_align": roi_align,
    "roi_align_rotated": roi_align_rotated,
    "roi_pool": roi_pool,
}
