"""The passes of a batch normalization with residual and activation, and their gradients."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from .. import reference
from ..reference.activations import ACTIVATIONS
from ..reference.batch_norm_relu import activation_gradient
from ._batch_norm_operators import (
    BACKWARD,
    FORWARD,
    GRADIENTS,
    SUMS,
    TRAINING,
    empty_channels,
)
from ._batch_norm_statistics import (
    all_reduced,
    arithmetic,
    as_type,
    batch_statistics,
    can_update,
    fixed_statistics,
    mark_written,
)
from ._checks import (
    check_floating,
    check_normalization,
    check_tensor,
    is_traced,
    is_transformed,
    needs_gradient,
)


class BatchNormReLU(torch.autograd.Function):
    """``count``: elements per channel if the statistics are the batch's (over all processes of
    ``group``); None if they are constants. With a ``momentum``, mean and variance are the running
    ones, and those of the batch are computed and update them."""

    @staticmethod
    def forward(
        ctx: Any,
        input: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        residual: Tensor | None,
        mean: Tensor | None,
        var: Tensor | None,
        count: Any,
        group: Any,
        options: tuple[str, float, int, float],
        momentum: float | None = None,
    ) -> Tensor:
        backend, *end = options
        _, _, activation, negative_slope = options
        if momentum is None:
            output = FORWARD.run[backend](input, mean, var, weight, bias, residual, *end)
        else:
            output, mean, var = TRAINING.run[backend](
                input, mean, var, weight, bias, residual, momentum, *end
            )
        from_output = residual is not None and _is_determined_by_output(activation, negative_slope)
        kept = (None, output) if from_output else (residual, None)
        ctx.save_for_backward(input, weight, bias, mean, var, *kept)
        ctx.count, ctx.group, ctx.options = count, group, options
        return output

    @staticmethod
    def backward(ctx: Any, grad: Any) -> tuple[Any, ...]:
        input, weight, bias, mean, var, residual, output = ctx.saved_tensors
        needs_input, needs_weight, needs_bias, needs_residual, *_ = ctx.needs_input_grad
        if torch.is_grad_enabled() and not torch.compiler.is_compiling():
            return _differentiable_backward(ctx, grad)
        backend, eps, activation, negative_slope = ctx.options
        tensors = (input, mean, var, weight, bias)
        end = (eps, activation, negative_slope)
        added = residual is not None or output is not None
        of_batch = ctx.count is not None
        dx: Tensor | None = None
        sums = dz = None
        if not (of_batch or needs_weight or needs_bias or added):
            if needs_input:
                dx = BACKWARD.run[backend](grad, *tensors, None, 1, *end)
        elif needs_input and (ctx.group is None or not of_batch):
            sums, dz, dx = GRADIENTS.run[backend](grad, *tensors, residual, output, of_batch, *end)
        else:
            sums, dz = SUMS.run[backend](grad, *tensors, residual, output, *end)
            if needs_input:
                total = all_reduced(sums, ctx.group) / ctx.count
                through = (dz, *tensors, total, 1, eps, 0, 0.0)
                alone = (grad, *tensors, total, 1, *end)
                dx = BACKWARD.run[backend](*(through if added else alone))
        dbias, dweight = (None, None) if sums is None else sums.unbind()
        return (
            dx,
            dweight if needs_weight else None,
            dbias if needs_bias else None,
            dz if needs_residual else None,
            *[None] * 6,
        )


def _is_determined_by_output(activation: int, negative_slope: float) -> bool:
    """Whether the activation's result tells its derivative. With a residual the result is saved,
    since the next layer saves it anyway."""
    name = ACTIVATIONS[activation]
    return name in ("none", "relu", "relu6") or (name == "leaky_relu" and negative_slope > 0)


class FixedNormalization(torch.autograd.Function):
    """With constant statistics, weight and bias, without activation: linear in its input, so that
    the gradient is the same normalization of ``grad``, without the shift, and ``input`` is not
    saved."""

    @staticmethod
    def forward(
        ctx: Any,
        input: Tensor,
        mean: Tensor,
        var: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        eps: float,
        backend: str,
    ) -> Tensor:
        # a copy, since running statistics may be updated before the backward
        ctx.save_for_backward(var.clone(), weight)
        ctx.eps, ctx.backend = eps, backend
        output: Tensor = FORWARD.run[backend](input, mean, var, weight, bias, None, eps, 0, 0.0)
        return output

    @staticmethod
    def backward(ctx: Any, grad: Any) -> tuple[Any, ...]:
        var, weight = ctx.saved_tensors
        zero = torch.zeros_like(var)
        dx = FixedNormalization.apply(grad, zero, var, weight, None, ctx.eps, ctx.backend)
        return dx, *[None] * 6


def _differentiable_backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    """The gradients, computed by autograd through the reference for double backward."""
    if ctx.group is not None:
        raise RuntimeError("batch_norm_relu has no second derivative with a process_group")
    input, weight, bias, mean, var, residual, output = ctx.saved_tensors
    _, eps, activation, negative_slope = ctx.options
    name = ACTIVATIONS[activation]
    if output is not None:  # piecewise linear: the second derivative is zero
        grad = activation_gradient(grad, output.detach(), name, negative_slope)
        name = "none"
    with torch.enable_grad():
        if ctx.count is not None:
            mean, var = reference.batch_norm_relu_statistics(input)
        y = reference.batch_norm_relu(
            input, mean, var, weight, bias, residual, eps, name, negative_slope
        )
    grads: list[Tensor | None] = [None] * 10
    if output is not None and ctx.needs_input_grad[3]:
        grads[3] = grad
    tensors = (input, weight, bias, residual)
    wanted = [i for i, x in enumerate(tensors) if x is not None and ctx.needs_input_grad[i]]
    if wanted:
        found = torch.autograd.grad(y, [tensors[i] for i in wanted], grad, create_graph=True)
        for i, g in zip(wanted, found, strict=True):
            grads[i] = g
    return tuple(grads)


def _check(input: Tensor, **channels: Tensor | None) -> None:
    check_floating(input.dtype, "input")
    if input.dim() < 2:
        raise ValueError(f"input must have shape [N, C, ...], got {list(input.shape)}")
    C = input.shape[1]
    for name, values in channels.items():
        if values is None:
            continue
        check_tensor(values, name)
        if values.dim() != 1 or values.shape[0] != C:
            raise ValueError(f"{name} must have shape [{C}], got {list(values.shape)}")
        check_floating(values.dtype, name)
        if values.device != input.device:
            raise ValueError(f"{name} must be on {input.device} as input, got {values.device}")


def check_residual(input: Tensor, residual: Tensor | None) -> None:
    if residual is None:
        return
    check_tensor(residual, "residual")
    if residual.shape != input.shape:
        raise ValueError(
            f"residual must have the shape of what it is added to, {list(input.shape)}, "
            f"got {list(residual.shape)}"
        )
    if residual.dtype != input.dtype or residual.device != input.device:
        raise ValueError(
            f"residual must be {input.dtype} on {input.device}, "
            f"got {residual.dtype} on {residual.device}"
        )


class Normalization(NamedTuple):
    """A batch normalization whose statistics are known."""

    input: Tensor
    weight: Tensor | None
    bias: Tensor | None
    mean: Tensor
    var: Tensor
    count: Any  # elements of a channel; None if the statistics are constants
    group: Any  # of processes, whose batches the statistics are of
    backend: str
    eps: float

    def run(self, residual: Tensor | None, activation: str, negative_slope: float) -> Tensor:
        input, weight, bias, mean, var, count, _, backend, eps = self
        if is_transformed():
            if count is not None:
                mean, var = reference.batch_norm_relu_statistics(input)
            return reference.batch_norm_relu(
                input, mean, var, weight, bias, residual, eps, activation, negative_slope
            )
        index = ACTIVATIONS.index(activation)
        if needs_gradient((input, weight, bias, residual)):
            if (count, residual, index) == (None, None, 0) and not needs_gradient((weight, bias)):
                return FixedNormalization.apply(input, mean, var, weight, bias, eps, backend)
            return self.apply(BatchNormReLU, residual, index, negative_slope)
        output: Tensor = FORWARD.run[backend](
            input, mean, var, weight, bias, residual, eps, index, negative_slope
        )
        return output

    def apply(
        self, function: Any, residual: Tensor | None, activation: int, negative_slope: float
    ) -> Tensor:
        """By ``function``, :class:`BatchNormReLU` or a subclass."""
        input, weight, bias, mean, var, count, group, backend, eps = self
        options = (backend, eps, activation, negative_slope)
        return function.apply(input, weight, bias, residual, mean, var, count, group, options)


def _checked(
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    training: bool,
    momentum: float,
    eps: float,
    process_group: Any,
    backend: str | None,
) -> str:
    """The backend for arguments that are right."""
    _check(input, running_mean=running_mean, running_var=running_var, weight=weight, bias=bias)
    check_normalization(training, momentum, eps)
    if training and process_group is None and input.numel() == input.shape[1] > 0:
        raise ValueError(
            "Expected more than 1 value per channel when training, "
            f"got input size {list(input.shape)}"
        )
    if not training and (running_mean is None or running_var is None):
        raise ValueError("running_mean and running_var must be given unless training")
    return FORWARD.choose(input, backend)


def normalization_of(
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    training: bool,
    momentum: float,
    eps: float,
    process_group: Any = None,
    backend: str | None = None,
) -> Normalization:
    """Of arguments as :func:`batch_norm_relu`'s; in training it updates the running statistics."""
    statistics = (running_mean, running_var)
    options: Any = (training, momentum, eps, process_group, backend)
    chosen = _checked(input, *statistics, weight, bias, *options)
    return _normalization_of(
        chosen, input, *statistics, weight, bias, training, momentum, eps, process_group
    )


def _normalization_of(
    backend: str,
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    training: bool,
    momentum: float,
    eps: float,
    group: Any,
) -> Normalization:
    count: Any = None
    if not training:
        assert running_mean is not None and running_var is not None
        fixed = fixed_statistics(input.dtype, running_mean, running_var, weight, bias)
        mean, var, weight, bias = fixed
    elif input.numel() == 0 and group is None:  # no update, as in torch
        mean = torch.zeros_like(empty_channels(input, input.shape[1]))
        var = torch.ones_like(mean)
    else:
        with torch.no_grad():
            mean, var, count = batch_statistics(
                backend, input, running_mean, running_var, momentum, group
            )
    if training:
        dtype = arithmetic(input.dtype)
        weight, bias = as_type(dtype, weight), as_type(dtype, bias)
    return Normalization(input, weight, bias, mean, var, count, group, backend, eps)


def normalize(
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    training: bool,
    momentum: float,
    eps: float,
    group: Any,
    backend: str | None,
    residual: Tensor | None,
    activation: str,
    negative_slope: float,
) -> Tensor:
    """:func:`batch_norm_relu` of an input, residual and activation that are right."""
    tensors = (input, running_mean, running_var, weight, bias)
    chosen = _checked(*tensors, training, momentum, eps, group, backend)
    if (
        not training
        or group is not None
        or input.numel() == 0
        or not can_update(input, running_mean, running_var)
        or torch.compiler.is_compiling()  # no operator in an autograd.Function may write
        or is_transformed()
    ):
        normalization = _normalization_of(chosen, *tensors, training, momentum, eps, group)
        return normalization.run(residual, activation, negative_slope)
    dtype = arithmetic(input.dtype)
    weight, bias = as_type(dtype, weight), as_type(dtype, bias)
    end = (eps, ACTIVATIONS.index(activation), negative_slope)
    return train(chosen, *tensors[:3], weight, bias, residual, momentum, *end)


def train(
    backend: str,
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    residual: Tensor | None,
    momentum: float,
    *end: Any,  # eps, activation and negative slope
) -> Tensor:
    """With the statistics of the batch, by one op."""
    statistics = (running_mean, running_var)
    output: Tensor
    if needs_gradient((input, weight, bias, residual)):
        tensors = (input, weight, bias, residual, *statistics)
        count = input.numel() // input.shape[1]
        output = BatchNormReLU.apply(*tensors, count, None, (backend, *end), momentum)
    else:
        run = TRAINING.run[backend]
        output, _, _ = run(input, *statistics, weight, bias, residual, momentum, *end)
    mark_written(*statistics)
    return output


def frozen_at_once(
    input: Tensor, mean: Tensor, var: Tensor, weight: Tensor, bias: Tensor, eps: float
) -> Tensor | None:
    """The normalization of a CPU tensor with constants of its dtype, without the general checks,
    which take as long as a small map; None where they have something to decide."""
    shape = input.shape[1:2]
    if (
        not (input.is_cpu and mean.is_cpu and var.is_cpu and weight.is_cpu and bias.is_cpu)
        or input.element_size() < 4
        or not (shape == mean.shape == var.shape == weight.shape == bias.shape)
        or not (
            mean.is_contiguous()
            and var.is_contiguous()
            and weight.is_contiguous()
            and bias.is_contiguous()
        )
        or needs_gradient((mean, var, weight, bias))
        or is_transformed()
        or is_traced()
        or FORWARD.choose(input, None) != "cpp"
    ):
        return None
    constants = (mean, var, weight, bias)
    if input.requires_grad and torch.is_grad_enabled():
        return FixedNormalization.apply(input, *constants, eps, "cpp")
    output: Tensor = FORWARD.run["cpp"](input, *constants, None, eps, 0, 0.0)
    return output
