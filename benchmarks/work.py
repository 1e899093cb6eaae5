"""The least work of each op: what no implementation can do without, for the share of the limit."""

from __future__ import annotations

import math

import numpy as np
from torch import Tensor

from benchmarks.harness import Work

IOU_FLOPS = 12  # 4 min/max, 2 differences, 2 clamps, product, union (2), threshold times union


def nms(inputs: tuple[Tensor, ...], kept: int, dropped: int) -> Work:
    """Inputs read once, 8 bytes written per kept box, one IoU for each dropped box.

    A floor that no NMS comes near: sorting and the chain of decisions are not in it.
    """
    moved = sum(t.numel() * t.element_size() for t in inputs) + 8 * kept
    return Work(moved, IOU_FLOPS * dropped)


def _axis(low: float, size: float, bins: int, samples: int, extent: int) -> tuple[np.ndarray, int]:
    """Pixels that one axis of a box touches, and its number of distinct (bin, pixel) pairs."""
    at = low + (np.arange(bins * samples) + 0.5) * (size / (bins * samples))
    inside = (at >= -1) & (at <= extent)
    first = np.clip(np.floor(at), 0, extent - 1).astype(np.int64)
    pixels = np.stack([first, np.minimum(first + 1, extent - 1)])[:, inside]
    bin_of = (np.arange(bins * samples) // samples)[inside]
    return np.unique(pixels), np.unique(bin_of * extent + pixels).size


def roi_align(
    features: list[Tensor],
    rois: Tensor,
    level_of: Tensor,
    scales: list[float],
    bins: int,
    sampling_ratio: int,
    *,
    forward: bool = True,
    backward: bool = False,
) -> Work:
    """Touched pixels read once, the result written once, the cheapest order of the arithmetic.

    Samples merge to one weight per (bin, pixel) and axis, and the sum is separable: rows first,
    columns first or both at once, whichever needs the fewest multiply-adds (2 operations each) per
    channel. The backward reads the gradient, writes that of all features, and does the same sums.

    Args:
        features: [N, C, H_l, W_l] per level.
        rois: [K, 5] in image coordinates; not ``aligned``.
        level_of: [K] level of each box.
        scales: of each level.
        bins: per axis.
        sampling_ratio: adaptive if 0.
        forward, backward: which of them the case runs.
    """
    touched = [np.zeros((f.shape[0], *f.shape[2:]), dtype=bool) for f in features]
    fmas = 0
    for (image, *corners), level in zip(rois.tolist(), level_of.tolist(), strict=True):
        x1, y1, x2, y2 = (corner * scales[level] for corner in corners)
        height, width = max(y2 - y1, 1), max(x2 - x1, 1)
        H, W = features[level].shape[2:]
        rows, row_taps = _axis(y1, height, bins, sampling_ratio or math.ceil(height / bins), H)
        cols, col_taps = _axis(x1, width, bins, sampling_ratio or math.ceil(width / bins), W)
        touched[level][int(image)][rows[:, None], cols] = True
        fmas += min(
            row_taps * col_taps,
            row_taps * cols.size + bins * col_taps,
            col_taps * rows.size + bins * row_taps,
        )
    channels, element = features[0].shape[1], features[0].element_size()
    pooled = len(rois) * channels * bins * bins * element
    moved = rois.numel() * rois.element_size()
    if forward:
        moved += sum(int(t.sum()) for t in touched) * channels * element + pooled
    if backward:
        moved += pooled + sum(f.numel() for f in features) * element
    return Work(moved, 2 * fmas * channels * (forward + backward))


def convolution(input: Tensor, weight: Tensor, output: Tensor, *, residual: bool = False) -> Work:
    """Input, weight and residual read once, output written once; two operations per tap and output.

    Normalization, residual and activation are a few operations per output and not counted.
    """
    moved = sum(t.numel() * t.element_size() for t in (input, weight, output))
    if residual:
        moved += output.numel() * output.element_size()
    return Work(moved, 2 * output.numel() * weight[0].numel())
