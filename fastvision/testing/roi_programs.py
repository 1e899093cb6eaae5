"""Programs of ops on regions of interest."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from . import cases
from .numerics import assert_matches
from .tensors import leaf


def assert_compiles(
    pool: Callable[[Tensor, Tensor], Tensor],
    compiler: str,
    *,
    channels: int = 5,
    boxes_of: Callable[[Tensor], Tensor] = lambda rois: rois,
) -> None:
    """One program of ``pool(x, boxes)`` for maps and numbers of boxes of any size gives the same
    results and gradients.

    Args:
        pool: of a map [2, channels, H, W] and of boxes for a scale of 1/2.
        compiler: backend of torch.compile.
        boxes_of: what ``pool`` takes instead of rois [K, 5].
    """

    def step(x: Tensor, boxes: Tensor) -> Tensor:
        return pool(torch.relu(x), boxes).square().sum()

    torch.compiler.reset()
    compiled = torch.compile(step, fullgraph=True, backend=compiler, dynamic=True)
    for height, count in ((8, 4), (11, 7), (9, 0)):
        x = leaf(cases.feature_map(2, channels, height, 9))
        boxes = boxes_of(cases.small_rois(count, 2, height, 9, 0.5))
        loss, expected = compiled(x, boxes), step(x, boxes)
        assert_matches(loss, expected, scale=10)
        (grad,) = torch.autograd.grad(loss, x)
        assert_matches(grad, torch.autograd.grad(expected, x)[0], scale=10)
