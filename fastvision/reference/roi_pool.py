"""RoIPool as a gather of every pixel of every bin (Fast R-CNN, section 2.1)."""

from __future__ import annotations

import torch
from torch import Tensor

from .._memory_format import is_channels_last
from .roi_samples import in_chunks

LOWEST = torch.finfo(torch.float32).min  # only pixels above it count, of whatever dtype


def rounded_corners(
    rois: Tensor,  # [K, 5]
    spatial_scale: float,
) -> Tensor:
    """[K, 4] whole pixels x1, y1, x2, y2, rounded half away from zero as C's round does."""
    scaled = rois[:, 1:] * spatial_scale
    return torch.where(
        (scaled - scaled.trunc()).abs() == 0.5, scaled.trunc() + scaled.sign(), scaled.round()
    ).clamp(-(2.0**31), 2.0**31)


def axis_cells(
    first: Tensor,  # [K] first pixel, whole
    last: Tensor,  # [K]
    bins: int,
    extent: int,
    inclusive: bool = True,
) -> tuple[Tensor, Tensor]:
    """Pixel indices along one axis and whether they are in the bin, both [K, bins, pixels].

    ``inclusive``: whether a roi contains its last pixel.
    """
    size = (last.to(torch.int64) - first.to(torch.int64) + int(inclusive)).clamp(min=1)
    bin_size = (size.to(first.dtype) / bins)[:, None]
    bin = torch.arange(bins, device=first.device).to(first.dtype)
    start = first.to(torch.int64)[:, None]
    begin = (torch.floor(bin * bin_size).to(torch.int64) + start).clamp(0, extent)
    end = (torch.ceil((bin + 1) * bin_size).to(torch.int64) + start).clamp(0, extent)
    most = max(int((end - begin).max()), 1)
    index = begin[:, :, None] + torch.arange(most, device=first.device)
    return index.clamp(max=extent - 1), index < end[:, :, None]


@torch.no_grad()
def _positions(
    input: Tensor,  # [N, C, H, W]
    rois: Tensor,  # [K, 5], of which all are used
    spatial_scale: float,
    pooled_height: int,
    pooled_width: int,
) -> tuple[Tensor, Tensor]:
    """Where the maxima are, or -1, [K, C, PH, PW], and which bins have no pixels, [K, PH, PW]."""
    C, H, W = input.shape[1:]
    corners = rounded_corners(rois, spatial_scale)
    x, in_x = axis_cells(corners[:, 0], corners[:, 2], pooled_width, W)
    y, in_y = axis_cells(corners[:, 1], corners[:, 3], pooled_height, H)
    image = rois[:, 0].to(torch.int64)
    argmax = []
    per_roi = y[0].numel() * x[0].numel() * C
    for part in in_chunks(len(rois), per_roi, input.device):
        rows, columns = y[part][:, :, None, :, None], x[part][:, None, :, None, :]
        inside = in_y[part][:, :, None, :, None] & in_x[part][:, None, :, None, :]
        # [k, PH, PW, pixels of a bin, C], pixels by rows
        pixels = input.permute(0, 2, 3, 1)[image[part, None, None, None, None], rows, columns]
        counts = inside[..., None] & (pixels > LOWEST)
        best = torch.where(counts, pixels, -torch.inf).flatten(3, 4).max(3).indices
        position = (rows * W + columns).expand_as(inside).flatten(3)
        chosen = position.gather(3, best.flatten(3))
        any_counts = counts.flatten(3, 4).any(3)
        argmax.append(torch.where(any_counts, chosen, -1).permute(0, 3, 1, 2))
    empty = ~(in_y.any(2)[:, :, None] & in_x.any(2)[:, None, :])
    return torch.cat(argmax), empty


def pixels_at(
    input: Tensor,  # [N, C, H, W]
    rois: Tensor,  # [K, 5]
    argmax: Tensor,  # [K, C, PH, PW] of y * W + x, or -1
) -> Tensor:
    """The pixels at given positions, 0 at -1, [K, C, PH, PW]: linear in ``input``."""
    N, C, H, W = input.shape
    if argmax.numel() == 0 or N * H * W == 0:
        return input.new_zeros(argmax.shape) + 0 * input.sum()  # part of the autograd graph
    image = rois[:, 0].nan_to_num(0).clamp(0, N - 1).to(torch.int64)
    channel = torch.arange(C, device=input.device)
    index = argmax.clamp(min=0).to(torch.int64)
    pixels = input.flatten(2)[image[:, None, None, None], channel[:, None, None], index]
    return torch.where(argmax >= 0, pixels, 0)


def roi_pool(
    input: Tensor,  # [N, C, H, W]
    rois: Tensor,  # [K, 5] (batch, x1, y1, x2, y2)
    spatial_scale: float,
    pooled_height: int,
    pooled_width: int,
) -> tuple[Tensor, Tensor]:
    """Maxima and their positions, both [K, C, PH, PW]. See :func:`fastvision.ops.roi_pool`.

    The positions are y * W + x in int32, and -1 where no pixel counts.
    """
    N, C, H, W = input.shape
    shape = (rois.shape[0], C, pooled_height, pooled_width)
    rois = rois.to(torch.float64 if input.dtype == torch.float64 else torch.float32)
    in_range = (rois[:, 0] >= 0) & (rois[:, 0] < N) & (N > 0)
    if input.device.type == "cpu" and not bool(in_range.all()):
        raise RuntimeError(f"rois: batch index must be in [0, {N})")
    argmax = torch.full(shape, -1, dtype=torch.int64, device=input.device)
    floor = torch.zeros(shape, dtype=input.dtype, device=input.device)
    usable = in_range & rois.isfinite().all(1) & (rois[:, 1:] * spatial_scale).isfinite().all(1)
    if argmax.numel() and input.numel() and bool(usable.any()):
        found, empty = _positions(input, rois[usable], spatial_scale, pooled_height, pooled_width)
        argmax[usable] = found
        lowest = torch.where(empty, 0.0, LOWEST).to(input.dtype)
        floor[usable] = lowest[:, None].expand_as(found)
    pooled = torch.where(argmax >= 0, pixels_at(input, rois, argmax), floor)
    argmax = argmax.to(torch.int32)
    if is_channels_last(input):
        last = torch.channels_last
        return pooled.contiguous(memory_format=last), argmax.contiguous(memory_format=last)
    return pooled.contiguous(), argmax
