"""Convolution, batch normalization, residual and activation as one op."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.nn import functional as F

from .. import _extension, reference
from ..reference.activations import ACTIVATIONS, activate
from ..reference.batch_norm_relu import activation_gradient
from ..reference.roi_align import is_channels_last
from ._backend import choose
from ._checks import check_floating, check_tensor, is_eager
from ._packing import remembered
from .batch_norm_relu import batch_norm_relu

# padding: left, right, top, bottom; activation: index in ACTIVATIONS
_SCHEMA = (
    "(Tensor input, Tensor weight, Tensor? bias, Tensor? bn_weight, Tensor? bn_bias, "
    "Tensor? running_mean, Tensor? running_var, Tensor? residual, SymInt[] stride, "
    "SymInt[] padding, SymInt[] dilation, SymInt groups, float eps, int activation, "
    "float negative_slope) -> Tensor"
)
for _suffix in ("", "_triton"):
    torch.library.define(f"fastvision::conv_bn_relu{_suffix}", _SCHEMA)
torch.library.define(
    "fastvision::conv_pack", "(Tensor weight, Tensor? bias, SymInt groups) -> Tensor"
)
torch.library.define(
    "fastvision::conv_packed",
    "(Tensor input, Tensor packed, Tensor? residual, int K, int R, int S, int stride_y, "
    "int stride_x, int left, int right, int top, int bottom, int dilation_y, int dilation_x, "
    "int groups, int activation, float negative_slope) -> Tensor",
)


def output_size(
    size: Sequence[int],
    kernel: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
) -> tuple[int, int]:
    """Height and width of a convolution's result; ``padding`` is left, right, top, bottom."""
    left, right, top, bottom = padding
    height = (size[0] + top + bottom - dilation[0] * (kernel[0] - 1) - 1) // stride[0] + 1
    width = (size[1] + left + right - dilation[1] * (kernel[1] - 1) - 1) // stride[1] + 1
    return height, width


def _fake(input: Tensor, weight: Tensor, *rest: Any) -> Tensor:
    stride, padding, dilation = rest[6:9]
    size = output_size(input.shape[2:], weight.shape[2:], stride, padding, dilation)
    output = input.new_empty((input.shape[0], weight.shape[0], *size))
    format = torch.channels_last if is_channels_last(input) else torch.contiguous_format
    return output.to(memory_format=format)


def _pack(tensors: Sequence[Any], dtype: torch.dtype, groups: int, eps: float) -> Tensor:
    """Weight, bias and batch normalization in the layout of the CPU's engine."""
    weight, bias, bn_weight, bn_bias, mean, var = tensors
    weight, bias = reference.fold_batch_norm(weight, bias, bn_weight, bn_bias, mean, var, eps)
    bias = None if bias is None else bias.to(dtype)
    return torch.ops.fastvision.conv_pack.default(weight.to(dtype), bias, groups)


def _cpu(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    bn_weight: Tensor | None,
    bn_bias: Tensor | None,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    residual: Tensor | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
    eps: float,
    activation: int,
    negative_slope: float,
) -> Tensor:
    dtype = torch.float64 if input.dtype == torch.float64 else torch.float32
    tensors = (weight, bias, bn_weight, bn_bias, running_mean, running_var)
    purpose = ("conv", dtype, groups, eps, _extension.cpu_level())
    packed = remembered(tensors, purpose, _pack, dtype, groups, eps)
    return torch.ops.fastvision.conv_packed.default(
        input,
        packed,
        residual,
        weight.shape[0],
        *weight.shape[2:],
        *stride,
        *padding,
        *dilation,
        groups,
        activation,
        negative_slope,
    )


for _suffix in ("", "_triton"):
    torch.library.register_fake(f"fastvision::conv_bn_relu{_suffix}", _fake)
torch.library.impl("fastvision::conv_bn_relu", "CPU", _cpu)

_OP = torch.ops.fastvision.conv_bn_relu.default


def _pair(value: int | Sequence[int], name: str) -> tuple[int, int]:
    if isinstance(value, int):
        return value, value
    if len(value) != 2:
        raise ValueError(f"{name} must be an int or two of them, got {value!r}")
    return value[0], value[1]


def _paddings(
    padding: int | Sequence[int] | str,
    kernel: Sequence[int],
    stride: tuple[int, int],
    dilation: tuple[int, int],
) -> tuple[int, int, int, int]:
    """Left, right, top, bottom of torch's forms of padding, or those four themselves."""
    if padding == "valid":
        return 0, 0, 0, 0
    if padding == "same":
        if stride != (1, 1):
            raise ValueError(f"padding='same' needs stride 1, got {stride}")
        vertical, horizontal = (d * (k - 1) for d, k in zip(dilation, kernel, strict=True))
        left, top = horizontal // 2, vertical // 2
        return left, horizontal - left, top, vertical - top
    if isinstance(padding, str):
        raise ValueError(f"padding must be 'same', 'valid' or numbers, got {padding!r}")
    if not isinstance(padding, int) and len(padding) == 4:
        return padding[0], padding[1], padding[2], padding[3]
    vertical, horizontal = _pair(padding, "padding")
    return horizontal, horizontal, vertical, vertical


def _run(backend: str, tensors: Sequence[Any], options: Sequence[Any]) -> Tensor:
    """The op without derivatives; the activation in ``options`` is an index."""
    if backend == "reference":
        *geometry, activation, negative_slope = options
        name = ACTIVATIONS[activation]
        return reference.conv_bn_relu(*tensors, *geometry, name, negative_slope)
    # the dispatcher's boxing of so many arguments takes longer than a small convolution
    input = tensors[0]
    run = _cpu if input.is_cpu and type(input) is Tensor and is_eager() else _OP
    return run(*tensors, *options)


class _FrozenConvBNReLU(torch.autograd.Function):
    """With fixed statistics: the convolution's own gradients, from which follow all the others.

    Only of activations whose derivative the result tells. The backward is made of differentiable
    functions, so the second derivative is right as well.
    """

    @staticmethod
    def forward(ctx: Any, backend: str, options: tuple[Any, ...], *tensors: Any) -> Tensor:
        output = _run(backend, tensors, options)
        *parameters, _residual = tensors
        ctx.save_for_backward(*parameters, output)
        ctx.options = options
        return output

    @staticmethod
    def backward(ctx: Any, grad: Any) -> tuple[Any, ...]:
        stride, padding, dilation, groups, eps, activation, negative_slope = ctx.options
        input, weight, bias, bn_weight, bn_bias, running_mean, running_var, output = (
            ctx.saved_tensors
        )
        needs = ctx.needs_input_grad[2:]
        dz = activation_gradient(grad, output.detach(), ACTIVATIONS[activation], negative_slope)
        folded, _ = reference.fold_batch_norm(
            weight, None, bn_weight, None, running_mean, running_var, eps
        )
        of_weight = needs[1] or needs[3]
        of_bias = needs[2] or needs[3] or needs[4]
        dx, dfolded, dshift = _convolution_backward(
            dz, input, folded.to(dz.dtype), stride, padding, dilation, groups,
            (needs[0], of_weight, of_bias),
        )  # fmt: skip
        grads: list[Tensor | None] = [dx, dfolded, dshift, None, dshift, None, None, dz]
        if running_mean is not None and (of_weight or of_bias):
            # z = conv(x, w * scale) + (b - mean) * scale + shift with scale = bn_weight * invstd
            invstd = (running_var.to(folded.dtype) + eps).rsqrt()
            scale = invstd if bn_weight is None else invstd * bn_weight.to(invstd.dtype)
            if dfolded is not None:
                grads[1] = dfolded * scale.view(-1, 1, 1, 1)
            if dshift is not None:
                grads[2] = dshift * scale
            if needs[3]:
                centre = -running_mean if bias is None else bias - running_mean
                dot = (dfolded.to(scale.dtype) * weight).sum((1, 2, 3))
                grads[3] = (dot + dshift.to(scale.dtype) * centre) * invstd
        tensors = (input, weight, bias, bn_weight, bn_bias, None, None, dz)
        return (
            None,
            None,
            *(
                g.to(x.dtype) if needed and g is not None and x is not None else None
                for g, x, needed in zip(grads, tensors, needs, strict=True)
            ),
        )


def _symmetric(input: Tensor, padding: Sequence[int]) -> tuple[Tensor, tuple[int, int]]:
    """The input and its padding in height and width as torch's convolution takes it."""
    left, right, top, bottom = padding
    if left == right and top == bottom:
        return input, (top, left)
    return F.pad(input, (left, right, top, bottom)), (0, 0)


def _convolution_backward(
    grad: Tensor,
    input: Tensor,
    weight: Tensor,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
    mask: tuple[bool, bool, bool],
) -> tuple[Any, Any, Any]:
    """Gradients of input, weight and bias, None where ``mask`` is False."""
    padded, sides = _symmetric(input, padding)
    dx, dweight, dbias = torch.ops.aten.convolution_backward(
        grad, padded, weight, [weight.shape[0]], stride, sides, dilation, False, [0, 0], groups,
        list(mask),
    )  # fmt: skip
    if dx is not None and padded is not input:
        left, _, top, _ = padding
        height, width = input.shape[2:]
        dx = dx[:, :, top : top + height, left : left + width]
    return dx, dweight, dbias


def _check_shapes(input: Tensor, weight: Tensor, groups: int, **channels: Tensor | None) -> None:
    if input.dim() != 4:
        raise ValueError(f"input must have shape [N, C, H, W], got {list(input.shape)}")
    if weight.dim() != 4:
        raise ValueError(f"weight must have shape [K, C / groups, R, S], got {list(weight.shape)}")
    if groups < 1 or weight.shape[1] * groups != input.shape[1] or weight.shape[0] % groups:
        raise ValueError(
            f"weight must have shape [K, {input.shape[1]} / groups, R, S] with K a multiple of "
            f"groups={groups}, got {list(weight.shape)}"
        )
    for name, values in channels.items():
        if values is not None and (values.dim() != 1 or values.shape[0] != weight.shape[0]):
            raise ValueError(
                f"{name} must have shape [{weight.shape[0]}], got {list(values.shape)}"
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
    """activation(batch_norm(conv2d(input, weight, bias)) + residual).

    Args:
        input: [N, C, H, W] float16, bfloat16, float32 or float64.
        weight: [K, C / groups, R, S] of the convolution.
        bias: [K] of the convolution.
        bn_weight, bn_bias: [K], 1 and 0 if None.
        running_mean, running_var: [K], what normalizes if not ``training``. Both None: then there
            is no normalization at all; in training nothing is updated.
        training: normalizes with the statistics of the batch and updates the running ones, as
            :func:`batch_norm_relu`.
        momentum, eps: of the batch normalization.
        stride, padding, dilation, groups: of :func:`torch.nn.functional.conv2d`; padding also as
            four numbers, left, right, top, bottom.
        residual: [N, K, OH, OW], added before the activation.
        activation: "none", "relu", "relu6", "leaky_relu", "silu", "hardswish" or "sigmoid".
        negative_slope: of leaky_relu.
        backend: "cuda", "triton", "cpp" or "reference"; None takes the fastest that can run.

    Returns:
        [N, K, OH, OW] in the dtype and memory format of ``input``; under autocast in autocast's
        dtype, as the convolution. Without training the normalization is part of the convolution's
        weight and bias (Ioffe and Szegedy 2015, section 3.1).

    Differentiable in all tensors but the running statistics, any number of times and in forward
    mode.

    Raises:
        TypeError, ValueError: arguments that do not fit; ``backend`` cannot run here.
    """
    check_tensor(input, "input")
    check_tensor(weight, "weight")
    check_floating(input, "input")
    if activation not in ACTIVATIONS:
        raise ValueError(f"activation must be one of {ACTIVATIONS}, got {activation!r}")
    _check_shapes(
        input, weight, groups, bias=bias, bn_weight=bn_weight, bn_bias=bn_bias,
        running_mean=running_mean, running_var=running_var,
    )  # fmt: skip
    strides, dilations = _pair(stride, "stride"), _pair(dilation, "dilation")
    paddings = _paddings(padding, weight.shape[2:], strides, dilations)
    if torch.is_autocast_enabled(input.device.type):
        dtype = torch.get_autocast_dtype(input.device.type)
        if input.dtype != torch.float64:
            input = input.to(dtype)
            weight = weight.to(dtype)
            bias = None if bias is None else bias.to(dtype)
            residual = None if residual is None else residual.to(dtype)
    if training:
        x, sides = _symmetric(input, paddings)
        return batch_norm_relu(
            F.conv2d(x, weight, bias, strides, sides, dilations, groups),
            running_mean, running_var, bn_weight, bn_bias, True, momentum, eps,
            residual=residual, activation=activation, negative_slope=negative_slope,
            backend=None if backend == "cuda" else backend,
        )  # fmt: skip
    if running_mean is None and running_var is None:
        if bn_weight is not None or bn_bias is not None:
            raise ValueError("bn_weight and bn_bias need running_mean and running_var")
    elif running_mean is None or running_var is None:
        raise ValueError("running_mean and running_var must be given together")
    else:
        running_mean, running_var = running_mean.detach(), running_var.detach()
    tensors = (input, weight, bias, bn_weight, bn_bias, running_mean, running_var, residual)
    options = (strides, paddings, dilations, groups, eps)
    chosen = choose(input, backend)
    if forward_ad._current_level >= 0 or torch._C._are_functorch_transforms_active():
        return reference.conv_bn_relu(*tensors, *options, activation, negative_slope)
    index = ACTIVATIONS.index(activation)
    if not (torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors)):
        return _run(chosen, tensors, (*options, index, negative_slope))
    if activation in ("none", "relu", "relu6") or (
        activation == "leaky_relu" and negative_slope > 0
    ):
        return _FrozenConvBNReLU.apply(chosen, (*options, index, negative_slope), *tensors)
    z = _FrozenConvBNReLU.apply(chosen, (*options, 0, 0.0), *tensors)
    return activate(z, activation, negative_slope)
