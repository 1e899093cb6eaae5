"""Large CPU results of torch's own functions in huge pages, as our kernels' results are.

torch's results are made of small pages, whose page faults can take longer than the function.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from .. import _extension
from .._memory_format import format_of
from ._checks import is_eager, is_transformed, needs_gradient

_LEAST_BYTES = 4 << 20  # csrc/common/result_memory.h


def enlarged(x: Tensor, size: Sequence[int]) -> Tensor:
    """``F.interpolate(x, size, mode="nearest")`` of [N, C, H, W]."""
    if _may_use_out(x) and x.dim() == 4 and len(size) == 2 and x.numel() > 0:
        shape = (*x.shape[:2], *size)
        if _is_large(shape, x.dtype):
            result = _empty(shape, x.dtype, format_of(x))
            return torch.ops.aten.upsample_nearest2d.out(x, size, out=result)
    return F.interpolate(x, size=size, mode="nearest")


def max_pool2d(x: Tensor, *window: Any) -> Tensor:
    """``torch.max_pool2d`` of [N, C, H, W], with its arguments by position."""
    if _may_use_out(x) and x.dim() == 4 and _is_large(x.shape, x.dtype):
        shape = torch.max_pool2d(x.new_empty(x.shape, device="meta"), *window).shape
        if _is_large(shape, torch.int64):  # torch writes the indices, too
            values, indices = (
                _empty(shape, dtype, format_of(x)) for dtype in (x.dtype, torch.int64)
            )
            torch.ops.aten.max_pool2d_with_indices.out(x, *window, out=values, indices=indices)
            return values
    return torch.max_pool2d(x, *window)


def matmul(a: Tensor, b: Tensor) -> Tensor:
    """``a @ b`` of [..., n, k] and [..., k, m], with the same leading dimensions."""
    if _may_use_out(a, b) and a.dim() > 1 and a.shape[:-2] == b.shape[:-2] and a.dtype == b.dtype:
        shape = (*a.shape[:-1], b.shape[-1])
        if _is_large(shape, a.dtype):
            return torch.matmul(a, b, out=_empty(shape, a.dtype, torch.contiguous_format))
    return a @ b


def _may_use_out(*inputs: Tensor) -> bool:
    """Whether the result of ordinary CPU tensors may be passed as ``out``."""
    return (
        is_eager()
        and not is_transformed()
        and not torch.is_autocast_enabled("cpu")
        and _extension.missing is None
        and all(type(x) is Tensor and x.is_cpu and x.layout == torch.strided for x in inputs)
        and not needs_gradient(inputs)
    )


def _is_large(shape: Sequence[int], dtype: torch.dtype) -> bool:
    return math.prod(shape) * dtype.itemsize >= _LEAST_BYTES


def _empty(shape: Sequence[int], dtype: torch.dtype, format: torch.memory_format) -> Tensor:
    result = torch.empty(shape, dtype=dtype, device="cpu", memory_format=format)
    _extension.ask_for_huge_pages(result.data_ptr(), result.nbytes)
    return result
