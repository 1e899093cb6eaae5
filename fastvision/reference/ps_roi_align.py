"""PSRoIAlign as RoIAlign of all channels, of which each bin keeps its own (Light-Head R-CNN)."""

from __future__ import annotations

from torch import Tensor

from .._memory_format import format_of
from .roi_align import roi_align


def of_own_bins(
    pooled: Tensor,  # [K, C * PH * PW, PH, PW]
) -> Tensor:
    """Channel (c * PH + i) * PW + j of bin (i, j) as its channel c, [K, C, PH, PW]."""
    PH, PW = pooled.shape[2:]
    by_bin = pooled.unflatten(1, (pooled.shape[1] // (PH * PW), PH, PW))
    return by_bin.diagonal(dim1=2, dim2=4).diagonal(dim1=2, dim2=3)


def ps_roi_align(
    input: Tensor,  # [N, C * PH * PW, H, W]
    rois: Tensor,  # [K, 5] (batch, x1, y1, x2, y2)
    spatial_scale: float,
    pooled_height: int,
    pooled_width: int,
    sampling_ratio: int,
) -> Tensor:
    """Averages of bilinear samples, [K, C, PH, PW]. See :func:`fastvision.ops.ps_roi_align`."""
    pooled = roi_align(
        input, rois, spatial_scale, pooled_height, pooled_width, sampling_ratio, aligned=True
    )
    return of_own_bins(pooled).contiguous(memory_format=format_of(input))
