"""Small steps that tests of many ops take with their tensors."""

from __future__ import annotations

import torch
from torch import Tensor

from fastvision._memory_format import memory_format


def leaf(x: Tensor) -> Tensor:
    """``x``'s values, to be differentiated by."""
    return x.detach().requires_grad_()


def in_format(x: Tensor, channels_last: bool) -> Tensor:
    return x.contiguous(memory_format=memory_format(channels_last))


def dtype_id(value: object) -> str | None:
    """A dtype as a test's id; pytest names what is none."""
    return str(value).removeprefix("torch.") if isinstance(value, torch.dtype) else None
