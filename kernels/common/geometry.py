"""Boxes, rois and bilinear samples; compile without contraction (fused multiply-adds), so that
borders are exact."""

from __future__ import annotations

import triton
import triton.language as tl

from .scalars import divide, is_finite, square_root

# only a degenerate box needs more samples per bin and axis
MAX_GRID = tl.constexpr(1 << 20)


@triton.jit
def load_box(ptr, mask):
    """x1, y1, x2, y2 at ``ptr``; undefined where ``mask`` is false."""
    x1 = tl.load(ptr, mask=mask)
    y1 = tl.load(ptr + 1, mask=mask)
    x2 = tl.load(ptr + 2, mask=mask)
    y2 = tl.load(ptr + 3, mask=mask)
    return x1, y1, x2, y2


@triton.jit
def intersection_over_union(a, b):
    """Intersection over union [M, N] of boxes a (four tensors [M]) and b (four tensors [N]).

    -1 if boxes do not overlap, since a numerator of 0 takes the slow path of the division. NaN if a
    box is non-finite or both are empty.
    """
    ax1, ay1, ax2, ay2 = a
    bx1, by1, bx2, by2 = b
    area_a = (ax2 - ax1) * (ay2 - ay1)
    area_b = (bx2 - bx1) * (by2 - by1)
    width = tl.minimum(ax2[:, None], bx2[None, :]) - tl.maximum(ax1[:, None], bx1[None, :])
    height = tl.minimum(ay2[:, None], by2[None, :]) - tl.maximum(ay1[:, None], by1[None, :])
    inter = tl.maximum(width, 0.0) * tl.maximum(height, 0.0)
    union = area_a[:, None] + area_b[None, :] - inter
    iou = divide(tl.where(inter > 0, inter, -union), union)
    # an infinite union that is divided by itself
    return tl.where((inter <= 0) & (tl.abs(union) == float("inf")), -1.0, iou)


@triton.jit
def pyramid_level(
    x1, y1, x2, y2, canonical_scale, canonical_level, min_level, LEVELS: tl.constexpr
):  # fmt: skip
    """Index of the level for a roi of this size (Feature Pyramid Networks, equation 1)."""
    size = square_root((x2 - x1) * (y2 - y1))
    level = canonical_level.to(size.dtype) + tl.log2(divide(size, canonical_scale.to(size.dtype)))
    level = tl.floor(level + 1e-6) - min_level
    level = tl.where(level == level, level, 0.0)  # NaN for negative areas, which are unusable
    return tl.minimum(tl.maximum(level, 0.0), LEVELS - 1.0).to(tl.int32)


@triton.jit
def is_usable(batch, x1, y1, x2, y2, N, LEVELS: tl.constexpr):
    """Whether the roi is finite, its image exists and, in a pyramid, its area is not negative."""
    usable = is_finite(x1) & is_finite(y1) & is_finite(x2) & is_finite(y2)
    if LEVELS > 1:
        usable = usable & ((x2 - x1) * (y2 - y1) >= 0)
    return usable & (batch >= 0) & (batch < N) & (N > 0)


@triton.jit
def roi_axis(low, high, spatial_scale, bins, sampling_ratio, ALIGNED: tl.constexpr):
    """Start, bin size and samples per bin of a roi along one axis, in the roi's dtype."""
    scale = spatial_scale.to(low.dtype)
    start = low * scale
    end = high * scale
    if ALIGNED:
        start -= 0.5
        end -= 0.5
    size = end - start
    if not ALIGNED:
        size = tl.maximum(size, 1.0)
    bin_size = divide(size, bins.to(low.dtype) + tl.zeros_like(size))
    grid = tl.where(sampling_ratio > 0, sampling_ratio.to(low.dtype), tl.ceil(bin_size))
    grid = tl.where(grid <= MAX_GRID, tl.maximum(grid, 0.0), 0.0)  # also 0 if NaN
    return start, bin_size, grid


@triton.jit
def sample_offset(sample, bin_size, grid):
    """Distance from the start of a bin to one of its samples."""
    return divide((sample + 0.5) * bin_size, grid)


@triton.jit
def in_map(position, extent):
    """Whether a sample counts: up to one pixel outside the map."""
    return (position >= -1) & (position <= extent) & (extent > 0)


@triton.jit
def bilinear_taps(position, extent):
    """The two pixels around each position and their weights."""
    valid = in_map(position, extent)
    position = tl.where(valid, tl.maximum(position, 0.0), 0.0)
    low = tl.minimum(position.to(tl.int32), extent - 1)
    high = tl.minimum(low + 1, extent - 1)
    fraction = tl.where(low == high, 0.0, position - low)
    return low, high, tl.where(valid, 1 - fraction, 0.0), tl.where(valid, fraction, 0.0)


@triton.jit
def touching(start, step, count, low, high):
    """Range of steps, out of ``count``, whose samples may touch pixels [low, high)."""
    # a sample reaches one pixel far; the rest allows for rounding
    slack = 2 + 1e-6 * (tl.abs(start) + tl.abs(count * step))
    first = tl.floor(divide(low - slack - start, step))
    last = tl.floor(divide(high + slack - start, step)) + 1
    forward = step > 0
    first = tl.where(forward, tl.minimum(tl.maximum(first, 0.0), count), 0.0)
    last = tl.where(forward, tl.minimum(tl.maximum(last, 0.0), count), count)
    return first.to(tl.int32), last.to(tl.int32)


@triton.jit
def pixel_weights(
    pixel,  # consecutive pixels in [low, high), of any shape
    low, high, bin_start, bin_size, grid, extent
):  # fmt: skip
    """Summed bilinear weights of one bin's samples at each pixel along an axis."""
    first, last = touching(bin_start, divide(bin_size, grid), grid, low, high)
    weights = tl.zeros_like(pixel)
    for sample in range(first, last):
        position = bin_start + sample_offset(sample, bin_size, grid)
        valid = in_map(position, extent)
        position = tl.minimum(tl.maximum(position, 0.0), extent - 1.0)
        position = tl.where(valid, position, -2.0)  # near no pixel
        weights += tl.maximum(1 - tl.abs(pixel - position), 0.0)
    return weights
