"""The mean and variance that a batch normalization uses: the batch's, over all processes if there
are several, or fixed ones."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ._batch_norm_operators import STATISTICS, empty_channels


def all_reduced(sums: Tensor, group: Any) -> Tensor:
    total = sums.clone()
    torch.distributed.all_reduce(total, group=group)
    return total


def _gathered_statistics(
    mean: Tensor, var: Tensor, count: int, group: Any
) -> tuple[Tensor, Tensor, Tensor]:
    """Mean, variance and element count over all processes.

    Merges the squared deviations of the processes (Chan, Golub and LeVeque 1983, equation 1.5).
    """
    local = torch.stack([mean, var, torch.full_like(mean, count)])
    parts = [torch.empty_like(local) for _ in range(torch.distributed.get_world_size(group))]
    torch.distributed.all_gather(parts, local, group=group)
    means, variances, counts = torch.stack(parts).double().unbind(1)  # [processes, C]
    total = counts.sum(0)
    mean_all = (counts * means).sum(0) / total
    var_all = (counts * (variances + (means - mean_all).square())).sum(0) / total
    dtype = mean.dtype
    return mean_all.to(dtype), var_all.to(dtype), total[0].to(dtype)


def _update(running: Tensor | None, batch: Tensor, momentum: float) -> None:
    if running is not None:
        running.lerp_(batch.to(running.dtype), momentum)


def can_update(input: Tensor, running_mean: Tensor | None, running_var: Tensor | None) -> bool:
    """Whether an op can write to these running statistics."""
    dtype = arithmetic(input.dtype)
    return (
        running_mean is None or (running_mean.dtype is dtype and running_mean.is_contiguous())
    ) and (running_var is None or (running_var.dtype is dtype and running_var.is_contiguous()))


def mark_written(running_mean: Tensor | None, running_var: Tensor | None) -> None:
    """Makes autograd detect the write if it has saved them."""
    if not torch.compiler.is_compiling():
        written = [x for x in (running_mean, running_var) if x is not None]
        torch.autograd.graph.increment_version(written)


def batch_statistics(
    backend: str,
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    momentum: float,
    group: Any,
) -> tuple[Tensor, Tensor, Any]:
    """Mean and variance of the batch and the elements per channel; updates running statistics."""
    count: Any = input.numel() // input.shape[1]
    run = STATISTICS.run[backend]
    if group is None and can_update(input, running_mean, running_var):
        mean, var = run(input, running_mean, running_var, momentum)
        mark_written(running_mean, running_var)
        return mean, var, count
    if count > 0:
        mean, var = run(input, None, None, momentum)
    else:  # an empty batch in this process
        mean, var = (torch.zeros_like(empty_channels(input, input.shape[1])) for _ in range(2))
    if group is not None:
        mean, var, count = _gathered_statistics(mean, var, count, group)
    _update(running_mean, mean, momentum)
    _update(running_var, var * (count / (count - 1)), momentum)
    return mean, var, count


def arithmetic(dtype: torch.dtype) -> torch.dtype:
    """The type that inputs of this floating type are computed in."""
    return torch.float64 if dtype is torch.float64 else torch.float32


def as_type(dtype: torch.dtype, values: Tensor | None) -> Tensor | None:
    # each call of torch takes about a microsecond
    if values is None or (values.dtype is dtype and values.is_contiguous()):
        return values
    return values.to(dtype).contiguous()


def fixed_statistics(
    dtype: torch.dtype,  # the input's
    running_mean: Tensor,
    running_var: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
    """mean, var, weight and bias for the kernels, from fixed (eval mode) statistics."""
    dtype = arithmetic(dtype)
    mean, var = (
        as_type(dtype, t.detach() if t.requires_grad else t) for t in (running_mean, running_var)
    )
    assert mean is not None and var is not None
    return mean, var, as_type(dtype, weight), as_type(dtype, bias)
