"""Batch normalization, residual and activation in two passes forward and two backward."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ._checks import check_activation, check_floating, check_tensor, is_traced, is_transformed
from ._normalization import check_residual, normalization_of
from ._torchscript import traced_op


def batch_norm_relu(
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
    *,
    residual: Tensor | None = None,
    activation: str = "relu",
    negative_slope: float = 0.01,
    process_group: Any = None,
    backend: str | None = None,
) -> Tensor:
    """activation(batch_norm(input) + residual), with the arguments of F.batch_norm first.

    Ioffe and Szegedy, Batch Normalization, 2015. In training the mean and variance of the batch are
    found in one read of the input and the running ones are updated in place, with the unbiased
    variance. Sums are deterministic.

    Args:
        input: [N, C, ...] float16, bfloat16, float32 or float64; contiguous, or channels_last if
            it has four dimensions (others are copied).
        running_mean, running_var: [C], what normalizes if not ``training``; then they get no
            gradient. None in training: not updated.
        weight, bias: [C], 1 and 0 if None.
        training: normalizes with the statistics of the batch.
        momentum: share of the batch in the new running statistics.
        eps: added to the variance.
        residual: of the shape and dtype of ``input``, added before the activation; under autocast
            it is cast to that dtype.
        activation: "none", "relu", "relu6", "leaky_relu", "silu", "hardswish" or "sigmoid".
        negative_slope: of leaky_relu.
        process_group: in training, the statistics are those of all its processes, which call this
            together; as in torch.nn.SyncBatchNorm the gradients of weight and bias are not summed.
        backend: "triton", "cpp" or "reference"; None takes the fastest that can run.

    Returns:
        The shape, dtype and memory format of ``input``, rounded once; arithmetic is in float32
        (float64 for float64 inputs).

    Differentiable in input, weight, bias and residual, any number of times (with a process_group:
    once) and in forward mode.

    Raises:
        TypeError, ValueError: arguments that do not fit; a single value per channel in training.
    """
    check_tensor(input, "input")
    if (
        isinstance(residual, Tensor)
        and residual.dtype != input.dtype
        and (input.is_cpu or input.is_cuda)
        and torch.is_autocast_enabled(input.device.type)
    ):
        residual = residual.to(input.dtype)
    if is_traced() and process_group is None:
        statistics = (running_mean, running_var, weight, bias, training, momentum, eps)
        return _TRACED(input, *statistics, residual, activation, negative_slope, backend)
    check_floating(input, "input")
    check_residual(input, residual)
    check_activation(activation, negative_slope)
    if is_transformed() and process_group is not None:
        raise RuntimeError("batch_norm_relu with a process_group knows backward() only")
    normalization = normalization_of(
        input, running_mean, running_var, weight, bias, training, momentum, eps, process_group,
        backend,
    )  # fmt: skip
    return normalization.run(residual, activation, negative_slope)


def _traced(*args: Any) -> Tensor:
    *args, residual, activation, negative_slope, backend = args  # type: ignore[assignment]
    return batch_norm_relu(
        *args,
        residual=residual,
        activation=activation,
        negative_slope=negative_slope,
        backend=backend,
    )


_TRACED = traced_op(
    "batch_norm_relu",
    "(Tensor input, Tensor(a!)? running_mean, Tensor(b!)? running_var, Tensor? weight, "
    "Tensor? bias, bool training, float momentum, float eps, Tensor? residual, str activation, "
    "float negative_slope, str? backend) -> Tensor",
    _traced,
)
