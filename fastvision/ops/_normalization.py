"""The passes of a batch normalization with residual and activation, and their gradients."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .. import reference
from .._memory_format import format_of
from ..reference.activations import ACTIVATIONS
from ..reference.batch_norm_relu import activation_gradient
from ._checks import (
    check_floating,
    check_normalization,
    check_tensor,
    is_traced,
    is_transformed,
    needs_gradient,
)
from ._library import by_activation_name as _named
from ._library import declare

# mean, invstd, weight, bias: [C] float32 (float64 for float64 inputs); activation: index in
# ACTIVATIONS. reference/batch_norm_relu.py has functions of the same names.
_AFFINE = "Tensor mean, Tensor invstd, Tensor? weight, Tensor? bias"
_SCHEMAS = {
    "_statistics": (
        "(Tensor input, Tensor(a!)? running_mean, Tensor(b!)? running_var, float momentum, "
        "float eps) -> (Tensor, Tensor, Tensor)"
    ),
    "": (
        f"(Tensor input, {_AFFINE}, Tensor? residual, int activation, float negative_slope)"
        " -> Tensor"
    ),
    "_sums": (
        f"(Tensor grad, Tensor input, {_AFFINE}, Tensor? residual, Tensor? output, "
        "int activation, float negative_slope) -> (Tensor, Tensor)"
    ),
    "_backward": (
        f"(Tensor grad, Tensor input, {_AFFINE}, Tensor? sums, SymInt count, "
        "int activation, float negative_slope) -> Tensor"
    ),
}


def _like(input: Tensor) -> Tensor:
    return torch.empty_like(input, memory_format=format_of(input))


def _channels(input: Tensor, *shape: Any) -> Tensor:
    return input.new_empty(shape, dtype=torch.promote_types(input.dtype, torch.float32))


def _fake_statistics(input: Tensor, *_: Any) -> tuple[Tensor, Tensor, Tensor]:
    C = input.shape[1]
    return _channels(input, C), _channels(input, C), _channels(input, C)


def _fake(input: Tensor, *_: Any) -> Tensor:
    return _like(input)


def _fake_sums(grad: Tensor, input: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
    residual, output = rest[4:6]
    given = residual is not None or output is not None
    dz = _like(input) if given else _channels(input, 0)
    return _channels(input, 2, input.shape[1]), dz


def _fake_backward(grad: Tensor, input: Tensor, *_: Any) -> Tensor:
    return _like(input)


def _operator(part: str, fake: Callable[..., Any], run: Callable[..., Any], **options: Any) -> Any:
    name = f"batch_norm_relu{part}"
    return declare(
        name, _SCHEMAS[part], fake=fake, triton=f"kernels.batch_norm_relu.launch_{name}",
        reference=run, lacks={"cuda": "there is no batch_norm_relu in CUDA C++, use 'triton'"},
        **options,
    )  # fmt: skip


_STATISTICS = _operator("_statistics", _fake_statistics, reference.batch_norm_relu_statistics)
_FORWARD = _operator("", _fake, _named(reference.batch_norm_relu), serves=("batch_norm_relu",))
_SUMS = _operator("_sums", _fake_sums, _named(reference.batch_norm_relu_sums))
_BACKWARD = _operator("_backward", _fake_backward, _named(reference.batch_norm_relu_backward))


class BatchNormReLU(torch.autograd.Function):
    """``count``: elements per channel if the statistics are the batch's (over all processes of
    ``group``); None if they are constants."""

    @staticmethod
    def forward(
        ctx: Any,
        input: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        residual: Tensor | None,
        mean: Tensor,
        invstd: Tensor,
        count: Any,
        group: Any,
        options: tuple[str, int, float, float],
    ) -> Tensor:
        backend, activation, negative_slope, _ = options
        output = _FORWARD.run[backend](
            input, mean, invstd, weight, bias, residual, activation, negative_slope
        )
        # with a residual, save the output: it determines the derivative, and the next layer saves
        # it anyway
        name = ACTIVATIONS[activation]
        from_output = residual is not None and (
            name in ("none", "relu", "relu6") or (name == "leaky_relu" and negative_slope > 0)
        )
        kept = (None, output) if from_output else (residual, None)
        ctx.save_for_backward(input, weight, bias, mean, invstd, *kept)
        ctx.count, ctx.group, ctx.options = count, group, options
        return output

    @staticmethod
    def backward(ctx: Any, grad: Any) -> tuple[Any, ...]:
        input, weight, bias, mean, invstd, residual, output = ctx.saved_tensors
        needs_input, needs_weight, needs_bias, needs_residual = ctx.needs_input_grad[:4]
        if torch.is_grad_enabled() and not torch.compiler.is_compiling():
            return _differentiable_backward(ctx, grad)
        backend, activation, negative_slope, _ = ctx.options
        affine = (mean, invstd, weight, bias)
        dx: Tensor | None = None
        sums: Any = None
        added = residual is not None or output is not None
        if ctx.count is not None or needs_weight or needs_bias or added:
            sums, dz = _SUMS.run[backend](
                grad, input, *affine, residual, output, activation, negative_slope
            )
            if added:
                grad, activation = dz, 0
        if needs_input:
            total, count = None, 1
            if ctx.group is not None:
                total = _all_reduced(sums, ctx.group) / ctx.count
            elif ctx.count is not None:
                total, count = sums, ctx.count
            dx = _BACKWARD.run[backend](
                grad, input, *affine, total, count, activation, negative_slope
            )
        dbias, dweight = (None, None) if sums is None else sums.unbind()
        return (
            dx,
            dweight if needs_weight else None,
            dbias if needs_bias else None,
            grad if needs_residual else None,
            *[None] * 5,
        )


class FixedNormalization(torch.autograd.Function):
    """With constant statistics, weight and bias, without activation: linear in its input, so that
    the gradient is the same normalization of ``grad``, without the shift, and ``input`` is not
    saved."""

    @staticmethod
    def forward(
        ctx: Any,
        input: Tensor,
        mean: Tensor,
        invstd: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        backend: str,
    ) -> Tensor:
        ctx.save_for_backward(invstd, weight)
        ctx.backend = backend
        output: Tensor = _FORWARD.run[backend](input, mean, invstd, weight, bias, None, 0, 0.0)
        return output

    @staticmethod
    def backward(ctx: Any, grad: Any) -> tuple[Any, ...]:
        invstd, weight = ctx.saved_tensors
        zero = torch.zeros_like(invstd)
        dx = FixedNormalization.apply(grad, zero, invstd, weight, None, ctx.backend)
        return dx, *[None] * 5


def _differentiable_backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    """The gradients, computed by autograd through the reference for double backward."""
    if ctx.group is not None:
        raise RuntimeError("batch_norm_relu has no second derivative with a process_group")
    input, weight, bias, mean, invstd, residual, output = ctx.saved_tensors
    _, activation, negative_slope, eps = ctx.options
    name = ACTIVATIONS[activation]
    if output is not None:  # piecewise linear: the second derivative is zero
        grad = activation_gradient(grad, output.detach(), name, negative_slope)
        name = "none"
    with torch.enable_grad():
        if ctx.count is not None:
            mean, _, invstd = reference.batch_norm_relu_statistics(input, eps=eps)
        y = reference.batch_norm_relu(
            input, mean, invstd, weight, bias, residual, name, negative_slope
        )
    grads: list[Tensor | None] = [None] * 9
    if output is not None and ctx.needs_input_grad[3]:
        grads[3] = grad
    tensors = (input, weight, bias, residual)
    wanted = [i for i, x in enumerate(tensors) if x is not None and ctx.needs_input_grad[i]]
    if wanted:
        found = torch.autograd.grad(y, [tensors[i] for i in wanted], grad, create_graph=True)
        for i, g in zip(wanted, found, strict=True):
            grads[i] = g
    return tuple(grads)


def _all_reduced(sums: Tensor, group: Any) -> Tensor:
    total = sums.clone()
    torch.distributed.all_reduce(total, group=group)
    return total


def _gathered_statistics(
    mean: Tensor, var: Tensor, count: int, eps: float, group: Any
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Mean, variance, invstd and element count over all processes.

    Merges the squared deviations of the processes (Chan, Golub and LeVeque 1983, equation 1.5).
    """
    local = torch.stack([mean, var, torch.full_like(mean, count)])
    parts = [torch.empty_like(local) for _ in range(torch.distributed.get_world_size(group))]
    torch.distributed.all_gather(parts, local, group=group)
    means, variances, counts = torch.stack(parts).double().unbind(1)  # [processes, C]
    total = counts.sum(0)
    mean_all = (counts * means).sum(0) / total
    var_all = (counts * (variances + (means - mean_all).square())).sum(0) / total
    invstd = (var_all + eps).rsqrt()
    dtype = mean.dtype
    return mean_all.to(dtype), var_all.to(dtype), invstd.to(dtype), total[0].to(dtype)


def _updated(running: Tensor | None, batch: Tensor, momentum: float) -> None:
    if running is not None:
        running.lerp_(batch.to(running.dtype), momentum)


def _batch_statistics(
    backend: str,
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    momentum: float,
    eps: float,
    group: Any,
) -> tuple[Tensor, Tensor, Any]:
    """Mean and invstd of the batch and the elements per channel; updates running statistics."""
    count: Any = input.numel() // input.shape[1]
    run = _STATISTICS.run[backend]
    running = [x for x in (running_mean, running_var) if x is not None]
    dtype = torch.promote_types(input.dtype, torch.float32)
    if group is None and all(x.dtype == dtype and x.is_contiguous() for x in running):
        mean, _, invstd = run(input, running_mean, running_var, momentum, eps)
        if not torch.compiler.is_compiling():
            for x in running:  # autograd must detect the write if it has saved them
                torch.autograd.graph.increment_version(x)
        return mean, invstd, count
    if count > 0:
        mean, var, invstd = run(input, None, None, momentum, eps)
    else:  # an empty batch in this process
        mean, var, invstd = (torch.zeros_like(_channels(input, input.shape[1])) for _ in range(3))
    if group is not None:
        mean, var, invstd, count = _gathered_statistics(mean, var, count, eps, group)
    _updated(running_mean, mean, momentum)
    _updated(running_var, var * (count / (count - 1)), momentum)
    return mean, invstd, count


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


def _as(dtype: torch.dtype, values: Tensor | None) -> Tensor | None:
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
    eps: float,
) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
    """mean, invstd, weight and bias for the kernels, from fixed (eval mode) statistics."""
    dtype = torch.promote_types(dtype, torch.float32)
    mean, var = (
        _as(dtype, t.detach() if t.requires_grad else t) for t in (running_mean, running_var)
    )
    assert mean is not None and var is not None
    return mean, (var + eps).rsqrt_(), _as(dtype, weight), _as(dtype, bias)


class Normalization(NamedTuple):
    """A batch normalization whose statistics are known."""

    input: Tensor
    weight: Tensor | None
    bias: Tensor | None
    mean: Tensor
    invstd: Tensor
    count: Any  # elements of a channel; None if the statistics are constants
    group: Any  # of processes, whose batches the statistics are of
    backend: str
    eps: float

    def run(self, residual: Tensor | None, activation: str, negative_slope: float) -> Tensor:
        input, weight, bias, mean, invstd, count = self[:6]
        if is_transformed():
            if count is not None:
                mean, _, invstd = reference.batch_norm_relu_statistics(input, eps=self.eps)
            return reference.batch_norm_relu(
                input, mean, invstd, weight, bias, residual, activation, negative_slope
            )
        index = ACTIVATIONS.index(activation)
        if needs_gradient((input, weight, bias, residual)):
            if (count, residual, index) == (None, None, 0) and not needs_gradient((weight, bias)):
                return FixedNormalization.apply(input, mean, invstd, weight, bias, self.backend)
            return self.apply(BatchNormReLU, residual, index, negative_slope)
        return _FORWARD.run[self.backend](
            input, mean, invstd, weight, bias, residual, index, negative_slope
        )

    def apply(
        self, function: Any, residual: Tensor | None, activation: int, negative_slope: float
    ) -> Tensor:
        """By ``function``, :class:`BatchNormReLU` or a subclass."""
        input, weight, bias, mean, invstd, count, group, backend, eps = self
        options = (backend, activation, negative_slope, eps)
        return function.apply(input, weight, bias, residual, mean, invstd, count, group, options)


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
    _check(input, running_mean=running_mean, running_var=running_var, weight=weight, bias=bias)
    check_normalization(training, momentum, eps)
    if training and process_group is None and input.numel() == input.shape[1] > 0:
        raise ValueError(
            "Expected more than 1 value per channel when training, "
            f"got input size {list(input.shape)}"
        )
    chosen = _FORWARD.choose(input, backend)
    count: Any = None
    if not training:
        if running_mean is None or running_var is None:
            raise ValueError("running_mean and running_var must be given unless training")
        fixed = fixed_statistics(input.dtype, running_mean, running_var, weight, bias, eps)
        mean, invstd, weight, bias = fixed
    elif input.numel() == 0 and process_group is None:  # no update, as in torch
        mean = torch.zeros_like(_channels(input, input.shape[1]))
        invstd = torch.ones_like(mean)
    else:
        with torch.no_grad():
            mean, invstd, count = _batch_statistics(
                chosen, input, running_mean, running_var, momentum, eps, process_group
            )
    if training:
        dtype = torch.promote_types(input.dtype, torch.float32)
        weight, bias = _as(dtype, weight), _as(dtype, bias)
    return Normalization(input, weight, bias, mean, invstd, count, process_group, chosen, eps)


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
        or _FORWARD.choose(input, None) != "cpp"
    ):
        return None
    constants = (mean, (var + eps).rsqrt_(), weight, bias)
    if input.requires_grad and torch.is_grad_enabled():
        return FixedNormalization.apply(input, *constants, "cpp")
    output: Tensor = _FORWARD.run["cpp"](input, *constants, None, 0, 0.0)
    return output
