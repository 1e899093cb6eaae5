"""PSRoIPool as means of all channels, of which each bin keeps its own (R-FCN, equation 1)."""

from __future__ import annotations

import torch
from torch import Tensor

from .._memory_format import format_of
from .ps_roi_align import of_own_bins
from .roi_pool import axis_cells, rounded_corners
from .roi_samples import in_chunks


def _means(
    features: Tensor,  # [N, C, H, W]
    rois: Tensor,  # [K, 5], of which all are used
    spatial_scale: float,
    pooled_height: int,
    pooled_width: int,
) -> Tensor:
    """Means of every channel in each bin, 0 of no pixel, [K, C, PH, PW]."""
    C, H, W = features.shape[1:]
    corners = rounded_corners(rois, spatial_scale)
    # torchvision leaves out the last row and column of the map
    x, in_x = axis_cells(corners[:, 0], corners[:, 2], pooled_width, W - 1, inclusive=False)
    y, in_y = axis_cells(corners[:, 1], corners[:, 3], pooled_height, H - 1, inclusive=False)
    image = rois[:, 0].to(torch.int64)
    means = []
    per_roi = y[0].numel() * x[0].numel() * C
    for part in in_chunks(len(rois), per_roi, rois.device):
        rows, columns = y[part][:, :, None, :, None], x[part][:, None, :, None, :]
        inside = in_y[part][:, :, None, :, None] & in_x[part][:, None, :, None, :]
        # [k, PH, PW, rows, columns, C]
        pixels = features.permute(0, 2, 3, 1)[image[part, None, None, None, None], rows, columns]
        total = torch.where(inside[..., None], pixels, 0).sum((3, 4))
        count = inside.sum((3, 4))[..., None].clamp(min=1)
        means.append((total / count).permute(0, 3, 1, 2))
    return torch.cat(means)


def ps_roi_pool(
    input: Tensor,  # [N, C * PH * PW, H, W]
    rois: Tensor,  # [K, 5] (batch, x1, y1, x2, y2)
    spatial_scale: float,
    pooled_height: int,
    pooled_width: int,
) -> Tensor:
    """Means of bins, [K, C, PH, PW]. See :func:`fastvision.ops.ps_roi_pool`."""
    N, C = input.shape[:2]
    compute = torch.float64 if input.dtype == torch.float64 else torch.float32
    rois = rois.to(compute)
    in_range = (rois[:, 0] >= 0) & (rois[:, 0] < N) & (N > 0)
    if input.device.type == "cpu" and not bool(in_range.all()):
        raise RuntimeError(f"rois: batch index must be in [0, {N})")
    shape = (len(rois), C // (pooled_height * pooled_width), pooled_height, pooled_width)
    output = torch.zeros(shape, dtype=compute, device=input.device)
    usable = in_range & rois.isfinite().all(1) & (rois[:, 1:] * spatial_scale).isfinite().all(1)
    if input.numel() and bool(usable.any()):
        index = torch.where(usable)[0]
        means = _means(input.to(compute), rois[index], spatial_scale, pooled_height, pooled_width)
        output = output.index_copy(0, index, of_own_bins(means))
    else:
        output = output + 0 * input.sum().to(compute)  # part of the autograd graph
    return output.to(input.dtype).contiguous(memory_format=format_of(input))
