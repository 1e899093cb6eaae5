"""The largest of many values, found in one pass over them."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .. import _extension, reference
from ._checks import FLOATING, is_eager, is_transformed, needs_gradient
from ._library import declare


def _fake(input: Tensor, k: int, least: float) -> tuple[Tensor, Tensor]:
    N, M, C = input.shape
    values = input.new_empty((N, C, min(k, M)))
    return values, torch.empty_like(values, dtype=torch.int64)


_OPERATOR = declare(
    "topk_above",
    "(Tensor input, SymInt k, float least) -> (Tensor, Tensor)",
    fake=_fake,
    reference=reference.topk_above,
    lacks=dict.fromkeys(("cuda", "triton"), "torch's topk serves GPUs"),
)


def has_kernel(input: Tensor) -> bool:
    """Whether :func:`topk_above` has a kernel for it, and nothing but the kernel has to see the
    call."""
    return (
        input.is_cpu
        and input.dtype in FLOATING
        and _extension.missing is None
        and _OPERATOR.choose(input, None) == "cpp"
        and is_eager()
        and not is_transformed()
    )


def topk_above(input: Tensor, k: int, least: float = -math.inf) -> tuple[Tensor, Tensor]:
    """The ``k`` largest values along the second axis, those that are at least ``least``; neither
    NaN nor -infinity.

    Args:
        input: [N, M, C] float16, bfloat16, float32 or float64.
        k: how many; M if that is less.
        least: values below it are left out.

    Returns:
        Values in the dtype of ``input`` and int64 indices along M, both [N, C, min(k, M)], by
        descending value, equal ones by index. Where there are fewer, NaN and 0. The values are
        differentiable.
    """
    run = _OPERATOR.run[_OPERATOR.choose(input, None)]
    values, indices = run(input.detach(), k, least)
    if needs_gradient((input,)):
        values = input.mT.gather(2, indices).masked_fill(values.isnan(), torch.nan)
    return values, indices
