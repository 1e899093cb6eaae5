"""The largest values of heatmaps that are resized bicubically, several boxes at a time."""

from __future__ import annotations

import torch
from torch import Tensor

from ._resize import resized

_A = -0.75  # of the cubic convolution, as in torch.nn.functional.interpolate
_PIXELS = 1 << 18  # of resized heatmaps at a time, so that they stay in the caches


def largest_of_resized(maps: Tensor, sizes: Tensor) -> tuple[Tensor, Tensor]:
    """The maxima of heatmaps, each resized to the size of its box.

    Boxes of similar size are resized together, to the largest of them: a heatmap between two
    matrices of weights, one for the rows and one for the columns.

    Args:
        maps: [n, K, M, M].
        sizes: int64 [n, 2] (height, width).

    Returns:
        Values [n, K] and pixels int64 [n, K, 2] (row, column); of several maxima the first by rows.

    Raises:
        NotImplementedError: in torch.export.
    """
    if torch.compiler.is_exporting():
        raise NotImplementedError(
            "the search in heatmaps cannot be exported, since its work depends on the boxes"
        )
    maps = maps.to(torch.promote_types(maps.dtype, torch.float32))
    values = maps.new_empty(maps.shape[:2])
    pixels = sizes.new_empty((*maps.shape[:2], 2))
    areas = sizes.prod(1)
    order = areas.argsort(descending=True)
    while len(order) > 0:
        at_once = _PIXELS // (int(areas[order[0]]) * maps.shape[1])
        boxes, order = order[: max(at_once, 1)], order[max(at_once, 1) :]
        values[boxes], pixels[boxes] = _largest(maps[boxes], sizes[boxes])
    return values, pixels


def _largest(maps: Tensor, sizes: Tensor) -> tuple[Tensor, Tensor]:
    rows, columns = (_weights(sizes[:, axis], maps)[:, None] for axis in (0, 1))
    values = resized(rows, maps, columns)
    of_rows = values.amax(-1)
    row = of_rows.argmax(-1, keepdim=True)  # the first, unlike max
    best = values.gather(2, row[..., None].expand(-1, -1, 1, values.shape[-1]))
    pixels = torch.cat((row, best.argmax(-1)), -1)
    return of_rows.gather(2, row)[..., 0], torch.minimum(pixels, sizes[:, None] - 1)


def _weights(sizes: Tensor, maps: Tensor) -> Tensor:
    """[n, largest size, M]: the share of each cell in a pixel. Rows beyond a box's size, which only
    the largest box needs, repeat its last pixel."""
    cells = maps.shape[-1]
    count = sizes.to(maps.dtype)[:, None]
    pixels = torch.arange(int(sizes.max()), device=maps.device, dtype=maps.dtype)
    place = (torch.minimum(pixels, count - 1) + 0.5) * (cells / count) - 0.5
    first = place.floor()
    cell = (first[..., None].long() + torch.arange(-1, 3, device=maps.device)).clamp(0, cells - 1)
    weights = maps.new_zeros((*place.shape, cells))
    return weights.scatter_add_(-1, cell, _cubic(place - first))


def _cubic(t: Tensor) -> Tensor:
    """[..., 4] of the cells around a place, which lies at ``t`` from the second one."""

    def inner(x: Tensor) -> Tensor:
        return ((_A + 2) * x - (_A + 3)) * x * x + 1

    def outer(x: Tensor) -> Tensor:
        return ((_A * x - 5 * _A) * x + 8 * _A) * x - 4 * _A

    return torch.stack((outer(t + 1), inner(t), inner(1 - t), outer(2 - t)), -1)
