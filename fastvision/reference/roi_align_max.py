"""RoIAlign with the largest sample of each bin instead of their mean."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .._memory_format import is_channels_last
from .roi_align import assign_levels, has_image, upright_boxes
from .roi_pool import LOWEST
from .roi_samples import SampleAxis, chunks, few_samples, sampled


@torch.no_grad()
def _largest(
    features: Tensor,  # [N, C, H, W]
    batch: Tensor,  # [K]
    y: SampleAxis,
    x: SampleAxis,
) -> tuple[Tensor, Tensor]:
    """The number of each bin's largest sample, -1 if that is outside the map or no sample counts,
    and the bin's value then; both [K, C, PH, PW]."""
    C = features.shape[1]
    y_at, in_y = y.positions()
    x_at, in_x = x.positions()
    if y_at.shape[2] * x_at.shape[2] == 0:
        shape = (len(batch), C, y.bins, x.bins)
        none = torch.full(shape, -1, dtype=torch.int64, device=batch.device)
        return none, features.new_zeros(shape)
    rows = torch.arange(y_at.shape[2], device=y_at.device)[:, None]
    columns = torch.arange(x_at.shape[2], device=x_at.device)
    found, floor = [], []
    for part in chunks(y, x, C):
        value, inside = sampled(
            features,
            batch[part, None, None, None, None],
            y_at[part][:, :, None, :, None],
            x_at[part][:, None, :, None, :],
        )  # [k, PH, PW, rows, columns, C]
        exists = in_y[part][:, :, None, :, None] & in_x[part][:, None, :, None, :]
        counts = exists[..., None] & (value > LOWEST)
        number = rows * x.grid[part, None, None].to(torch.int64) + columns
        number = torch.where(inside, number[:, None, None], -1)
        best = torch.where(counts, value, -torch.inf).flatten(3, 4).max(3).indices
        any_counts = counts.flatten(3, 4).any(3)
        best_number = number.flatten(3).gather(3, best.flatten(3))
        found.append(torch.where(any_counts, best_number, -1).permute(0, 3, 1, 2))
        lowest = exists.flatten(3).any(3)[..., None] & ~any_counts
        floor.append(torch.where(lowest, LOWEST, 0.0).permute(0, 3, 1, 2))
    return torch.cat(found), torch.cat(floor)


def _numbered(
    features: Tensor, batch: Tensor, y: SampleAxis, x: SampleAxis, argmax: Tensor
) -> Tensor:
    """The samples of given numbers, 0 at -1, [K, C, PH, PW]: linear in ``features``."""
    C, PH, PW = argmax.shape[1:]
    number = argmax.clamp(min=0).to(torch.int64)
    columns = x.grid[:, None, None, None].to(torch.int64).clamp(min=1)
    ph, pw, channel = (torch.arange(n, device=argmax.device) for n in (PH, PW, C))
    y_at = y.at(ph[:, None], number // columns, 4)
    x_at = x.at(pw, number % columns, 4)
    value, _ = sampled(features, batch[:, None, None, None], y_at, x_at, channel[:, None, None])
    return torch.where(argmax >= 0, value, 0)


def _of_map(
    input: Tensor,  # [N, C, H, W]
    rois: Tensor,  # [K, 5]
    spatial_scale: float,
    options: Sequence[Any],  # bins, sampling_ratio, aligned
    argmax: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """Samples and their numbers, both [K, C, PH, PW]: the largest, or those of ``argmax``."""
    *bins, sampling_ratio, aligned = options
    shape = (len(rois), input.shape[1], *bins)
    compute = torch.float64 if input.dtype == torch.float64 else torch.float32
    features, rois = input.to(compute), rois.to(compute)
    in_range = has_image(rois, input)
    if input.numel() == 0 or 0 in shape:
        none = torch.full(shape, -1, dtype=torch.int32, device=input.device)
        return input.new_zeros(shape) + 0 * input.sum(), none  # part of the autograd graph
    batch, corners, sizes, usable = upright_boxes(
        rois, in_range, spatial_scale, (bins[0], bins[1]), sampling_ratio, aligned
    )
    x, y = (
        SampleAxis.of(corners[:, i], sizes[:, i], bins[1 - i], sampling_ratio) for i in range(2)
    )
    usable = few_samples(y, x, usable)
    y, x = y.only(usable), x.only(usable)
    if argmax is not None:
        return _numbered(features, batch, y, x, argmax).to(input.dtype), argmax
    argmax, floor = _largest(features, batch, y, x)
    pooled = torch.where(argmax >= 0, _numbered(features, batch, y, x, argmax), floor)
    return pooled.to(input.dtype), argmax.to(torch.int32)


def _of_levels(
    features: Sequence[Tensor],
    rois: Tensor,
    spatial_scales: Sequence[float],
    options: Sequence[Any],
    level_rule: Sequence[Any],
    argmax: Tensor | None,
) -> tuple[Tensor, Tensor]:
    if len(features) == 1:
        pooled, found = _of_map(features[0], rois, spatial_scales[0], options, argmax)
    else:
        levels = assign_levels(rois, len(features), *level_rule)
        pooled, found = features[0].new_zeros(()), rois.new_full((), -1, dtype=torch.int32)
        for level, (feature, scale) in enumerate(zip(features, spatial_scales, strict=True)):
            index = torch.where(levels == level)[0]
            own = None if argmax is None else argmax[index]
            value, number = _of_map(feature, rois[index], scale, options, own)
            shape = (len(rois), *value.shape[1:])
            pooled = pooled + value.new_zeros(shape).index_copy(0, index, value)
            found = found.expand(shape).index_copy(0, index, number)
    if is_channels_last(features[0]):
        last = torch.channels_last
        return pooled.contiguous(memory_format=last), found.contiguous(memory_format=last)
    return pooled.contiguous(), found.contiguous()


def roi_align_max(
    features: Sequence[Tensor],  # [N, C, H_l, W_l]
    rois: Tensor,  # [K, 5]
    spatial_scales: Sequence[float],
    pooled_height: int,
    pooled_width: int,
    sampling_ratio: int,
    aligned: bool,
    canonical_scale: float,
    canonical_level: float,
    min_level: int,
) -> tuple[Tensor, Tensor]:
    """The largest samples and their numbers in the bins, both [K, C, PH, PW].

    See ``pool_mode`` of :func:`fastvision.ops.roi_align`. The numbers count by rows, in int32; one
    is -1 where the largest sample is outside the map, or none counts.
    """
    options = (pooled_height, pooled_width, sampling_ratio, aligned)
    level_rule = (canonical_scale, canonical_level, min_level)
    return _of_levels(features, rois, spatial_scales, options, level_rule, None)


def samples_at(
    features: Sequence[Tensor], rois: Tensor, argmax: Tensor, options: Sequence[Any]
) -> Tensor:
    """The samples of given numbers, 0 at -1, [K, C, PH, PW]: linear in ``features``.

    ``options`` are those of :func:`roi_align_max`, from ``spatial_scales`` on.
    """
    return _of_levels(features, rois, options[0], options[1:5], options[5:], argmax)[0]
