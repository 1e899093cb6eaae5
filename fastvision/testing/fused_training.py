"""A small model whose normalized values are used in any way, and its training step."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves


class Uses(nn.Module):
    """A normalized convolution, used by ``use(model, y, x)``."""

    def __init__(
        self, use: Callable[..., Any], norm: Callable[[int], nn.Module] = nn.BatchNorm2d
    ) -> None:
        super().__init__()
        self.conv = nn.Conv2d(4, 4, 3, padding=1)
        self.norm = norm(4)
        self.other = nn.BatchNorm2d(4)
        self.relu = nn.ReLU(inplace=True)
        self.use = use

    def forward(self, x: Tensor) -> Any:
        return self.use(self, self.norm(self.conv(x)), x)


def train_once(model: nn.Module, x: Tensor) -> list[Tensor | None]:
    """Results, gradients and buffers after one step."""
    model.zero_grad()
    x = x.clone().requires_grad_()
    torch.manual_seed(0)
    results = tree_leaves(model(x))
    assert all(type(t) is Tensor for t in results)
    sum((t * torch.linspace(1, 2, t.numel()).view(t.shape)).sum() for t in results).backward()
    return [*results, x.grad, *(p.grad for p in model.parameters()), *model.buffers()]


def assert_same(ours: Sequence[Tensor | None], theirs: Sequence[Tensor | None]) -> None:
    """Equal up to rounding in float64, with the same strides."""
    assert len(ours) == len(theirs)
    for a, b in zip(ours, theirs, strict=True):
        assert (a is None) == (b is None)
        if a is not None:
            torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9, check_stride=True)


def images(seed: int = 0) -> Tensor:
    return torch.randn(3, 4, 6, 5, generator=torch.Generator().manual_seed(seed)).double()
