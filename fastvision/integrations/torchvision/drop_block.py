"""drop_block2d and drop_block3d, Python functions in torchvision."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from ... import ops
from . import devices
from .recording import keeping_torchscript


def drop_block_instead_of(stock: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Of drop_block2d or drop_block3d, with the same random numbers."""
    ours: Callable[..., Tensor] = getattr(ops, stock.__name__)

    @keeping_torchscript(stock)
    def drop_block(input: Tensor, p: float, block_size: int, *args: Any, **kwargs: Any) -> Tensor:
        if (
            devices.takes(input)
            and type(block_size) is int
            and block_size > 0
            and input.numel() > 0
        ):
            return ours(input, p, block_size, *args, **kwargs)
        return stock(input, p, block_size, *args, **kwargs)

    return drop_block
