"""RoIAlign as a gather of every tap of every sample (Mask R-CNN, section 3)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .._memory_format import is_channels_last
from .roi_samples import MAX_GRID, SampleAxis, in_chunks, pixel_below


def _axis_taps(
    start: Tensor,  # [K]
    size: Tensor,  # [K]
    bins: int,
    extent: int,
    sampling_ratio: int,
) -> tuple[Tensor, Tensor]:
    """Pixel indices and weights of all samples along one axis, both [K, bins, taps]."""
    axis = SampleAxis.of(start, size, bins, sampling_ratio)
    position, exists = axis.positions()
    low, fraction, valid = pixel_below(position, extent)
    valid = valid & exists
    indices = torch.cat([low, (low + 1).clamp(max=extent - 1)], -1)
    weights = torch.cat([1 - fraction, fraction], -1) * torch.cat([valid, valid], -1)
    return indices, weights / axis.grid.clamp(min=1)[:, None, None]


def has_image(rois: Tensor, input: Tensor) -> Tensor:
    """Whether the batch index of each roi is one, [K]; on the CPU all have to be."""
    N = input.shape[0]
    in_range = (rois[:, 0] >= 0) & (rois[:, 0] < N) & (N > 0)
    if input.device.type == "cpu" and not bool(in_range.all()):
        raise RuntimeError(f"rois: batch index must be in [0, {N})")
    return in_range


def upright_boxes(
    rois: Tensor,  # [K, 5]
    in_range: Tensor,  # [K]
    spatial_scale: float,
    bins: tuple[int, int],
    sampling_ratio: int,
    aligned: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Images [K], corners and sizes (x, y) [K, 2] in pixels, and which rois give no zeros [K]."""
    usable = rois.isfinite().all(1) & in_range
    batch = torch.where(usable, rois[:, 0], 0).to(torch.int64)
    corners = rois[:, 1:] * spatial_scale - (0.5 if aligned else 0.0)
    sizes = corners[:, 2:] - corners[:, :2]
    usable = usable & corners.isfinite().all(1)
    if sampling_ratio > 0:
        usable = usable & sizes.isfinite().all(1)
    elif rois.device.type != "cpu":  # on the CPU, too many samples raise an error later
        most = MAX_GRID * torch.tensor(bins[::-1], device=sizes.device)
        usable = usable & (sizes <= most).all(1)
    corners = torch.where(usable[:, None], corners, 0)
    sizes = torch.where(usable[:, None], sizes, 0)
    return batch, corners[:, :2], sizes if aligned else sizes.clamp(min=1), usable


def roi_align(
    input: Tensor,  # [N, C, H, W]
    rois: Tensor,  # [K, 5] (batch, x1, y1, x2, y2)
    spatial_scale: float,
    pooled_height: int,
    pooled_width: int,
    sampling_ratio: int,
    aligned: bool,
) -> Tensor:
    """Averages of bilinear samples, [K, C, PH, PW]. See :func:`fastvision.ops.roi_align`."""
    C, H, W = input.shape[1:]
    K = rois.shape[0]
    compute = torch.float64 if input.dtype == torch.float64 else torch.float32
    features = input.to(compute)
    rois = rois.to(compute)
    in_range = has_image(rois, input)
    if K == 0 or input.numel() == 0 or pooled_height == 0 or pooled_width == 0:
        zeros = features.new_zeros((K, C, pooled_height, pooled_width)).to(input.dtype)
        return zeros + 0 * input.sum()  # still part of the autograd graph

    bins = (pooled_height, pooled_width)
    batch, corners, sizes, usable = upright_boxes(
        rois, in_range, spatial_scale, bins, sampling_ratio, aligned
    )
    x_index, x_weight = _axis_taps(corners[:, 0], sizes[:, 0], pooled_width, W, sampling_ratio)
    y_index, y_weight = _axis_taps(corners[:, 1], sizes[:, 1], pooled_height, H, sampling_ratio)
    y_weight = y_weight * usable[:, None, None]

    pooled = []
    per_roi = y_index[0].numel() * x_index[0].numel() * C
    for part in in_chunks(K, per_roi, input.device):
        y, x = y_index[part], x_index[part]
        weight = y_weight[part][:, :, :, None, None] * x_weight[part][:, None, None]
        taps = features.permute(0, 2, 3, 1)[
            batch[part, None, None, None, None], y[:, :, :, None, None], x[:, None, None]
        ]  # [k, PH, taps, PW, taps, C]
        # a tap with weight 0 must not contribute a NaN or an infinity
        taps = torch.where(weight[..., None] == 0, 0, taps * weight[..., None])
        pooled.append(taps.sum((2, 4)).permute(0, 3, 1, 2))
    output = torch.cat(pooled).to(input.dtype)
    if is_channels_last(input):
        return output.contiguous(memory_format=torch.channels_last)
    return output.contiguous()


def assign_levels(
    rois: Tensor,  # [K, 5]
    num_levels: int,
    canonical_scale: float,
    canonical_level: float,
    min_level: int,
) -> Tensor:
    """Index of each roi's pyramid level (Feature Pyramid Networks, equation 1).

    The index is -1 if the area is negative or NaN: such a roi has no level and pools zeros.
    """
    size = torch.sqrt((rois[:, 3] - rois[:, 1]) * (rois[:, 4] - rois[:, 2]))
    level = torch.floor(canonical_level + torch.log2(size / canonical_scale) + 1e-6)
    index = (level - min_level).clamp(0, num_levels - 1)
    return index.nan_to_num(nan=-1.0).to(torch.int64)


def multiscale_roi_align(
    features: Sequence[Tensor],
    rois: Tensor,  # [K, 5]
    spatial_scales: Sequence[float],
    pooled_height: int,
    pooled_width: int,
    sampling_ratio: int,
    aligned: bool,
    canonical_scale: float,
    canonical_level: float,
    min_level: int,
) -> Tensor:
    """:func:`roi_align`, with each roi pooled from the pyramid level that fits its size."""

    def pool(feature: Tensor, part: Tensor, scale: float) -> Tensor:
        return roi_align(feature, part, scale, pooled_height, pooled_width, sampling_ratio, aligned)

    if len(features) == 1:
        return pool(features[0], rois, spatial_scales[0])
    levels = assign_levels(rois, len(features), canonical_scale, canonical_level, min_level)
    output = features[0].new_zeros(())
    for level, (feature, scale) in enumerate(zip(features, spatial_scales, strict=True)):
        index = torch.where(levels == level)[0]
        pooled = pool(feature, rois[index], scale)
        zeros = pooled.new_zeros((rois.shape[0], *pooled.shape[1:]))
        output = output + zeros.index_copy(0, index, pooled)
    if is_channels_last(features[0]):
        return output.contiguous(memory_format=torch.channels_last)
    return output
