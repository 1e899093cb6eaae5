"""Convolution, batch normalization, residual and activation as one op."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor
from torch.nn import functional as F

from .._checks import (
    check_normalization,
    check_tensor,
    is_traced,
    is_transformed,
    needs_gradient,
)
from .._torchscript import traced_op
from ..batch_norm_relu import batch_norm_relu
from .gradient import frozen_with_gradient, winograd_wins_once
from .memo import keep, made_once, may_repeat, repeated
from .operators import CONV, run
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
    symmetric_padding,
)


def conv_bn_relu(
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
    padding: int | Sequence[int] | str = 0,
    dilation: int | Sequence[int] = 1,
    groups: int = 1,
    residual: Tensor | None = None,
    activation: str = "relu",
    negative_slope: float = 0.01,
    backend: str | None = None,
) -> Tensor:
    """Computes ``activation(batch_norm(conv2d(input, weight, bias)) + residual)``.

    Unless ``training``, the batch normalization is folded into the convolution's weight and bias
    (Ioffe and Szegedy 2015, section 3.1). Without running statistics there is none.

    Args:
        input: [N, C, H, W] or [C, H, W]; float16, bfloat16, float32 or float64.
        weight: [K, C / groups, R, S] in the dtype of ``input``, or float32 for 16-bit inputs.
        bias: [K], added by the convolution.
        bn_weight, bn_bias: [K] affine parameters of the batch normalization; None means 1 and 0.
        running_mean, running_var: [K] statistics, used to normalize unless ``training``. Both None
            disables the normalization, or in training the update.
        training: normalize with the statistics of the batch and update the running statistics in
            place, see :func:`batch_norm_relu`.
        momentum, eps: see :func:`batch_norm_relu`.
        stride, padding, dilation, groups: see :func:`torch.nn.functional.conv2d`. Padding may also
            be four integers (left, right, top, bottom).
        residual: [N, K, OH, OW], or [K, OH, OW] for unbatched input; added before the activation.
        activation: "none", "relu", "relu6", "leaky_relu", "silu", "hardswish" or "sigmoid".
        negative_slope: slope of leaky_relu.
        backend: "cuda", "triton", "cpp" or "reference"; None picks the fastest that can run.

    Returns:
        [N, K, OH, OW], or [K, OH, OW] for unbatched input, in the dtype of ``input``, or under
        autocast in autocast's, and in the memory format of ``input``, or in ``training`` in the one
        that torch's convolution returns.

    Differentiable in all tensors but the running statistics, any number of times and in forward
    mode.

    On the CPU, float32 3x3 convolutions with at least 16 output channels use Winograd's minimal
    filtering on tiles of 4x4 pixels (Lavin and Gray 2016) where the pixels suffice: with stride 1
    from 32 input channels and about 96 pixels on, with stride 2 from 64 input channels and about
    256 pixels of the result on, if there are 8,192 to 131,072 pairs of input and output channels.
    Its root mean square error is about twice that of direct convolution with 32 channels, and about
    the same from 256 on. All pixels of a tile share their inputs: NaN makes the whole tile NaN,
    infinities make it undefined, and small values lose precision next to huge ones, up to three
    pixels of the result away. With weights that require a gradient, which are packed in each call,
    1,024 pixels are needed; from as many on, gradients use it with stride 1, too, and the error of
    weight gradients is three to five times that of direct sums.

    Raises:
        TypeError: an argument has the wrong type or dtype.
        ValueError: an argument has the wrong shape, device or value; ``backend`` cannot run here.
        NotImplementedError: a sparse, nested or mkldnn tensor.
    """
    tensors = (weight, bias, bn_weight, bn_bias, running_mean, running_var)
    call = ("conv", stride, padding, dilation, groups, eps, activation, negative_slope)
    plain = (
        training is False
        and (backend is None or backend == "cpp")
        and may_repeat(input, (residual, *tensors))
    )
    if plain and (output := repeated(input, tensors, residual, call)) is not None:
        return output
    weights = Weights(*tensors)
    check_tensor(input, "input")
    check_tensor(weight, "weight")
    if input.dim() == 3:  # without a batch
        return conv_bn_relu(
            input.unsqueeze(0), weight, bias,
            bn_weight=bn_weight, bn_bias=bn_bias, running_mean=running_mean,
            running_var=running_var, training=training, momentum=momentum, eps=eps, stride=stride,
            padding=padding, dilation=dilation, groups=groups,
            residual=residual.unsqueeze(0) if isinstance(residual, Tensor) else residual,
            activation=activation, negative_slope=negative_slope, backend=backend,
        ).squeeze(0)  # fmt: skip
    if not plain:
        input, weight, residual = autocast(input, weight, residual)
        weights = weights._replace(weight=weight)
        if is_traced():
            named, sizes = (padding, 0) if isinstance(padding, str) else (None, padding)
            window = (sizes_of(stride), sizes_of(sizes), named, sizes_of(dilation), groups)
            ends = (activation, negative_slope, backend)
            return _TRACED(input, *weights, residual, training, momentum, eps, *window, *ends)
    check_maps(input, weight)
    check_normalization(training, momentum, eps)
    kernel = weight.shape[2:]
    spec = parse(kernel, stride, padding, dilation, groups, eps, activation, negative_slope)
    size = _checked_size(input.shape, weights, spec)
    check_parameters(weight.shape[0], input.device, weights, training)
    if residual is not None:
        check_residual(residual, input, (input.shape[0], weight.shape[0], *size))
    if training:
        return _train(input, weights, residual, spec, momentum, backend)
    if plain:
        layer = made_once(weights, input.dtype, spec)
        keep(input.dtype, weights, call, layer)
        return layer(input, residual, weights)
    chosen = CONV.choose(input, backend)
    if is_transformed() or needs_gradient((input, *weights, residual)):
        return frozen_with_gradient(chosen, input, weights, residual, spec)
    return run(chosen, input, weights, residual, spec)


def _checked_size(shape: Sequence[int], weights: Weights, spec: ConvSpec) -> tuple[int, int]:
    """Height and width of the result for an input of shape ``shape``."""
    weight = weights.weight
    K, groups = weight.shape[0], spec.groups
    if K % groups != 0:
        raise ValueError(f"groups must divide the {K} filters of weight, got {groups}")
    name = f"weight {list(weight.shape)} and {groups} groups"
    check_channels(shape[1], name, groups * weight.shape[1])
    size = spec.output_size(shape[2:], weight.shape[2:])
    if min(size) < 1:
        raise ValueError(
            f"weight's window {list(weight.shape[2:])} with dilation {spec.dilation} does not fit "
            f"into input {list(shape[2:])} with padding {spec.padding}"
        )
    return size


def _train(
    input: Tensor,
    weights: Weights,
    residual: Tensor | None,
    spec: ConvSpec,
    momentum: float,
    backend: str | None,
) -> Tensor:
    weight, bias, bn_weight, bn_bias, running_mean, running_var = weights
    x = convolution_in_training(input, weight, bias, spec, backend)
    return batch_norm_relu(
        x,
        running_mean, running_var, bn_weight, bn_bias, True, momentum, spec.eps,
        residual=residual, activation=spec.activation_name, negative_slope=spec.negative_slope,
        backend=None if backend == "cuda" else backend,
    )  # fmt: skip


def convolution_in_training(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    spec: ConvSpec,
    backend: str | None = None,
) -> Tensor:
    """The convolution alone, whose weight changes in each step."""
    if CONV.choose(input, backend) == "cpp" and winograd_wins_once(input, weight, spec):
        return conv_bn_relu(
            input, weight, bias, stride=spec.stride, padding=spec.padding, activation="none",
            backend=backend,
        )  # fmt: skip
    x, symmetric = symmetric_padding(input, spec.padding)
    filters, offset = weight.to(x.dtype), None if bias is None else bias.to(x.dtype)
    return F.conv2d(x, filters, offset, spec.stride, symmetric, spec.dilation, spec.groups)


def _traced(*args: Any) -> Tensor:
    input, weight, bias, bn_weight, bn_bias, running_mean, running_var, residual = args[:8]
    training, momentum, eps, stride, padding, named, dilation, groups = args[8:16]
    activation, negative_slope, backend = args[16:]
    return conv_bn_relu(
        input, weight, bias,
        bn_weight=bn_weight, bn_bias=bn_bias, running_mean=running_mean, running_var=running_var,
        training=training, momentum=momentum, eps=eps, stride=tuple(stride),
        padding=named or tuple(padding), dilation=tuple(dilation), groups=groups,
        residual=residual, activation=activation, negative_slope=negative_slope, backend=backend,
    )  # fmt: skip


_WINDOW = "int[] stride, int[] padding, str? named_padding, int[] dilation, int groups"
_TRACED = traced_op("conv_bn_relu", TRACED_SCHEMA.format(geometry=_WINDOW), _traced)
