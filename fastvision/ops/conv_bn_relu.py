"""Convolution, batch normalization, residual and activation as one op."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from .. import _extension, reference
from ..reference.activations import ACTIVATIONS, activate
from ..reference.batch_norm_relu import activation_gradient
from ..reference.roi_align import is_channels_last
from . import _conv_cpu, _onednn
from ._backend import choose, requested_by_environment
from ._checks import (
    check_activation,
    check_normalization,
    check_tensor,
    integer,
    is_batched,
    is_eager,
    is_traced,
    is_transformed,
    needs_gradient,
)
from ._conv_cpu import conv_options, onednn_wins, winograd_wins
from ._convolution import (
    TRACED_SCHEMA,
    check_channels,
    check_maps,
    check_parameters,
    check_residual,
    check_window,
    format_of,
    output_size,
    paddings,
    pair,
    sizes_of,
)
from ._repeat import is_plain, keep, made_once, repeat
from ._torchscript import traced_op
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
# weight: [taps, taps, C]; images channels_last (csrc/ops/conv_bn_relu.h)
torch.library.define(
    "fastvision::conv_depthwise",
    "(Tensor input, Tensor weight, Tensor? scale, Tensor? shift, Tensor? residual, int[] stride, "
    "int[] padding, int activation, float negative_slope) -> Tensor",
)


def _fake(input: Tensor, weight: Tensor, *rest: Any) -> Tensor:
    stride, padding, dilation = rest[6:9]
    size = output_size(input.shape[2:], weight.shape[2:], stride, padding, dilation)
    output = input.new_empty((input.shape[0], weight.shape[0], *size))
    return output.to(memory_format=format_of(input))


def _cuda(*args: Any) -> Tensor:
    from ._conv_dispatch import run

    return run(*args)


def _triton(*args: Any) -> Tensor:
    from ._conv_dispatch import run_triton  # triton is imported only where it runs

    return run_triton(*args)


for _suffix in ("", "_triton"):
    torch.library.register_fake(f"fastvision::conv_bn_relu{_suffix}", _fake)
torch.library.impl("fastvision::conv_bn_relu", "CPU", _conv_cpu.conv_bn_relu)
torch.library.impl("fastvision::conv_bn_relu", "CUDA", _cuda)
torch.library.impl("fastvision::conv_bn_relu_triton", ("CPU", "CUDA"), _triton)

_OPS = torch.ops.fastvision
_OP = _OPS.conv_bn_relu.default
_TRITON_OP = _OPS.conv_bn_relu_triton.default


def _run(
    backend: str, tensors: Sequence[Any], options: Sequence[Any], *, once: bool = False
) -> Tensor:
    """The op without derivatives; the activation in ``options`` is an index. ``once``: with weights
    that change before the next call."""
    if backend == "reference":
        arguments = [*tensors, *options]
        arguments[-2] = ACTIVATIONS[arguments[-2]]
        return reference.conv_bn_relu(*arguments)
    # the dispatcher's boxing of so many arguments takes longer than a small convolution
    input = tensors[0]
    if backend == "triton":
        run: Any = _TRITON_OP
    else:
        eager = input.is_cpu and type(input) is Tensor and is_eager()
        kernel = _conv_cpu.conv_bn_relu_once if once else _conv_cpu.conv_bn_relu
        run = kernel if eager else _OP
    return run(*tensors, *options)


def _has_own_kernels(tensor: Tensor) -> bool:
    """Whether the CPU's kernels, which have no derivatives, may take the tensor in a training
    step."""
    return (
        is_eager()
        and not (is_transformed() or is_batched(tensor))
        and tensor.is_cpu
        and type(tensor) is Tensor
        and _extension.missing is None
    )


def _winograd_wins_once(
    input: Tensor,
    weight: Tensor,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
) -> bool:
    """Whether Winograd's algorithm is faster than torch's even if the weights are packed for it.

    In training they are in each step, which takes as long as some hundred pixels.
    """
    return (
        _has_own_kernels(input)
        and input.dtype == weight.dtype
        and input.shape[0] * input.shape[2] * input.shape[3] >= 1024
        and max(padding) <= 2
        and winograd_wins(input, weight, stride, dilation, groups)
        and not (
            _onednn.preferred(input, weight.shape, None, padding, groups, "none")
            and onednn_wins(input, weight.shape, winograd=True)
        )
    )


def _has_weight_gradient(grad: Tensor, input: Tensor, weight: Tensor, groups: int) -> bool:
    """Whether the CPU has a kernel for it: with 1x1 windows torch's matrix product is as fast."""
    K, C, R, S = weight.shape
    return (
        _has_own_kernels(grad)
        and _has_own_kernels(input)
        and groups == 1
        and R * S > 1
        and C >= 16
        and K % 16 == 0  # whole vectors of any level
        and input.dtype == grad.dtype == weight.dtype == torch.float32
        and input.numel() > 0
        and is_channels_last(input)
        and is_channels_last(grad)
    )


class _FrozenConvBNReLU(torch.autograd.Function):
    """With fixed statistics: the convolution's own gradients, from which follow all the others.

    Only of activations whose derivative the result tells. The backward is made of differentiable
    functions, so the second derivative is right as well.
    """

    @staticmethod
    def forward(ctx: Any, backend: str, options: tuple[Any, ...], *tensors: Any) -> Tensor:
        input, weight, *rest = tensors
        output = _run(backend, (input, weight.detach(), *rest), options, once=weight.requires_grad)
        *parameters, _residual = tensors
        ctx.save_for_backward(*parameters, output if options[-2] > 0 else None)
        ctx.options = options
        return output

    @staticmethod
    def backward(ctx: Any, grad: Any) -> tuple[Any, ...]:
        stride, padding, dilation, groups, eps, activation, negative_slope = ctx.options
        input, weight, bias, bn_weight, bn_bias, running_mean, running_var, output = (
            ctx.saved_tensors
        )
        needs = ctx.needs_input_grad[2:]
        dz = grad
        if output is not None:
            name = ACTIVATIONS[activation]
            dz = activation_gradient(grad, output.detach(), name, negative_slope)
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
    dx = dweight = dbias = None
    once = not torch.is_grad_enabled()  # the kernels have no derivatives
    if mask[0] and once and _winograd_wins_once(grad, weight, stride, padding, dilation, groups):
        # the convolution with the filters turned around
        turned = weight.flip(2, 3).transpose(0, 1).contiguous()
        packed = _OPS.conv_winograd_pack.default(turned, None)
        sides = (2 - side for side in padding)
        options = conv_options(input.shape[1], 3, 3, 1, 1, *sides, 1, 1, 1, 0)
        dx = _OPS.conv_winograd.default(grad, packed, None, options)
    if mask[1] and once and _has_weight_gradient(grad, input, weight, groups):
        numbers = (*weight.shape[2:], *stride, *padding, *dilation, 1, 0)
        options = conv_options(weight.shape[0], *numbers)
        dweight = _OPS.conv_weight_gradient.default(grad, input, options)
    rest = [mask[0] and dx is None, mask[1] and dweight is None, mask[2]]
    if any(rest):
        padded, symmetric = _symmetric(input, padding)
        by_torch = torch.ops.aten.convolution_backward(
            grad, padded, weight, [weight.shape[0]], stride, symmetric, dilation, False, [0, 0],
            groups, rest,
        )  # fmt: skip
        if rest[0]:
            left, _, top, _ = padding
            height, width = input.shape[2:]
            dx = by_torch[0]
            if padded is not input:
                dx = dx[:, :, top : top + height, left : left + width]
        if rest[1]:
            dweight = by_torch[1]
        dbias = by_torch[2]
    return dx, dweight, dbias


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
        input: [N, C, H, W] or [C, H, W]; float16, bfloat16, float32 or float64.
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
        residual: [N, K, OH, OW], or [K, OH, OW] beside such an input, added before the activation.
        activation: "none", "relu", "relu6", "leaky_relu", "silu", "hardswish" or "sigmoid".
        negative_slope: of leaky_relu.
        backend: "cuda", "triton", "cpp" or "reference"; None takes the fastest that can run.

    Returns:
        [N, K, OH, OW], or [K, OH, OW], in the dtype and memory format of ``input``; under autocast
        in autocast's dtype, as the convolution. Without training the normalization is part of the
        convolution's weight and bias (Ioffe and Szegedy 2015, section 3.1).

    Differentiable in all tensors but the running statistics, any number of times and in forward
    mode.

    On the CPU in float32 and channels_last, 3x3 convolutions of stride 1 with 32 input and 16
    output channels and more are computed by Winograd's minimal filtering in tiles of 4x4 pixels
    (Lavin and Gray, 2016). Its root mean square error is about twice that of the plain sum. All
    pixels of a tile depend on all that one of them does: NaN makes all of the tile NaN, infinite
    values make it undefined, and beside a huge value small ones lose digits, up to three pixels
    farther than the window reaches.

    Raises:
        TypeError, ValueError: arguments that do not fit; ``backend`` cannot run here.
    """
    norm = (bn_weight, bn_bias, running_mean, running_var)
    tensors: Any = (input, weight, bias, *norm, residual)
    call = ("conv", stride, padding, dilation, groups, eps, activation, negative_slope)
    plain = training is False and backend in (None, "cpp") and is_plain(tensors)
    if plain and (output := repeat(tensors, call)) is not None:
        return output
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
    if (
        (input.is_cpu or input.is_cuda)
        and input.is_floating_point()
        and input.dtype != torch.float64
        and torch.is_autocast_enabled(input.device.type)
    ):
        dtype = torch.get_autocast_dtype(input.device.type)
        input = input.to(dtype)
        if weight.dtype != torch.float32:  # which is packed as it is
            weight = weight.to(dtype)
        residual = residual.to(dtype) if isinstance(residual, Tensor) else residual
    if is_traced():
        named, sizes = (padding, 0) if isinstance(padding, str) else (None, padding)
        window = (sizes_of(stride), sizes_of(sizes), named, sizes_of(dilation), groups)
        ends = (activation, negative_slope, backend)
        tensors = (input, weight, bias, *norm, residual)  # as autocast made them
        return _TRACED(*tensors, training, momentum, eps, *window, *ends)
    check_maps(input, weight)
    check_activation(activation, negative_slope)
    check_normalization(training, momentum, eps)
    strides, dilations = pair(stride, "stride"), pair(dilation, "dilation")
    sides = paddings(padding, weight.shape[2:], strides, dilations)
    groups = integer(groups, "groups must be an integer")
    check_window(strides, sides, dilations, groups)
    K = weight.shape[0]
    if K % groups != 0:
        raise ValueError(f"groups must divide the {K} filters of weight, got {groups}")
    check_channels(
        input, f"weight {list(weight.shape)} and {groups} groups", groups * weight.shape[1]
    )
    check_parameters(
        K,
        input,
        running_mean,
        running_var,
        training,
        bias=bias,
        bn_weight=bn_weight,
        bn_bias=bn_bias,
    )
    size = output_size(input.shape[2:], weight.shape[2:], strides, sides, dilations)
    if min(size) < 1:
        raise ValueError(
            f"weight's window {list(weight.shape[2:])} with dilation {dilations} does not fit into "
            f"input {list(input.shape[2:])} with padding {sides}"
        )
    check_residual(residual, input, (input.shape[0], K, *size))
    if training:
        if choose(input, backend) == "cpp" and _winograd_wins_once(
            input, weight, strides, sides, dilations, groups
        ):
            x = conv_bn_relu(input, weight, bias, padding=sides, activation="none", backend=backend)
        else:
            x, symmetric = _symmetric(input, sides)
            filters, offset = weight.to(x.dtype), None if bias is None else bias.to(x.dtype)
            x = F.conv2d(x, filters, offset, strides, symmetric, dilations, groups)
        return batch_norm_relu(
            x,
            running_mean, running_var, bn_weight, bn_bias, True, momentum, eps,
            residual=residual, activation=activation, negative_slope=negative_slope,
            backend=None if backend == "cuda" else backend,
        )  # fmt: skip
    index = ACTIVATIONS.index(activation)
    options: Any = (strides, sides, dilations, groups, eps)
    if plain:
        layer = made_once(
            _conv_cpu.Layer, tensors[1:7], input.dtype, *options, index, negative_slope
        )
        keep(tensors, call, layer)
        return layer(input, residual, tensors[1:7])
    chosen = choose(input, backend)
    if chosen == "triton" and (backend or requested_by_environment) is None:
        chosen = "cuda"  # whose op measures which kernels are the fastest, Triton's among them
    tensors = (input, weight, bias, *norm, residual)  # as autocast made them
    transformed = is_transformed()
    if not transformed and not needs_gradient(tensors):
        return _run(chosen, tensors, (*options, index, negative_slope))
    if running_mean is not None and running_var is not None:
        tensors = (*tensors[:5], running_mean.detach(), running_var.detach(), residual)
    if transformed:
        return reference.conv_bn_relu(*tensors, *options, activation, negative_slope)  # type: ignore[call-arg]
    if activation in ("none", "relu", "relu6") or (
        activation == "leaky_relu" and negative_slope > 0
    ):
        return _FrozenConvBNReLU.apply(chosen, (*options, index, negative_slope), *tensors)
    z = _FrozenConvBNReLU.apply(chosen, (*options, 0, 0.0), *tensors)
    return activate(z, activation, negative_slope)


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
