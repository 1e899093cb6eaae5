"""Batch normalization, residual and activation: two passes forward, two backward."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..reference.activations import ACTIVATIONS
from ._batch_norm_layer import train_at_once
from ._batch_norm_operators import FORWARD
from ._checks import check_activation, check_floating, check_tensor, is_traced, is_transformed
from ._normalization import check_residual, normalize
from ._plain import MISFITS, is_plain
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
    """Computes ``activation(batch_norm(input) + residual)`` (Ioffe and Szegedy 2015).

    The positional arguments are those of :func:`torch.nn.functional.batch_norm`. In training, mean
    and variance are computed in one read of the input, and the running statistics are updated in
    place with the unbiased variance. Results are deterministic.

    Args:
        input: [N, C, ...] float16, bfloat16, float32 or float64; contiguous, or channels_last if
            4-D (other layouts are copied).
        running_mean, running_var: [C] statistics, used to normalize unless ``training``. They get
            no gradient. In training, None disables the update.
        weight, bias: [C] affine parameters; None means 1 and 0.
        training: normalize with the statistics of the batch.
        momentum: weight of the batch in the update of the running statistics.
        eps: added to the variance.
        residual: added before the activation; shape and dtype of ``input``. Under autocast it is
            cast to that dtype.
        activation: "none", "relu", "relu6", "leaky_relu", "silu", "hardswish" or "sigmoid".
        negative_slope: slope of leaky_relu.
        process_group: in training, compute the statistics over all its processes, which have to
            make the call together. As in :class:`torch.nn.SyncBatchNorm`, the gradients of weight
            and bias are not reduced.
        backend: "triton", "cpp" or "reference"; None picks the fastest that can run.

    Returns:
        Tensor with the shape, dtype and memory format of ``input``. Arithmetic is in float32
        (float64 for float64 inputs) and rounded once.

    Differentiable in input, weight, bias and residual, any number of times (once with a
    ``process_group``) and in forward mode.

    Raises:
        TypeError: an argument has the wrong type or dtype.
        ValueError: an argument has the wrong shape, device or value; there is a single value per
            channel in training; ``backend`` cannot run here.
        NotImplementedError: a sparse, nested or mkldnn tensor.
        RuntimeError: ``process_group`` under torch.func, in forward mode or double backward.
    """
    tensors = (running_mean, running_var, weight, bias, residual)
    if (
        training is False
        and (backend is None or backend == "cpp")
        and type(momentum) is type(eps) is type(negative_slope) is float
        and is_plain(input, tensors)
    ):
        try:
            if residual is None or residual.dtype is input.dtype:
                index = ACTIVATIONS.index(activation)
                return FORWARD.direct(input, *tensors, eps, index, negative_slope)
        except MISFITS:
            pass
    elif (
        training is True
        and (backend is None or backend == "cpp")
        and process_group is None
        and type(momentum) is type(eps) is type(negative_slope) is float
        and is_plain(input, gradient=True)
    ):
        try:
            end = (eps, ACTIVATIONS.index(activation), negative_slope)
            return train_at_once(input, *tensors, momentum, *end)
        except MISFITS:  # before anything is written
            pass
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
    check_floating(input.dtype, "input")
    check_residual(input, residual)
    check_activation(activation, negative_slope)
    if is_transformed() and process_group is not None:
        raise RuntimeError("batch_norm_relu with a process_group knows backward() only")
    return normalize(
        input, running_mean, running_var, weight, bias, training, momentum, eps, process_group,
        backend, residual, activation, negative_slope,
    )  # fmt: skip


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
