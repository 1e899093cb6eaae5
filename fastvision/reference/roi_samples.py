"""Bilinear samples of boxes one by one (Mask R-CNN, section 3)."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

MAX_GRID = 1 << 20  # samples per bin and axis; only a degenerate box needs more
MAX_SAMPLES = 1 << 24  # per bin, of ops that take each sample by itself
_CHUNK_ELEMENTS = 1 << 24  # gathered at a time


class SampleAxis(NamedTuple):
    """Where the samples of rois are along one axis."""

    start: Tensor  # [K]
    bin_size: Tensor  # [K]
    grid: Tensor  # [K] samples per bin, whole numbers
    bins: int

    @classmethod
    def of(cls, start: Tensor, size: Tensor, bins: int, sampling_ratio: int) -> SampleAxis:
        bin_size = size / bins
        if sampling_ratio > 0:
            return cls(start, bin_size, torch.full_like(size, sampling_ratio), bins)
        return cls(start, bin_size, torch.ceil(bin_size).clamp(min=0), bins)

    def at(self, bin: Tensor, sample: Tensor, rank: int) -> Tensor:
        """Positions, in the kernels' order of operations; ``rank`` is the result's."""
        start, size, grid = (
            t.reshape(-1, *[1] * (rank - 1)) for t in (self.start, self.bin_size, self.grid)
        )
        offset = (sample + 0.5).to(size.dtype) * size / grid.clamp(min=1)
        return start + bin * size + offset

    def positions(self) -> tuple[Tensor, Tensor]:
        """All [K, bins, samples], and which of the samples exist [K, 1, samples]."""
        samples = int(self.grid.max()) if self.grid.numel() else 0
        if samples > MAX_GRID:
            raise RuntimeError(
                "rois: more than 2**20 samples per bin and axis; pass a smaller sampling_ratio"
            )
        sample = torch.arange(samples, device=self.grid.device)
        bin = torch.arange(self.bins, device=self.grid.device)[:, None]
        return self.at(bin, sample, 3), sample < self.grid[:, None, None]

    def only(self, chosen: Tensor) -> SampleAxis:
        """Without the samples of other rois."""
        return self._replace(grid=torch.where(chosen, self.grid, 0))

    def __getitem__(self, rois: Tensor) -> SampleAxis:  # type: ignore[override]
        return SampleAxis(self.start[rois], self.bin_size[rois], self.grid[rois], self.bins)


def few_samples(y: SampleAxis, x: SampleAxis, usable: Tensor) -> Tensor:
    """``usable`` without rois of too many samples, which the CPU refuses."""
    many = (y.grid * x.grid > MAX_SAMPLES) | (y.grid > MAX_GRID) | (x.grid > MAX_GRID)
    if usable.device.type == "cpu" and bool((usable & many).any()):
        raise RuntimeError(
            "rois: more than 2**20 samples per bin and axis, or 2**24 per bin; "
            "pass a smaller sampling_ratio"
        )
    return usable & ~many


def in_chunks(rois: int, per_roi: int, device: torch.device) -> tuple[Tensor, ...]:
    """Indices of the rois to gather at a time, ``per_roi`` elements for each."""
    return torch.arange(rois, device=device).split(max(_CHUNK_ELEMENTS // max(per_roi, 1), 1))


def chunks(y: SampleAxis, x: SampleAxis, channels: int) -> tuple[Tensor, ...]:
    """Rois to gather the samples of at a time."""
    per_roi = y.bins * x.bins * max(channels, 1)
    if y.grid.numel():
        per_roi *= max(int(y.grid.max() * x.grid.max()), 1)
    return in_chunks(len(y.grid), per_roi, y.grid.device)


def pixel_below(position: Tensor, extent: int) -> tuple[Tensor, Tensor, Tensor]:
    """The pixel at or below each position, the weight of the next, and whether it is in the map."""
    valid = (position >= -1) & (position <= extent)
    position = position.clamp(min=0)
    low = position.floor().clamp(max=extent - 1).to(torch.int64)
    return low, torch.where(low == extent - 1, 0, position - low), valid


def sampled(
    features: Tensor,  # [N, C, H, W]
    batch: Tensor,  # indices of images, which broadcast with y and x
    y: Tensor,  # positions in pixels
    x: Tensor,
    channel: Tensor | None = None,  # of each position, likewise; all if None
) -> tuple[Tensor, Tensor]:
    """Values, 0 outside the map, and which are inside.

    Of all channels the values have a last dimension C.
    """
    H, W = features.shape[2:]
    y_low, y_fraction, y_valid = pixel_below(y, H)
    x_low, x_fraction, x_valid = pixel_below(x, W)
    valid = y_valid & x_valid
    value = features.new_zeros(())
    for rows, y_weight in ((y_low, 1 - y_fraction), (y_low + 1, y_fraction)):
        for columns, x_weight in ((x_low, 1 - x_fraction), (x_low + 1, x_fraction)):
            row, column = rows.clamp(max=H - 1), columns.clamp(max=W - 1)
            weight = torch.where(valid, y_weight * x_weight, 0)
            if channel is None:
                pixel = features.permute(0, 2, 3, 1)[batch, row, column]
                weight = weight[..., None]
            else:
                pixel = features[batch, channel, row, column]
            # a tap with weight 0 must not contribute a NaN or an infinity
            value = value + torch.where(weight == 0, 0, pixel * weight)
    return value, valid
