"""Calls that may go to a C++ op at once.

Checking the arguments of a call in Python takes as long as a small op. An op checks them too, in
C++, so a plain call is tried first; what the op refuses goes through the checks in Python, which
convert or name what is wrong.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from .. import _extension
from . import _backend

# what an op, or the preparation of its arguments, raises if they do not fit
MISFITS = (TypeError, ValueError, RuntimeError, AttributeError, IndexError)

_is_compiling = torch.compiler.is_compiling
_is_grad_enabled = torch.is_grad_enabled
_tracing_state = torch._C._get_tracing_state
_is_functorch_active = torch._C._are_functorch_transforms_active
_dispatch_modes = torch._C._len_torch_dispatch_stack


def is_plain(input: Any, others: Iterable[Any] = (), gradient: bool = False) -> bool:
    """Whether a call is eager inference on the CPU, with C++ kernels: no gradient is needed, and no
    transform, tracer, compiler or mode sees the call.

    Args:
        input: the first argument; subclasses of Tensor are not plain.
        others: all other arguments that could need a gradient.
        gradient: whether a call that needs one is plain too.
    """
    # the compiler first: it cannot trace the other questions
    if _is_compiling() or type(input) is not Tensor or not input.is_cpu:
        return False
    if not gradient and _is_grad_enabled():
        if input.requires_grad:
            return False
        for t in others:
            if t is not None and getattr(t, "requires_grad", True):
                return False
    return (
        _tracing_state() is None
        and forward_ad._current_level < 0
        and not _is_functorch_active()
        and _dispatch_modes() == 0
        and _extension.missing is None
        and _backend.requested_by_environment is None
    )
