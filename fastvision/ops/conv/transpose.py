"""Transposed convolution, alone and with batch normalization, residual and activation."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from .._checks import check_normalization, check_tensor, is_traced, needs_gradient
from .._torchscript import traced_op
from ..batch_norm_relu import batch_norm_relu
from .gradient import transposed_with_gradient
from .memo import keep, made_once, may_repeat, repeat
from .operators import TRANSPOSED, run
from .spec import (
    TRACED_SCHEMA,
    ConvSpec,
    Weights,
    autocast,
    check_channels,
    check_maps,
    check_parameters,
    check_residual,
    parse,
    sizes_of,
)


def _conv_transpose2d(
    input: Tensor,
    weights: Weights,
    stride: int | Sequence[int],
    padding: int | Sequence[int],
    output_padding: int | Sequence[int],
    groups: int,
    dilation: int | Sequence[int],
    backend: str | None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 0.0,
    residual: Tensor | None = None,
    activation: str = "none",
    negative_slope: float = 0.0,
) -> Tensor:
    options: Any = (stride, padding, output_padding, groups, dilation, eps)
    call = ("transposed", *options, activation, negative_slope)
    plain = training is False and backend in (None, "cpp") and may_repeat(input, weights, residual)
    if plain and (output := repeat(input, weights, residual, call)) is not None:
        return output
    check_tensor(input, "input")
    if input.dim() == 3:  # without a batch
        residual = residual.unsqueeze(0) if isinstance(residual, Tensor) else residual
        args = (stride, padding, output_padding, groups, dilation, backend)
        rest = (training, momentum, eps, residual, activation, negative_slope)
        return _conv_transpose2d(input.unsqueeze(0), weights, *args, *rest).squeeze(0)
    # the weight keeps its bits: it is folded and packed from them
    input, _, residual = autocast(input, None, residual)
    if is_traced():
        window = (*map(sizes_of, (stride, padding, output_padding)), groups, sizes_of(dilation))
        names = (activation, negative_slope, backend)
        return _TRACED(input, *weights, residual, training, momentum, eps, *window, *names)
    weight = weights.weight
    check_maps(input, weight)
    if 0 in input.shape[2:] or 0 in weight.shape[1:]:
        raise ValueError(
            "input must have pixels, and weight filters: got shapes "
            f"{list(input.shape)} and {list(weight.shape)}"
        )
    check_normalization(training, momentum, eps)
    kernel = weight.shape[2:]
    ends = (eps, activation, negative_slope)
    spec = parse(kernel, stride, padding, dilation, groups, *ends, output_padding, transposed=True)
    check_channels(input.shape[1], f"weight {list(weight.shape)}", weight.shape[0])
    if weight.shape[0] % spec.groups:
        raise ValueError(f"groups must divide the {weight.shape[0]} channels, got {groups}")
    K = weight.shape[1] * spec.groups
    check_parameters(K, input.device, weights, training)
    size = spec.output_size(input.shape[2:], kernel)
    if min(size) < 1:
        raise ValueError(f"padding must leave an output, got {padding} for an output of {size}")
    check_residual(residual, input, (input.shape[0], K, *size))
    if plain:
        layer = made_once(weights, input.dtype, spec)
        output = layer(input, residual, weights)
        if layer.checks:
            keep(input.dtype, weights, call, layer)
        return output
    chosen = _choose(input, backend)
    if training:
        return _train(input, weights, residual, spec, momentum, backend)
    if chosen == "reference":
        return run(chosen, input, weights, residual, spec)
    if forward_ad._current_level >= 0 or needs_gradient((input, *weights, residual)):
        return transposed_with_gradient(chosen, input, weights, residual, spec)
    return run(chosen, input, weights, residual, spec)


def _choose(input: Tensor, backend: str | None) -> str:
    chosen = TRANSPOSED.choose(input, backend)
    if chosen == "triton" and input.dtype == torch.float64:
        raise ValueError("backend='triton' cannot run float64: it accumulates in float32")
    return chosen


def _train(
    input: Tensor,
    weights: Weights,
    residual: Tensor | None,
    spec: ConvSpec,
    momentum: float,
    backend: str | None,
) -> Tensor:
    weight, bias, bn_weight, bn_bias, running_mean, running_var = weights
    window: Any = spec.arguments()[:5]
    y = _conv_transpose2d(input, Weights(weight, bias), *window, backend)  # type: ignore[call-arg]
    return batch_norm_relu(
        y, running_mean, running_var, bn_weight, bn_bias, True, momentum, spec.eps,
        residual=residual, activation=spec.activation_name, negative_slope=spec.negative_slope,
        backend=backend,
    )  # fmt: skip


def _traced(input: Tensor, *args: Any) -> Tensor:
    weights, residual = Weights(*args[:6]), args[6]
    training, momentum, eps, *sizes, activation, negative_slope, backend = args[7:]
    stride, padding, output_padding, groups, dilation = sizes
    window = (tuple(stride), tuple(padding), tuple(output_padding), groups, tuple(dilation))
    options = (backend, training, momentum, eps, residual, activation, negative_slope)
    return _conv_transpose2d(input, weights, *window, *options)


_WINDOW = "int[] stride, int[] padding, int[] output_padding, int groups, int[] dilation"
_TRACED = traced_op("conv_transpose2d", TRACED_SCHEMA.format(geometry=_WINDOW), _traced)


@torch.fx.wrap
def conv_transpose2d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: int | Sequence[int] = 1,
    padding: int | Sequence[int] = 0,
    output_padding: int | Sequence[int] = 0,
    groups: int = 1,
    dilation: int | Sequence[int] = 1,
    *,
    backend: str | None = None,
) -> Tensor:
    """:func:`torch.nn.functional.conv_transpose2d`, without the zeros between the pixels.

    Args:
        input: [N, C, H, W] or [C, H, W]; float16, bfloat16, float32 or float64, contiguous or
            channels_last. N may be 0.
        weight: [C, K / groups, R, S].
        bias: [K], or None.
        stride, padding, output_padding, groups, dilation: as in torch.
        backend: "triton", "cpp" or "reference"; None takes the fastest that can run.

    Returns:
        [N, K, OH, OW] in the dtype and memory format of ``input``, with
        ``OH = (H - 1) * stride - 2 * padding + dilation * (R - 1) + output_padding + 1``.

    On the CPU, a weight that keeps the channels apart and is the product of a column and a row, as
    of bilinear upsampling (Long et al. 2015, section 3.3), is detected and takes two taps instead
    of R * S * C. A NaN then stays in its channel. Folded and packed weights are cached by their
    values, so any write to them takes effect in the next call.

    Differentiable in ``input``, ``weight`` and ``bias``, any number of times and in forward mode.

    Raises:
        TypeError, ValueError: an argument that does not fit; ``backend`` cannot run here.
    """
    window = (stride, padding, output_padding, groups, dilation)
    return _conv_transpose2d(input, Weights(weight, bias), *window, backend)


@torch.fx.wrap
def conv_transpose2d_bn_relu(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    bn_weight: Tensor | None = None,
    bn_bias: Tensor | None = None,
    running_mean: Tensor | None = None,
    running_var: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
    stride: int | Sequence[int] = 1,
    padding: int | Sequence[int] = 0,
    output_padding: int | Sequence[int] = 0,
    groups: int = 1,
    dilation: int | Sequence[int] = 1,
    residual: Tensor | None = None,
    activation: str = "relu",
    negative_slope: float = 0.01,
    backend: str | None = None,
) -> Tensor:
    """activation(batch_norm(conv_transpose2d(input, weight, bias)) + residual).

    Args:
        input, weight, bias, stride, padding, output_padding, groups, dilation, backend: see
            :func:`conv_transpose2d`.
        bn_weight, bn_bias: [K] scale and shift after the normalization, or None.
        running_mean, running_var: [K] statistics; without them, and without ``training``, there is
            no normalization.
        training: normalize with the statistics of the batch and update the running ones, in place.
        momentum, eps: of the batch normalization (Ioffe and Szegedy 2015).
        residual: [N, K, OH, OW], or None.
        activation: "none", "relu", "relu6", "leaky_relu", "silu", "hardswish" or "sigmoid".
        negative_slope: of leaky_relu.

    Returns:
        [N, K, OH, OW] in the dtype and memory format of ``input``. Without ``training`` the
        normalization is folded into the weight, in float32 or better, and the whole is one kernel.

    Differentiable in all tensors but the running statistics, any number of times and in forward
    mode.

    Raises:
        TypeError, ValueError: an argument that does not fit; ``backend`` cannot run here.
    """
    weights = Weights(weight, bias, bn_weight, bn_bias, running_mean, running_var)
    window = (stride, padding, output_padding, groups, dilation)
    rest: Any = (training, momentum, eps, residual, activation, negative_slope)
    return _conv_transpose2d(input, weights, *window, backend, *rest)
