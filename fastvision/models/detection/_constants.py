"""Small tensors that are copied to a device once: a CUDA graph holds no copies from the host."""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor

from ...ops._checks import is_eager

Numbers = tuple[Any, ...]  # nested as the dimensions are


def constant(numbers: Numbers, like: Tensor) -> Tensor:
    """The numbers in the dtype and on the device of ``like``; not to be written to."""
    return _made(numbers, like.dtype, like.device) if is_eager() else like.new_tensor(numbers)


def moved(tensor: Tensor, dtype: torch.dtype, device: torch.device) -> Tensor:
    """A tensor that never changes, in another dtype and on another device."""
    if not is_eager() or (tensor.dtype, tensor.device) == (dtype, device):
        return tensor.to(device, dtype)
    return _made(_nested(tensor.tolist()), dtype, device)


@functools.lru_cache(maxsize=1024)
def _made(numbers: Numbers, dtype: torch.dtype, device: torch.device) -> Tensor:
    with torch.inference_mode(False):  # for training, too
        return torch.tensor(numbers, dtype=dtype, device=device)


def _nested(values: Any) -> Any:
    return tuple(map(_nested, values)) if isinstance(values, list) else values
