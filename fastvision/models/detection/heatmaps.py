"""The largest value of a heatmap that is resized bicubically, found without resizing it whole.

Between neighbouring cells of a heatmap, a cubic curve exceeds the larger of the two inner ones by
little of its differences to the outer ones. So most cells cannot hold the maximum, and only pixels
in the others are computed, of all heatmaps at once.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

_A = -0.75  # of the cubic convolution, as in torch.nn.functional.interpolate
_OUTER = -_A * 4 / 27  # the largest magnitude of an outer weight
_ROUNDING = 1e-5  # relative to the largest magnitude in a heatmap
_CHUNK = 1 << 22  # pixels that are computed at a time
_MAPS = 1 << 11  # heatmaps that are searched at a time


def largest_of_resized(maps: Tensor, sizes: Tensor) -> tuple[Tensor, Tensor]:
    """Values [n, K] and pixels int64 [n, K, 2] (row, column) of the maxima of maps [n, K, M, M],
    resized to ``sizes``, int64 [n, 2] (height, width); of several maxima the first by rows."""
    maps = maps.to(torch.promote_types(maps.dtype, torch.float32))
    count = max(_MAPS // max(maps.shape[1], 1), 1)
    parts = [_search(*part) for part in zip(maps.split(count), sizes.split(count), strict=True)]
    values, pixels = zip(*parts, strict=True)
    return torch.cat(values), torch.cat(pixels)


def _search(maps: Tensor, sizes: Tensor) -> tuple[Tensor, Tensor]:
    n, of_each, cells = maps.shape[:3]
    if maps.numel() == 0:
        return maps.new_zeros((n, of_each)), sizes.new_zeros((n, of_each, 2))
    # a cell begins at a value of the map, and depends on the four by four around it
    padded = F.pad(maps, (2, 2, 2, 2), mode="replicate").flatten(0, 1)
    sizes = sizes.repeat_interleave(of_each, 0)
    every = torch.arange(len(padded), device=maps.device)

    # some pixel near the largest value, which the maximum is not less than
    peak = maps.flatten(2).argmax(-1).flatten()
    peak = torch.stack((peak // cells, peak % cells), -1)
    pixel = torch.minimum((peak + 0.5).to(maps.dtype) * sizes / cells, sizes - 1.0).floor()
    cell = _source(pixel, sizes, cells).floor().long() + 1
    least = _largest_in(padded, sizes, every, cell)[0]

    slack = _ROUNDING * padded.abs().amax((1, 2))
    candidates = _bounds(padded) >= (least - slack)[:, None, None]
    rows, columns = (_has_pixels(sizes[::of_each, i], cells, maps) for i in (0, 1))
    hit = rows[:, None, :, None] & columns[:, None, None, :] & candidates.unflatten(0, (n, of_each))
    index, row, column = hit.flatten(0, 1).nonzero().unbind(1)
    values, places = _largest_in(padded, sizes, index, torch.stack((row, column), -1))

    best = least.new_full((len(padded),), -torch.inf).scatter_reduce(0, index, values, "amax")
    last = torch.iinfo(torch.int64).max
    places = places.masked_fill(values < best[index], last)
    first = places.new_full((len(padded),), last).scatter_reduce(0, index, places, "amin")
    width = sizes[:, 1]
    pixels = torch.stack((first // width, first % width), -1)
    return best.view(n, of_each), pixels.view(n, of_each, 2)


def _source(pixels: Tensor, sizes: Tensor, cells: int) -> Tensor:
    """Where pixels of the resized map lie in the map, [..., 2] or [...]."""
    return (pixels + 0.5) * (cells / sizes.to(pixels.dtype)) - 0.5


def _bounds(padded: Tensor) -> Tensor:
    """What no value in a cell exceeds: [n, cells + 1, cells + 1] of [n, cells + 4, cells + 4]."""
    high, low = _bounds_along(padded, padded, -1)
    return _bounds_along(high, low, -2)[0]


def _bounds_along(high: Tensor, low: Tensor, dim: int) -> tuple[Tensor, Tensor]:
    """Bounds of the values between the inner two of each four along a dimension."""
    count = high.shape[dim] - 3

    def inner(x: Tensor) -> tuple[Tensor, Tensor]:
        return x.narrow(dim, 1, count), x.narrow(dim, 2, count)

    def beyond(x: Tensor, outer: Tensor) -> Tensor:
        first, last = ((x - outer.narrow(dim, i, count)).clamp_(min=0) for i in (0, 3))
        return first + last

    most, least = torch.maximum(*inner(high)), torch.minimum(*inner(low))
    return most + _OUTER * beyond(most, low), least - _OUTER * beyond(-least, -high)


def _window(cell: Tensor, sizes: Tensor, cells: int, like: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The pixels [..., s] that may lie in cells [...], whether they do, and where in the cell."""
    start = ((cell - 0.5) * sizes / cells - 0.5).ceil().long() - 1
    count = int(sizes.max()) // cells + 4
    pixels = start[..., None] + torch.arange(count, device=cell.device)
    place = _source(pixels.to(like.dtype), sizes[..., None], cells)
    begin = place.floor()
    inside = (begin.long() + 1 == cell[..., None]) & (pixels >= 0) & (pixels < sizes[..., None])
    return pixels, inside, place - begin


def _has_pixels(sizes: Tensor, cells: int, like: Tensor) -> Tensor:
    """Whether any pixel along a side lies in each cell, [n, cells + 1]."""
    cell = torch.arange(cells + 1, device=sizes.device).expand(len(sizes), -1)
    return _window(cell, sizes[:, None].expand(-1, cells + 1), cells, like)[1].any(-1)


def _weights(t: Tensor) -> Tensor:
    """[..., 4] of the values around a place, which lies at ``t`` from the second one."""

    def inner(x: Tensor) -> Tensor:
        return ((_A + 2) * x - (_A + 3)) * x * x + 1

    def outer(x: Tensor) -> Tensor:
        return ((_A * x - 5 * _A) * x + 8 * _A) * x - 4 * _A

    return torch.stack((outer(t + 1), inner(t), inner(1 - t), outer(2 - t)), -1)


def _largest_in(
    padded: Tensor, sizes: Tensor, index: Tensor, cell: Tensor
) -> tuple[Tensor, Tensor]:
    """The largest value in cells [k, 2] (row, column) of the maps ``index`` [k], and its pixel
    counted by rows; -inf in cells without pixels."""
    side = padded.shape[-1]
    cells = side - 4
    steps = torch.arange(4, device=padded.device)
    window = int(sizes.max()) // cells + 4
    parts = []
    for i, at in zip(*(x.split(max(_CHUNK // window**2, 1)) for x in (index, cell)), strict=True):
        rows, columns = (_window(at[:, axis], sizes[i, axis], cells, padded) for axis in (0, 1))
        corner = i * side * side + at[:, 0] * side + at[:, 1]
        around = corner[:, None, None] + steps[:, None] * side + steps
        values = padded.flatten()[around] @ _weights(columns[2]).mT
        values = _weights(rows[2]) @ values
        values.masked_fill_(~(rows[1][:, :, None] & columns[1][:, None]), -torch.inf)
        best, place = values.flatten(1).max(1)
        row = rows[0].gather(1, place[:, None] // columns[0].shape[1])
        column = columns[0].gather(1, place[:, None] % columns[0].shape[1])
        parts.append((best, (row * sizes[i, 1, None] + column)[:, 0]))
    largest, places = zip(*parts, strict=True)
    return torch.cat(largest), torch.cat(places)
