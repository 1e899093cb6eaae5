"""Argument checks shared by the ops. Each message names the argument and the value it got."""

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
        # torch and torchvision raise this type for a missing kernel
        got = "a nested one" if tensor.is_nested else f"layout {tensor.layout}"
        raise NotImplementedError(f"{name} must be a dense (strided) tensor, got {got}")


def check_floating(dtype: torch.dtype, name: str, error: type[Exception] = TypeError) -> None:
    if dtype not in FLOATING:
        raise error(f"{name} must be float16, bfloat16, float32 or float64, got {dtype}")


def integer(value: Any, what: str) -> Any:
    """``value`` as an int or SymInt; NumPy integers and integer tensors are converted.

    ``what`` begins the error message.
    """
    if type(value) is int or isinstance(value, torch.SymInt):
        return value
    # bool has __index__ too, but here it can only be a mistake
    if isinstance(value, bool) or not hasattr(value, "__index__"):
        raise TypeError(f"{what}, got {value!r}")
    try:
        return operator.index(value)
    except TypeError:  # a tensor that is not an integer
        raise TypeError(f"{what}, got {value!r}") from None


def pair(value: int | Sequence[int], name: str) -> tuple[int, int]:
    """Vertical and horizontal value of one integer, or of a tuple or list of one or two."""
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


def number(value: Any, name: str) -> Any:
    """``value`` as a number; a tensor without dimensions is converted."""
    if isinstance(value, Tensor) and value.dim() == 0 and not value.is_complex():
        return float(value)
    check_number(value, name)
    return value


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
    """torchvision's own function, which has kernels for quantized tensors.

    ``name``: the quantized argument, for the error if torchvision is not imported.
    """
    module = sys.modules.get("torchvision.ops")
    if module is None:
        raise NotImplementedError(
            f"{name} must not be quantized unless torchvision is imported, whose {function} "
            "then does it"
        )
    found: Callable[..., Tensor] = getattr(module, function)
    return found


def needs_gradient(tensors: Iterable[Any]) -> bool:
    if not torch.is_grad_enabled():
        return False
    for t in tensors:  # noqa: SIM110 any() with a generator takes half a microsecond
        if isinstance(t, Tensor) and t.requires_grad:
            return True
    return False


def is_transformed() -> bool:
    """Whether torch.func or forward-mode AD is active: both need torch's own operators."""
    return forward_ad._current_level >= 0 or torch._C._are_functorch_transforms_active()


def is_traced() -> bool:
    """Whether torch.jit.trace is recording. It can save operators but no autograd.Function."""
    return torch._C._get_tracing_state() is not None


def is_batched(tensor: Tensor) -> bool:
    """Whether autograd batches several gradients into this one (``is_grads_batched``)."""
    return torch._C._functorch.is_legacy_batchedtensor(tensor)


def is_eager() -> bool:
    """Whether ops run eagerly: no compiler, dispatch mode or tracer sees the calls."""
    return (
        not torch.compiler.is_compiling()
        and torch._C._len_torch_dispatch_stack() == 0
        and torch._C._get_tracing_state() is None
    )
