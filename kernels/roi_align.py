"""RoIAlign over a feature pyramid, forward and backward, each in one launch.

Forward: a program computes a few bins of one roi for a block of channels. Backward: a program owns
a tile of one gradient map, visits the rois that touch it in order, and writes the tile once. There
are no atomics, so results are deterministic.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from .._memory_format import is_channels_last, memory_format
from .common.geometry import (
    bilinear_taps,
    is_usable,
    load_box,
    pixel_weights,
    pyramid_level,
    roi_axis,
    sample_offset,
    touching,
)
from .common.scalars import as_double, divide, double_bits, select
from .configs.roi_align import BACKWARD_REGISTERS, backward_tile, forward_tile

# these change with every image, so do not specialize for multiples of 16
_UNSPECIALIZED = [
    "heights",
    "widths",
    "spatial_scales",
    "N",
    "K",
    "PH",
    "PW",
    "sampling_ratio",
    "canonical_scale",
    "canonical_level",
    "min_level",
]


@triton.jit
def _add_tap(
    acc,
    features_ptr,  # of one image
    offset,
    weight,
    channel_offset,
    channel_mask,
):
    # a tap with weight 0 must not contribute a NaN or an infinity
    mask = (weight != 0) & channel_mask
    value = tl.load(features_ptr + (offset + channel_offset), mask=mask, other=0.0)
    return tl.fma(value.to(acc.dtype), weight, acc)


@triton.jit(do_not_specialize=_UNSPECIALIZED)
def _roi_align_forward_kernel(
    features,  # of each level [N, C, H, W], or [N, H, W, C] if CHANNELS_LAST
    rois_ptr,  # [K, 5] (batch, x1, y1, x2, y2)
    output_ptr,  # [K, C, PH, PW], or [K, PH, PW, C]
    heights,  # of each level
    widths,
    spatial_scales,  # bits of doubles
    N,
    C,
    PH,
    PW,
    sampling_ratio,
    canonical_scale,
    canonical_level,
    min_level,
    ALIGNED: tl.constexpr,
    CHANNELS_LAST: tl.constexpr,
    INT64: tl.constexpr,
    BLOCK_BINS: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    channel_blocks = tl.cdiv(C, BLOCK_C)
    bin_blocks = tl.cdiv(PH * PW, BLOCK_BINS)
    pid = tl.program_id(0)
    k = (pid // (channel_blocks * bin_blocks)).to(tl.int64)
    first_bin = pid // channel_blocks % bin_blocks * BLOCK_BINS
    first_channel = pid % channel_blocks * BLOCK_C

    batch = tl.load(rois_ptr + k * 5)
    x1, y1, x2, y2 = load_box(rois_ptr + k * 5 + 1, None)
    level = pyramid_level(
        x1, y1, x2, y2, as_double(canonical_scale), as_double(canonical_level), min_level,
        len(features),
    )  # fmt: skip
    H = select(heights, level)
    W = select(widths, level)
    spatial_scale = as_double(select(spatial_scales, level))
    start_h, bin_h, grid_h = roi_axis(y1, y2, spatial_scale, PH, sampling_ratio, ALIGNED)
    start_w, bin_w, grid_w = roi_axis(x1, x2, spatial_scale, PW, sampling_ratio, ALIGNED)
    usable = is_usable(batch, x1, y1, x2, y2, N, len(features))

    if INT64:
        H = H.to(tl.int64)
        W = W.to(tl.int64)
    image = tl.where(usable, batch, 0.0).to(tl.int64)
    image_ptr = select(features, level) + image * (H.to(tl.int64) * W * C)
    output_ptr += k * PH * PW * C
    # the dimension that is contiguous in memory comes last
    bins = first_bin + tl.arange(0, BLOCK_BINS)
    channels = first_channel + tl.arange(0, BLOCK_C)
    if CHANNELS_LAST:
        bins = bins[:, None]  # [BLOCK_BINS, BLOCK_C]
        channels = channels[None, :]
        channel_offset = channels
        stride_h = W * C
        stride_w = C
        output_offset = bins * C + channels
        acc = tl.zeros([BLOCK_BINS, BLOCK_C], x1.dtype)
    else:
        bins = bins[None, :]  # [BLOCK_C, BLOCK_BINS]
        channels = channels[:, None]
        channel_offset = channels * (H * W)
        stride_h = W
        stride_w = 1
        output_offset = channels * (PH * PW) + bins
        acc = tl.zeros([BLOCK_C, BLOCK_BINS], x1.dtype)
    mask = (bins < PH * PW) & (channels < C)

    bin_start_h = start_h + (bins // PW).to(x1.dtype) * bin_h
    bin_start_w = start_w + (bins % PW).to(x1.dtype) * bin_w
    # only samples that may touch the map, since a degenerate box may have a million others
    first_h, last_h = touching(bin_start_h, divide(bin_h, grid_h), grid_h, 0, H)
    first_w, last_w = touching(bin_start_w, divide(bin_w, grid_w), grid_w, 0, W)
    samples_h = tl.max(tl.where(usable, last_h - first_h, 0))
    samples_w = tl.max(tl.where(usable, last_w - first_w, 0))
    for iy in range(samples_h):
        position = bin_start_h + sample_offset(first_h + iy, bin_h, grid_h)
        position = tl.where(first_h + iy < last_h, position, -2.0)  # outside the map
        y_low, y_high, wy_low, wy_high = bilinear_taps(position, H)
        low = y_low * stride_h
        high = y_high * stride_h
        for ix in range(samples_w):
            position = bin_start_w + sample_offset(first_w + ix, bin_w, grid_w)
            position = tl.where(first_w + ix < last_w, position, -2.0)
            x_low, x_high, wx_low, wx_high = bilinear_taps(position, W)
            left = x_low * stride_w
            right = x_high * stride_w
            acc = _add_tap(acc, image_ptr, low + left, wy_low * wx_low, channel_offset, mask)
            acc = _add_tap(acc, image_ptr, low + right, wy_low * wx_high, channel_offset, mask)
            acc = _add_tap(acc, image_ptr, high + left, wy_high * wx_low, channel_offset, mask)
            acc = _add_tap(acc, image_ptr, high + right, wy_high * wx_high, channel_offset, mask)
    scale = divide(tl.full([], 1.0, x1.dtype), tl.maximum(grid_h * grid_w, 1.0))
    tl.store(output_ptr + output_offset, (acc * scale).to(output_ptr.dtype.element_ty), mask=mask)


@triton.jit
def _near(start, bin_size, bins, low, high):
    """Whether a roi may touch pixels [low, high) along one axis."""
    end = start + bins * bin_size
    slack = 2 + 1e-6 * (tl.abs(start) + tl.abs(end))
    return (tl.maximum(start, end) >= low - slack) & (tl.minimum(start, end) <= high + slack)


@triton.jit
def _add_roi(
    acc,
    grad_ptr,
    rois_ptr,
    roi,
    channels,
    y,
    x,
    y0,
    x0,
    H,
    W,
    spatial_scale,
    C,
    PH,
    PW,
    sampling_ratio,
    ALIGNED: tl.constexpr,
    CHANNELS_LAST: tl.constexpr,
    TILE_H: tl.constexpr,
    TILE_W: tl.constexpr,
):
    """``acc``, the gradient of the tile at (y0, x0), plus one roi's contribution."""
    x1, y1, x2, y2 = load_box(rois_ptr + roi * 5 + 1, None)
    start_h, bin_h, grid_h = roi_axis(y1, y2, spatial_scale, PH, sampling_ratio, ALIGNED)
    start_w, bin_w, grid_w = roi_axis(x1, x2, spatial_scale, PW, sampling_ratio, ALIGNED)
    scale = divide(tl.full([], 1.0, acc.dtype), grid_h * grid_w)
    grad_ptr += roi * (PH * PW * C)
    if CHANNELS_LAST:
        stride_bin = C
        channel_offset = channels
    else:
        stride_bin = 1
        channel_offset = channels * (PH * PW)

    first_h, last_h = touching(start_h, bin_h, PH.to(acc.dtype), y0, y0 + TILE_H)
    first_w, last_w = touching(start_w, bin_w, PW.to(acc.dtype), x0, x0 + TILE_W)
    for ph in range(first_h, last_h):
        bin_start = start_h + ph * bin_h
        wy = scale * pixel_weights(y, y0, y0 + TILE_H, bin_start, bin_h, grid_h, H)
        for pw in range(first_w, last_w):
            bin_start = start_w + pw * bin_w
            wx = pixel_weights(x, x0, x0 + TILE_W, bin_start, bin_w, grid_w, W)
            weight = wy * wx
            bin_ptr = grad_ptr + (ph * PW + pw) * stride_bin
            grad = tl.load(bin_ptr + channel_offset, mask=channels < C, other=0.0)
            # pixels with weight 0 must not receive a NaN or an infinity
            grad = tl.where(weight != 0, grad.to(acc.dtype), 0.0)
            acc = tl.fma(grad, weight, acc)
    return acc


@triton.jit(do_not_specialize=_UNSPECIALIZED)
def _roi_align_backward_kernel(
    grad_ptr,  # [K, C, PH, PW], or [K, PH, PW, C] if CHANNELS_LAST
    rois_ptr,  # [K, 5] (batch, x1, y1, x2, y2)
    grads,  # of each level [N, C, H, W], or [N, H, W, C]; written once
    heights,  # of each level
    widths,
    spatial_scales,  # bits of doubles
    N,
    C,
    K,
    PH,
    PW,
    sampling_ratio,
    canonical_scale,
    canonical_level,
    min_level,
    ALIGNED: tl.constexpr,
    CHANNELS_LAST: tl.constexpr,
    INT64: tl.constexpr,
    TILE_H: tl.constexpr,
    TILE_W: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    channel_blocks = tl.cdiv(C, BLOCK_C)
    pid = tl.program_id(0)
    first_channel = pid % channel_blocks * BLOCK_C
    tile = pid // channel_blocks
    level = 0
    for i in tl.static_range(len(grads) - 1):
        tiles = N * tl.cdiv(heights[i], TILE_H) * tl.cdiv(widths[i], TILE_W)
        beyond = (level == i) & (tile >= tiles)
        level = tl.where(beyond, i + 1, level)
        tile = tl.where(beyond, tile - tiles, tile)
    H = select(heights, level)
    W = select(widths, level)
    spatial_scale = as_double(select(spatial_scales, level))
    tiles_w = tl.cdiv(W, TILE_W)
    tiles_h = tl.cdiv(H, TILE_H)
    y0 = tile // tiles_w % tiles_h * TILE_H
    x0 = tile % tiles_w * TILE_W
    image = tile // (tiles_w * tiles_h)

    pixels = tl.arange(0, TILE_H * TILE_W)
    channels = first_channel + tl.arange(0, BLOCK_C)
    compute_type = rois_ptr.dtype.element_ty
    if CHANNELS_LAST:
        pixels = pixels[:, None]
        channels = channels[None, :]
        acc = tl.zeros([TILE_H * TILE_W, BLOCK_C], compute_type)
    else:
        pixels = pixels[None, :]
        channels = channels[:, None]
        acc = tl.zeros([BLOCK_C, TILE_H * TILE_W], compute_type)
    y = y0 + pixels // TILE_W
    x = x0 + pixels % TILE_W
    y_float = y.to(compute_type)
    x_float = x.to(compute_type)
    low_h = y0.to(compute_type)
    low_w = x0.to(compute_type)

    for first in range(0, K, BLOCK_K):
        k = first + tl.arange(0, BLOCK_K)
        roi_ptr = rois_ptr + k.to(tl.int64) * 5
        batch = tl.load(roi_ptr, mask=k < K, other=-1.0)
        x1, y1, x2, y2 = load_box(roi_ptr + 1, k < K)
        roi_level = pyramid_level(
            x1, y1, x2, y2, as_double(canonical_scale), as_double(canonical_level), min_level,
            len(grads),
        )  # fmt: skip
        start_h, bin_h, grid_h = roi_axis(y1, y2, spatial_scale, PH, sampling_ratio, ALIGNED)
        start_w, bin_w, grid_w = roi_axis(x1, x2, spatial_scale, PW, sampling_ratio, ALIGNED)
        touches = is_usable(batch, x1, y1, x2, y2, N, len(grads)) & (roi_level == level)
        touches &= (batch.to(tl.int32) == image) & (grid_h > 0) & (grid_w > 0)
        touches &= _near(start_h, bin_h, PH, low_h, low_h + TILE_H)
        touches &= _near(start_w, bin_w, PW, low_w, low_w + TILE_W)
        pending = tl.where(touches, k, K)
        roi = tl.min(pending, 0)
        while roi < K:
            acc = _add_roi(
                acc, grad_ptr, rois_ptr, roi.to(tl.int64), channels, y_float, x_float, low_h, low_w,
                H, W, spatial_scale, C, PH, PW, sampling_ratio,
                ALIGNED, CHANNELS_LAST, TILE_H, TILE_W,
            )  # fmt: skip
            pending = tl.where(pending == roi, K, pending)
            roi = tl.min(pending, 0)

    if INT64:
        H = H.to(tl.int64)
        W = W.to(tl.int64)
    pixel = y * W + x
    offset = pixel * C + channels if CHANNELS_LAST else channels * (H * W) + pixel
    output_ptr = select(grads, level) + image.to(tl.int64) * (H.to(tl.int64) * W * C)
    mask = (y < H) & (x < W) & (channels < C)
    tl.store(output_ptr + offset, acc.to(output_ptr.dtype.element_ty), mask=mask)


def _exceeds_int32(C: int, heights: Sequence[int], widths: Sequence[int]) -> bool:
    """Whether offsets within one image exceed 32 bits."""
    return any(C * H * W >= 2**31 for H, W in zip(heights, widths, strict=True))


def launch_roi_align(
    features: list[Tensor],  # [N, C, H, W] each
    rois: Tensor,  # [K, 5]
    spatial_scales: list[float],
    pooled_height: int,
    pooled_width: int,
    sampling_ratio: int,
    aligned: bool,
    canonical_scale: float,
    canonical_level: float,
    min_level: int,
) -> Tensor:
    """[K, C, PH, PW] in the memory format of the first map.

    See :func:`fastvision.ops.multiscale_roi_align`.
    """
    first = features[0]
    N, C = first.shape[:2]
    K, bins = rois.shape[0], pooled_height * pooled_width
    channels_last = is_channels_last(first)
    format = memory_format(channels_last)
    output = torch.empty(
        (K, C, pooled_height, pooled_width),
        dtype=first.dtype,
        device=first.device,
        memory_format=format,
    )
    if output.numel() == 0:
        return output
    heights = tuple(feature.shape[2] for feature in features)
    widths = tuple(feature.shape[3] for feature in features)
    block_bins, block_c, num_warps = forward_tile(bins, C, channels_last)
    grid = (K * triton.cdiv(bins, block_bins) * triton.cdiv(C, block_c),)
    with torch.cuda.device_of(first):
        _roi_align_forward_kernel[grid](
            tuple(feature.contiguous(memory_format=format) for feature in features),
            rois.contiguous(),
            output,
            heights,
            widths,
            tuple(double_bits(scale) for scale in spatial_scales),
            N,
            C,
            pooled_height,
            pooled_width,
            sampling_ratio,
            double_bits(canonical_scale),
            double_bits(canonical_level),
            min_level,
            ALIGNED=aligned,
            CHANNELS_LAST=channels_last,
            INT64=_exceeds_int32(C, heights, widths),
            BLOCK_BINS=block_bins,
            BLOCK_C=block_c,
            num_warps=num_warps,
            enable_fp_fusion=False,
        )
    return output


def launch_roi_align_backward(
    grad: Tensor,  # [K, C, PH, PW]
    rois: Tensor,  # [K, 5]
    sizes: list[int],  # N, then H and W of each level
    spatial_scales: list[float],
    sampling_ratio: int,
    aligned: bool,
    canonical_scale: float,
    canonical_level: float,
    min_level: int,
    channels_last: bool,
) -> list[Tensor]:
    """Gradient of each map, [N, C, H, W], in ``grad``'s dtype."""
    N, heights, widths = sizes[0], tuple(sizes[1::2]), tuple(sizes[2::2])
    K, C, pooled_height, pooled_width = grad.shape
    format = memory_format(channels_last)
    grads = tuple(
        torch.empty((N, C, H, W), dtype=grad.dtype, device=grad.device, memory_format=format)
        for H, W in zip(heights, widths, strict=True)
    )
    if grad.numel() == 0:
        return [level.zero_() for level in grads]
    tile_h, tile_w, block_c, num_warps = backward_tile(C, channels_last)
    tiles = sum(
        N * triton.cdiv(H, tile_h) * triton.cdiv(W, tile_w)
        for H, W in zip(heights, widths, strict=True)
    )
    if tiles == 0:
        return list(grads)
    with torch.cuda.device_of(grad):
        _roi_align_backward_kernel[(tiles * triton.cdiv(C, block_c),)](
            grad.contiguous(memory_format=format),
            rois.contiguous(),
            grads,
            heights,
            widths,
            tuple(double_bits(scale) for scale in spatial_scales),
            N,
            C,
            K,
            pooled_height,
            pooled_width,
            sampling_ratio,
            double_bits(canonical_scale),
            double_bits(canonical_level),
            min_level,
            ALIGNED=aligned,
            CHANNELS_LAST=channels_last,
            INT64=_exceeds_int32(C, heights, widths),
            TILE_H=tile_h,
            TILE_W=tile_w,
            BLOCK_C=block_c,
            BLOCK_K=32 * num_warps,
            num_warps=num_warps,
            maxnreg=BACKWARD_REGISTERS,
            enable_fp_fusion=False,
        )
    return list(grads)
