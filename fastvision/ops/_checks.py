"""Argument checks shared by the ops; each message names the argument and what it got."""

from __future__ import annotations

import numbers
import operator
import sys
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from ..reference.activations import ACTIVATIONS

_STRIDED = torch.strided
FLOATING = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def check_tensor(tensor: object, name: str) -> None:
    if not isinstance(tensor, Tensor):
        raise TypeError(f"{name} must be a Tensor, got {type(tensor).__name__}")
    if tensor.layout is not _STRIDED or tensor.is_nested:
        # torch's and torchvision's type of error for a kernel that is not there
        got = "a nested one" if tensor.is_nested else f"layout {tensor.layout}"
        raise NotImplementedError(f"{name} must be a dense (strided) tensor, got {got}")


def check_floating(tensor: Tensor, name: str, error: type[Exception] = TypeError) -> None:
    if tensor.dtype not in FLOATING:
        raise error(f"{name} must be float16, bfloat16, float32 or float64, got {tensor.dtype}")


def integer(value: Any, what: str) -> Any:
    """An int, as NumPy's and tensors are made, or a symbolic one; ``what`` begins the error."""
    if type(value) is int or isinstance(value, torch.SymInt):
        return value
    # bool has an index, too, but can only be a mistake
    if isinstance(value, bool) or not hasattr(value, "__index__"):
        raise TypeError(f"{what}, got {value!r}")
    try:
        return operator.index(value)
    except TypeError:  # of a tensor that is no integer
        raise TypeError(f"{what}, got {value!r}") from None


def pair(value: int | Sequence[int], name: str) -> tuple[int, int]:
    """Of a number for both axes, or a tuple or list of one or two."""
    what = f"{name} must be one or two integers"
    if type(value) is int:
        return value, value
    if isinstance(value, (tuple, list)):
        if len(value) not in (1, 2):
            raise ValueError(f"{what}, got {value!r}")
        return integer(value[0], what), integer(value[-1], what)
    number = integer(value, what)
    return number, number


def check_number(value: object, name: str) -> None:
    if not isinstance(value, (float, int, numbers.Real, torch.SymFloat, torch.SymInt)):
        raise TypeError(f"{name} must be a number, got {value!r}")


def check_activation(activation: object, negative_slope: object) -> None:
    if not isinstance(activation, str):
        raise TypeError(f"activation must be one of {ACTIVATIONS}, got {activation!r}")
    if activation not in ACTIVATIONS:
        raise ValueError(f"activation must be one of {ACTIVATIONS}, got {activation!r}")
    check_number(negative_slope, "negative_slope")


def check_normalization(training: object, momentum: object, eps: object) -> None:
    if not isinstance(training, (bool, torch.SymBool)):
        raise TypeError(f"training must be True or False, got {training!r}")
    check_number(momentum, "momentum")
    check_number(eps, "eps")


def of_torchvision(function: str, name: str) -> Callable[..., Tensor]:
    """torchvision's own function, for the quantized tensors ``name``: it has kernels for them."""
    module = sys.modules.get("torchvision.ops")
    if module is None:
        raise NotImplementedError(
            f"{name} must not be quantized unless torchvision is imported, whose {function} "
            "then does it"
        )
    found: Callable[..., Tensor] = getattr(module, function)
    return found


def needs_gradient(tensors: Iterable[Any]) -> bool:
    return torch.is_grad_enabled() and any(
        isinstance(t, Tensor) and t.requires_grad for t in tensors
    )


def is_transformed() -> bool:
    """Whether torch.func or forward-mode differentiation needs to see torch's own operators."""
    return forward_ad._current_level >= 0 or torch._C._are_functorch_transforms_active()


def is_traced() -> bool:
    """Whether torch.jit.trace records, which can save torch's operators but no Function."""
    return torch._C._get_tracing_state() is not None


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
