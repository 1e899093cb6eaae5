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
from .memo import keep, keep_alone, made_once, may_repeat, repeated, repeated_alone
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

_NONE = (None, None, None, None)  # no normalization


def _conv_transpose2d(
    input: Tensor,
    tensors: tuple[Any, ...],
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
    call = (
        *("transposed", stride, padding, output_padding, groups, dilation, eps),
        *(activation, negative_slope),
    )
    plain = (
        training is False
        and (backend is None or backend == "cpp")
        and may_repeat(input, (residual, *tensors))
    )
    if plain and (output := repeated(input, tensors, residual, call)) is not None:
        return output
    weights = Weights(*tensors)
    check_tensor(input, "input")
    if input.dim() == 3:  # without a batch
        residual = residual.unsqueeze(0) if isinstance(residual, Tensor) else residual
        args = (stride, padding, output_padding, groups, dilation, backend)
        rest = (training, momentum, eps, residual, activation, negative_slope)
        return _conv_transpose2d(input.unsqueeze(0), tensors, *args, *rest).squeeze(0)
    if not plain:
        # the weight is not cast: it is folded and packed at full precision
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
    if residual is not None:
        check_residual(residual, input, (input.shape[0], K, *size))
    if plain:
        layer = made_once(weights, input.dtype, spec)
        output = layer(input, residual, weights)
        keep(input.dtype, weights, call, layer)
        if activation == "none" and residual is None and all(t is None for t in weights[2:]):
            window = (stride, padding, output_padding, groups, dilation)
            keep_alone(input.dtype, weights, window, layer)
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
    y = _conv_transpose2d(input, (weight, bias, *_NONE), *window, backend)  # type: ignore[call-arg]
    return batch_norm_relu(
        y, running_mean, running_var, bn_weight, bn_bias, True, momentum, spec.eps,
        residual=residual, activation=spec.activation_name, negative_slope=spec.negative_slope,
        backend=backend,
    )  # fmt: skip


def _traced(input: Tensor, *args: Any) -> Tensor:
    weights, residual = args[:6], args[6]
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
    """:func:`torch.nn.functional.conv_transpose2d` without multiplying the inserted zeros.

    Args:
        input: [N, C, H, W] or [C, H, W]; float16, bfloat16, float32 or float64, contiguous or
            channels_last. N may be 0.
        weight: [C, K / groups, R, S] in the dtype of ``input``, or float32 for 16-bit inputs.
        bias: [K], or None.
        stride, padding, output_padding, groups, dilation: see
            :func:`torch.nn.functional.conv_transpose2d`.
        backend: "triton", "cpp" or "reference"; None picks the fastest that can run.

    Returns:
        [N, K, OH, OW], or [K, OH, OW] for unbatched input, in the dtype and memory format of
        ``input``, with
        ``OH = (H - 1) * stride - 2 * padding + dilation * (R - 1) + output_padding + 1``.

    On the CPU, per-channel separable filters such as bilinear upsampling (Long et al. 2015, section
    3.3) are detected and run as two 1-D passes over each channel. A NaN then stays in its channel.
    Packed weights are cached by the values of the originals, so any write to those takes effect in
    the next call.

    In float32, dense filters two or three times as large as the stride, without dilation, use
    Winograd's algorithm from 32 input channels (and 16 output channels for three times) and about
    96 pixels on, or 1,024 if the weight requires a gradient, unless the transformed weights take
    more than 52 to 75 MB. Errors and limits to values that are not finite are those of
    :func:`conv_bn_relu`; tiles are of pixels whose positions are equal modulo the stride.

    Differentiable in ``input``, ``weight`` and ``bias``, any number of times and in forward mode.

    Raises:
        TypeError: an argument has the wrong type or dtype.
        ValueError: an argument has the wrong shape, device or value; ``backend`` cannot run here.
        NotImplementedError: a sparse, nested or mkldnn tensor.
    """
    if (
        type(stride) is type(padding) is type(output_padding) is type(groups) is int
        and type(dilation) is int
        and (backend is None or backend == "cpp")
        and may_repeat(input, (weight, bias))
    ):
        window = (stride, padding, output_padding, groups, dilation)
        if (output := repeated_alone(input, weight, bias, window)) is not None:
            return output
    tensors = (weight, bias, *_NONE)
    return _conv_transpose2d(
        input, tensors, stride, padding, output_padding, groups, dilation, backend
    )


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
    """Computes ``activation(batch_norm(conv_transpose2d(input, weight, bias)) + residual)``.

    Unless ``training``, the batch normalization is folded into the weight and bias in float32 or
    float64 (Ioffe and Szegedy 2015, section 3.1). Without running statistics there is none.

    Args:
        input, weight, bias, stride, padding, output_padding, groups, dilation, backend: see
            :func:`conv_transpose2d`.
        bn_weight, bn_bias: [K] affine parameters of the batch normalization; None means 1 and 0.
        running_mean, running_var: [K] statistics, used to normalize unless ``training``. Both None
            disables the normalization, or in training the update.
        training: normalize with the statistics of the batch and update the running statistics in
            place, see :func:`batch_norm_relu`.
        momentum, eps: see :func:`batch_norm_relu`.
        residual: [N, K, OH, OW], or [K, OH, OW] for unbatched input; added before the activation.
        activation: "none", "relu", "relu6", "leaky_relu", "silu", "hardswish" or "sigmoid".
        negative_slope: slope of leaky_relu.

    Returns:
        [N, K, OH, OW], or [K, OH, OW] for unbatched input, in the dtype and memory format of
        ``input``.

    Differentiable in all tensors but the running statistics, any number of times and in forward
    mode.

    Raises:
        TypeError, ValueError, NotImplementedError: as in :func:`conv_transpose2d`.
    """
    weights = (weight, bias, bn_weight, bn_bias, running_mean, running_var)
    window = (stride, padding, output_padding, groups, dilation)
    rest: Any = (training, momentum, eps, residual, activation, negative_slope)
    return _conv_transpose2d(input, weights, *window, backend, *rest)
