"""Argument checks shared by the ops; each message names the argument and what it got."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

FLOATING = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def check_tensor(tensor: object, name: str) -> None:
    if not isinstance(tensor, Tensor):
        raise TypeError(f"{name} must be a Tensor, got {type(tensor).__name__}")


def check_floating(tensor: Tensor, name: str, error: type[Exception] = TypeError) -> None:
    if tensor.dtype not in FLOATING:
        raise error(f"{name} must be float16, bfloat16, float32 or float64, got {tensor.dtype}")


def needs_gradient(tensors: Iterable[Any]) -> bool:
    return torch.is_grad_enabled() and any(
        isinstance(t, Tensor) and t.requires_grad for t in tensors
    )


def is_transformed() -> bool:
    """Whether torch.func or forward-mode differentiation needs to see torch's own operators."""
    return forward_ad._current_level >= 0 or torch._C._are_functorch_transforms_active()


def is_batched(tensor: Tensor) -> bool:
    """Whether autograd pushes many gradients through at once (``is_grads_batched``)."""
    return torch._C._functorch.is_legacy_batchedtensor(tensor)


def is_eager() -> bool:
    """Nothing traces, records or transforms the calls of ops."""
    return (
        not torch.compiler.is_compiling()
        and torch._C._len_torch_dispatch_stack() == 0
        and torch._C._get_tracing_state() is None
    )
