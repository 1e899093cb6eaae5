"""RoIAlign of rotated boxes (Arbitrary-Oriented Scene Text Detection via Rotation Proposals)."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .._memory_format import format_of
from .roi_align import has_image
from .roi_samples import SampleAxis, chunks, few_samples, sampled


def roi_align_rotated(
    input: Tensor,  # [N, C, H, W]
    rois: Tensor,  # [K, 6] (batch, centre x and y, width, height, degrees)
    spatial_scale: float,
    pooled_height: int,
    pooled_width: int,
    sampling_ratio: int,
    aligned: bool,
    clockwise: bool,
) -> Tensor:
    """Averages of samples, [K, C, PH, PW]. See :func:`fastvision.ops.roi_align_rotated`."""
    shape = (len(rois), input.shape[1], pooled_height, pooled_width)
    compute = torch.float64 if input.dtype == torch.float64 else torch.float32
    features, rois = input.to(compute), rois.to(compute)
    in_range = has_image(rois, input)
    if input.numel() == 0 or 0 in shape:
        zeros = input.new_zeros(shape) + 0 * input.sum()  # part of the autograd graph
        return zeros.contiguous(memory_format=format_of(input))
    usable = rois.isfinite().all(1) & in_range
    batch = torch.where(usable, rois[:, 0], 0).to(torch.int64)
    centres = rois[:, 1:3] * spatial_scale - (0.5 if aligned else 0.0)
    sizes = rois[:, 3:5] * spatial_scale
    sizes = sizes if aligned else sizes.clamp(min=1)
    usable = usable & centres.isfinite().all(1)
    if sampling_ratio > 0:
        usable = usable & sizes.isfinite().all(1)
    centres, sizes = torch.where(usable[:, None], torch.cat([centres, sizes], 1), 0).split(2, 1)
    bins = (pooled_width, pooled_height)
    x, y = (SampleAxis.of(-sizes[:, i] / 2, sizes[:, i], bins[i], sampling_ratio) for i in range(2))
    usable = few_samples(y, x, usable)
    y, x = y.only(usable), x.only(usable)
    # in double, so that multiples of 90 degrees give exact pixels
    angle = torch.fmod(rois[:, 5].nan_to_num(0).to(torch.float64), 360) * (math.pi / 180)
    cosine, sine = angle.cos().to(compute), angle.sin().to(compute)
    cosine, sine, x_centre, y_centre = (
        t[:, None, None, None, None]
        for t in (cosine, -sine if clockwise else sine, centres[:, 0], centres[:, 1])
    )
    y_at, in_y = y.positions()
    x_at, in_x = x.positions()
    pooled = []
    for part in chunks(y, x, shape[1]):
        v, u = y_at[part][:, :, None, :, None], x_at[part][:, None, :, None, :]
        value, _ = sampled(
            features,
            batch[part, None, None, None, None],
            v * cosine[part] - u * sine[part] + y_centre[part],
            v * sine[part] + u * cosine[part] + x_centre[part],
        )  # [k, PH, PW, rows, columns, C]
        exists = in_y[part][:, :, None, :, None] & in_x[part][:, None, :, None, :]
        total = torch.where(exists[..., None], value, 0).sum((3, 4))
        count = (y.grid[part] * x.grid[part]).clamp(min=1)[:, None, None, None]
        pooled.append((total / count).permute(0, 3, 1, 2))
    return torch.cat(pooled).to(input.dtype).contiguous(memory_format=format_of(input))
