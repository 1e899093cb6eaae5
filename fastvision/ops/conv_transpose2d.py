"""Transposed convolution, batch normalization, residual and activation as one op."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.nn import functional as F

from .. import _device, reference
from ..reference.activations import ACTIVATIONS
from ..reference.conv_transpose2d import normalization, scaled_filters
from ._backend import choose, unsupported
from ._checks import (
    check_activation,
    check_normalization,
    check_tensor,
    integer,
    is_traced,
    is_transformed,
    needs_gradient,
)
from ._conv_transpose import FORWARD, Layer, compute_type, output_size
from ._convolution import (
    TRACED_SCHEMA,
    check_channels,
    check_maps,
    check_parameters,
    check_residual,
    check_window,
    pair,
    sizes_of,
)
from ._repeat import is_plain, keep, made_once, repeat
from ._torchscript import traced_op
from .batch_norm_relu import batch_norm_relu

# from the gradient and the result; the other activations are applied beside the op where a
# gradient is needed
_ACTIVATION_GRADIENTS: dict[str, Callable[[Tensor, Tensor, float], Tensor]] = {
    "relu": lambda grad, y, _: torch.ops.aten.threshold_backward(grad, y, 0),
    "relu6": lambda grad, y, _: torch.ops.aten.hardtanh_backward(grad, y, 0, 6),
    "leaky_relu": lambda grad, y, slope: torch.ops.aten.leaky_relu_backward(grad, y, slope, True),
    "sigmoid": lambda grad, y, _: torch.ops.aten.sigmoid_backward(grad, y),
}


class _ConvTranspose2d(torch.autograd.Function):
    """Differentiable any number of times: the backward consists of differentiable functions."""

    @staticmethod
    def forward(
        ctx: Any,
        backend: str,
        input: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        residual: Tensor | None,
        options: tuple[Any, ...],
        activation: str,
        negative_slope: float,
    ) -> Tensor:
        output = FORWARD[backend](
            *(input, weight.detach(), bias, None, None, None, None, residual),
            *(*options, 0.0, ACTIVATIONS.index(activation), negative_slope),
        )
        ctx.save_for_backward(input, weight, None if activation == "none" else output)
        ctx.bias = None if bias is None else bias.dtype
        ctx.options, ctx.activation, ctx.slope = options, activation, negative_slope
        return output

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        input, weight, output = ctx.saved_tensors
        stride, padding, output_padding, groups, dilation = ctx.options
        if output is not None:
            grad = _ACTIVATION_GRADIENTS[ctx.activation](grad, output, ctx.slope)
        _, *needed, needs_residual = ctx.needs_input_grad[:5]
        grads: Sequence[Tensor | None] = (None, None, None)
        if any(needed):
            dtype = compute_type(input)
            grads = torch.ops.aten.convolution_backward(
                *(grad.to(dtype), input.to(dtype), weight.to(dtype)),
                None if ctx.bias is None else [weight.shape[1] * groups],
                *(stride, padding, dilation, True, output_padding, groups, needed),
            )
        dtypes = (input.dtype, weight.dtype, ctx.bias)
        d_input, d_weight, d_bias = (
            None if g is None or not need else g.to(dtype)
            for g, need, dtype in zip(grads, needed, dtypes, strict=True)
        )
        d_residual = grad if needs_residual else None
        return None, d_input, d_weight, d_bias, d_residual, None, None, None


def _composed(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    residual: Tensor | None,
    options: tuple[Any, ...],
    activation: str,
    negative_slope: float,
) -> Tensor:
    """Of torch's functions, which have every derivative and transform."""
    bias = None if bias is None else bias.to(input.dtype)
    y = F.conv_transpose2d(input, weight.to(input.dtype), bias, *options)
    if residual is not None:
        y = y + residual
    return reference.activate(y, activation, negative_slope)


def _differentiable(backend: str, *args: Any) -> Tensor:
    """The op with autograd; the batch normalization is already part of weight and bias."""
    input, weight, bias, residual, options, activation, negative_slope = args
    if is_transformed():
        return _composed(*args)
    # of a negative slope the result does not tell the sign of what came in
    fused = activation in ("none", *_ACTIVATION_GRADIENTS) and negative_slope >= 0
    y = _ConvTranspose2d.apply(
        *(backend, input, weight, bias, residual, options),
        *(activation if fused else "none", negative_slope),
    )
    return y if fused else reference.activate(y, activation, negative_slope)


def _choose(input: Tensor, requested: str | None, weight: Tensor, groups: int) -> str:
    """A key of FORWARD, or "reference"."""
    backend = choose(input, requested)
    if requested is None and input.is_cuda and backend in ("cuda", "triton"):
        return "triton" if _prefers_triton(input, weight, groups) else "cudnn"
    if backend == "cuda":
        raise ValueError(
            "backend='cuda' cannot run: transposed convolution has no CUDA C++ kernel, only "
            "triton, cpp and reference"
        )
    if backend == "triton" and input.dtype == torch.float64:
        raise ValueError("backend='triton' cannot run float64: it accumulates in float32")
    return backend


def _prefers_triton(input: Tensor, weight: Tensor, groups: int) -> bool:
    """Where tensor cores take the type and channels fill tiles, or there is no matrix."""
    if input.dtype == torch.float64 or unsupported("triton", "cuda", input.device.index):
        return False
    C, K = weight.shape[0] // groups, weight.shape[1]
    if C == K == 1:
        return True
    fills = min(C, K) >= 16 and input.itemsize == 2
    return fills and _device.triton_has_tensor_cores(input.device.index)


def _conv_transpose2d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: int | Sequence[int],
    padding: int | Sequence[int],
    output_padding: int | Sequence[int],
    groups: int,
    dilation: int | Sequence[int],
    backend: str | None,
    batch_norm: tuple[Tensor | None, ...] = (None, None, None, None),
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 0.0,
    residual: Tensor | None = None,
    activation: str = "none",
    negative_slope: float = 0.0,
) -> Tensor:
    tensors: Any = (input, weight, bias, *batch_norm, residual)
    options: Any = (stride, padding, output_padding, groups, dilation, eps)
    call = ("transposed", *options, activation, negative_slope)
    plain = training is False and backend in (None, "cpp") and is_plain(tensors)
    if plain and (output := repeat(tensors, call)) is not None:
        return output
    check_tensor(input, "input")
    if input.dim() == 3:  # without a batch
        residual = residual.unsqueeze(0) if isinstance(residual, Tensor) else residual
        args = (stride, padding, output_padding, groups, dilation, backend, batch_norm)
        rest = (training, momentum, eps, residual, activation, negative_slope)
        return _conv_transpose2d(input.unsqueeze(0), weight, bias, *args, *rest).squeeze(0)
    if (
        (input.is_cpu or input.is_cuda)
        and torch.is_autocast_enabled(input.device.type)
        and input.dtype != torch.float64
    ):
        # the weight keeps its bits: it is folded and packed from them
        input = input.to(torch.get_autocast_dtype(input.device.type))
        residual = residual.to(input.dtype) if isinstance(residual, Tensor) else residual
    if is_traced():
        window = (*map(sizes_of, (stride, padding, output_padding)), groups, sizes_of(dilation))
        names = (activation, negative_slope, backend)
        tensors = (input, weight, bias, *batch_norm, residual)  # as autocast made them
        return _TRACED(*tensors, training, momentum, eps, *window, *names)
    check_maps(input, weight)
    if 0 in input.shape[2:] or 0 in weight.shape[1:]:
        raise ValueError(
            "input must have pixels, and weight filters: got shapes "
            f"{list(input.shape)} and {list(weight.shape)}"
        )
    check_activation(activation, negative_slope)
    check_normalization(training, momentum, eps)
    strides, dilations = pair(stride, "stride"), pair(dilation, "dilation")
    paddings, extra = pair(padding, "padding"), pair(output_padding, "output_padding")
    groups = integer(groups, "groups must be an integer")
    check_window(strides, paddings, dilations, groups)
    for p, s, d in zip(extra, strides, dilations, strict=True):
        if not 0 <= p < max(s, d):
            raise ValueError(
                "output_padding must not be negative, and smaller than stride or dilation, got "
                f"{output_padding} with stride {stride} and dilation {dilation}"
            )
    check_channels(input, f"weight {list(weight.shape)}", weight.shape[0])
    if weight.shape[0] % groups:
        raise ValueError(f"groups must divide the {weight.shape[0]} channels, got {groups}")
    K = weight.shape[1] * groups
    bn_weight, bn_bias, mean, var = batch_norm
    check_parameters(
        *(K, input, mean, var, training), bias=bias, bn_weight=bn_weight, bn_bias=bn_bias
    )
    size = output_size(input.shape[2:], weight.shape[2:], strides, paddings, extra, dilations)
    if min(size) < 1:
        raise ValueError(f"padding must leave an output, got {padding} for an output of {size}")
    check_residual(residual, input, (input.shape[0], K, *size))
    options = (strides, paddings, extra, groups, dilations)
    index = ACTIVATIONS.index(activation)
    if plain:
        options = (*options, eps, index, negative_slope)
        layer = made_once(Layer, tensors[1:7], input.dtype, *options)
        output = layer(input, residual, tensors[1:7])
        if layer.checks:
            keep(tensors, call, layer)
        return output
    chosen = _choose(input, backend, weight, groups)
    if training:
        y = _conv_transpose2d(
            input, weight, bias, strides, paddings, extra, groups, dilations, backend
        )
        return batch_norm_relu(
            y, mean, var, bn_weight, bn_bias, True, momentum, eps,
            residual=residual, activation=activation, negative_slope=negative_slope,
            backend=backend,
        )  # fmt: skip
    tensors = (input, weight, bias, bn_weight, bn_bias, mean, var, residual)
    if chosen == "reference":
        args = (*tensors, *options, eps, activation, negative_slope)
        return reference.conv_transpose2d(*args)  # type: ignore[arg-type]
    if forward_ad._current_level >= 0 or needs_gradient(tensors):
        scale, bias = normalization(bias, bn_weight, bn_bias, mean, var, eps)
        weight = scaled_filters(weight, scale, groups)
        ends = (residual, options, activation, negative_slope)
        return _differentiable(chosen, input, weight, bias, *ends)
    return FORWARD[chosen](*tensors, *options, eps, index, negative_slope)


def _traced(*args: Any) -> Tensor:
    tensors, batch_norm, residual = args[:3], args[3:7], args[7]
    training, momentum, eps, *sizes, activation, negative_slope, backend = args[8:]
    stride, padding, output_padding, groups, dilation = sizes
    window = (tuple(stride), tuple(padding), tuple(output_padding), groups, tuple(dilation))
    options = (backend, batch_norm, training, momentum, eps, residual, activation, negative_slope)
    return _conv_transpose2d(*(*tensors, *window, *options))


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

    A weight that keeps the channels apart and is the product of a column and a row, as that of
    bilinear upsampling (Long et al. 2015, section 3.3), is found out, once for each change of the
    weight, and takes two taps instead of R * S * C. A NaN then stays in its channel. Folded and
    packed weights are kept until the weight is changed in place; a write through ``weight.data`` is
    not noticed.

    Differentiable in ``input``, ``weight`` and ``bias``, any number of times and in forward mode.

    Raises:
        TypeError, ValueError: an argument that does not fit; ``backend`` cannot run here.
    """
    return _conv_transpose2d(
        input, weight, bias, stride, padding, output_padding, groups, dilation, backend
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
    return _conv_transpose2d(
        input,
        weight,
        bias,
        stride,
        padding,
        output_padding,
        groups,
        dilation,
        backend,
        (bn_weight, bn_bias, running_mean, running_var),
        training,
        momentum,
        eps,
        residual,
        activation,
        negative_slope,
    )
