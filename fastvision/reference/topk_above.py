"""The largest values along an axis."""

from __future__ import annotations

import torch
from torch import Tensor


def topk_above(input: Tensor, k: int, least: float) -> tuple[Tensor, Tensor]:
    """The ``k`` largest of the values [N, M, C] along the second axis, those that are at least
    ``least``; neither NaN nor -infinity.

    Returns:
        Values and int64 indices [N, C, min(k, M)] by descending value, equal ones by index; NaN
        and 0 where there are fewer.
    """
    columns = input.mT
    columns = columns.masked_fill(~(columns >= least), -torch.inf)
    values, indices = columns.sort(dim=2, descending=True, stable=True)
    values, indices = values[..., :k], indices[..., :k]
    missing = values == -torch.inf
    return values.masked_fill(missing, torch.nan), indices.masked_fill(missing, 0)
