"""Derivatives of convolutions, with our own kernels where they are faster than torch's."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from ... import _extension, reference
from ..._memory_format import is_channels_last, memory_format
from ...reference.activations import activate
from ...reference.conv_transpose2d import normalization, scaled_filters
from .._checks import is_batched, is_eager, is_transformed
from . import onednn
from .cpu import engine_options
from .operators import CONV, run
from .spec import ConvSpec, Weights, symmetric_padding
from .winograd import wins_once

_OPS = torch.ops.fastvision


_MOST_WEIGHTS = 9 << 19  # limits the memory of the sums of their gradient to 75 MB


def _has_own_kernels(tensor: Tensor) -> bool:
    """Whether our CPU kernels, which have no derivatives, may run on ``tensor`` in training."""
    return (
        is_eager()
        and not (is_transformed() or is_batched(tensor))
        and tensor.is_cpu
        and type(tensor) is Tensor
        and _extension.missing is None
    )


def winograd_wins_once(input: Tensor, weight: Tensor, spec: ConvSpec) -> bool:
    """Whether Winograd's algorithm beats torch's convolution including the packing of weights.

    Training packs them in every step, which takes as long as some hundred pixels.
    """
    return (
        _has_own_kernels(input)
        and input.dtype == weight.dtype
        and max(spec.padding) <= 2
        and wins_once(input, weight, spec)
    )


def _has_weight_gradient(grad: Tensor, input: Tensor, weight: Tensor, groups: int) -> bool:
    """Whether our direct CPU kernel has the fastest weight gradient. With 1x1 windows torch is as
    fast, with AVX-512 oneDNN is faster."""
    K, C, R, S = weight.shape
    return (
        _has_own_kernels(grad)
        and torch.float32 not in onednn.fast_dtypes()
        and _has_own_kernels(input)
        and groups == 1
        and R * S > 1
        and C >= 16
        and K % 16 == 0  # full vectors at every CPU level
        and input.dtype == grad.dtype == weight.dtype == torch.float32
        and input.numel() > 0
        and is_channels_last(input)
        and is_channels_last(grad)
    )


def _winograd_gradient_wins(grad: Tensor, input: Tensor, weight: Tensor, spec: ConvSpec) -> bool:
    """Whether Winograd's algorithm has the fastest weight gradient: with enough tiles for its
    sums, which are four times as many as the weights."""
    return (
        _has_own_kernels(grad)
        and _has_own_kernels(input)
        and input.dtype == grad.dtype == weight.dtype
        and spec.stride == (1, 1)
        and weight.numel() <= _MOST_WEIGHTS
        and wins_once(grad, weight, spec)
        and input.numel() > 0
        and max(spec.padding) <= 2
        and is_channels_last(input)
    )


class _FrozenConvBNReLU(torch.autograd.Function):
    """With fixed statistics: all gradients follow from those of the folded convolution.

    Only for activations whose output determines their derivative. The backward consists of
    differentiable functions, so second derivatives are right too.
    """

    @staticmethod
    def forward(ctx: Any, backend: str, spec: ConvSpec, *tensors: Any) -> Tensor:
        input, weight, *rest, residual = tensors
        weights = Weights(weight.detach(), *rest)
        output = run(backend, input, weights, residual, spec, once=weight.requires_grad)
        ctx.save_for_backward(input, weight, *rest, output if spec.activation > 0 else None)
        ctx.spec = spec
        return output

    @staticmethod
    def backward(ctx: Any, grad: Any) -> tuple[Any, ...]:
        spec: ConvSpec = ctx.spec
        input, weight, bias, bn_weight, bn_bias, running_mean, running_var, output = (
            ctx.saved_tensors
        )
        needs = ctx.needs_input_grad[2:]
        dz = grad
        if output is not None:
            change = _ACTIVATION_GRADIENTS[spec.activation_name]
            dz = change(grad, output.detach(), spec.negative_slope)
        folded, _ = reference.fold_batch_norm(
            weight, None, bn_weight, None, running_mean, running_var, spec.eps
        )
        of_weight = needs[1] or needs[3]
        of_bias = needs[2] or needs[3] or needs[4]
        dx, dfolded, dshift = _convolution_backward(
            dz, input, folded.to(dz.dtype), spec, (needs[0], of_weight, of_bias)
        )  # fmt: skip
        grads: list[Tensor | None] = [dx, dfolded, dshift, None, dshift, None, None, dz]
        if running_mean is not None and (of_weight or of_bias):
            # z = conv(x, w * scale) + (b - mean) * scale + shift with scale = bn_weight * invstd
            invstd = (running_var.to(folded.dtype) + spec.eps).rsqrt()
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


def _convolution_backward(
    grad: Tensor,
    input: Tensor,
    weight: Tensor,
    spec: ConvSpec,
    mask: tuple[bool, bool, bool],
) -> tuple[Any, Any, Any]:
    """Gradients of input, weight and bias, None where ``mask`` is False."""
    dx = dweight = dbias = None
    stride, padding, dilation, groups = spec[:4]
    once = not torch.is_grad_enabled()  # the kernels have no derivatives
    of_input = mask[0] and once and stride == (1, 1) and winograd_wins_once(grad, weight, spec)
    of_weight = mask[1] and once and _winograd_gradient_wins(grad, input, weight, spec)
    if of_weight or (of_input and is_channels_last(input)):
        grad = grad.contiguous(memory_format=memory_format(True))
    if of_input:  # a convolution with the turned filters
        K, C = weight.shape[:2]
        packed = _OPS.conv_winograd_pack.default(weight, None, True)
        left, right, top, bottom = padding
        sides = (2 - left, 2 - right, 2 - top, 2 - bottom)
        options = engine_options((C, K, 3, 3), spec._replace(padding=sides, activation=0))
        dx = _OPS.conv_winograd.default(grad, packed, None, options)
    if of_weight:
        options = engine_options(weight.shape, spec._replace(activation=0))
        dweight = _OPS.conv_winograd_gradient.default(grad, input, options)
    elif mask[1] and once and _has_weight_gradient(grad, input, weight, groups):
        options = engine_options(weight.shape, spec._replace(activation=0))
        dweight = _OPS.conv_weight_gradient.default(grad, input, options)
    if mask[2] and dweight is not None:  # torch would repeat the weight gradient
        dbias = grad.sum((0, 2, 3))
    rest = [mask[0] and dx is None, mask[1] and dweight is None, mask[2] and dbias is None]
    if any(rest):
        padded, symmetric = symmetric_padding(input, padding)
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
        if rest[2]:
            dbias = by_torch[2]
    return dx, dweight, dbias


def frozen_with_gradient(
    backend: str, input: Tensor, weights: Weights, residual: Tensor | None, spec: ConvSpec
) -> Tensor:
    """The operator with autograd, statistics being constants."""
    mean, var = weights.running_mean, weights.running_var
    if mean is not None and var is not None:
        weights = weights._replace(running_mean=mean.detach(), running_var=var.detach())
    tensors = (input, *weights, residual)
    name, slope = spec.activation_name, spec.negative_slope
    if is_transformed():
        return CONV.run["reference"](*tensors, *spec.arguments())
    if name in ("none", "relu", "relu6") or (name == "leaky_relu" and slope > 0):
        return _FrozenConvBNReLU.apply(backend, spec, *tensors)
    z = _FrozenConvBNReLU.apply(backend, spec._replace(activation=0, negative_slope=0.0), *tensors)
    return activate(z, name, slope)


# from the gradient and the output. If a gradient is needed, other activations run after the op
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
        spec: ConvSpec,
    ) -> Tensor:
        weights = Weights(weight.detach(), bias)
        output = run(backend, input, weights, residual, spec, once=weight.requires_grad)
        ctx.save_for_backward(input, weight, None if spec.activation == 0 else output)
        ctx.bias = None if bias is None else bias.dtype
        ctx.spec = spec
        return output

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        input, weight, output = ctx.saved_tensors
        spec: ConvSpec = ctx.spec
        stride, padding, output_padding, groups, dilation = spec.arguments()[:5]
        if output is not None:
            change = _ACTIVATION_GRADIENTS[spec.activation_name]
            grad = change(grad, output, spec.negative_slope)
        _, *needed, needs_residual = ctx.needs_input_grad[:5]
        grads: Sequence[Tensor | None] = (None, None, None)
        if any(needed):
            dtype = _compute_type(input)
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
        return None, d_input, d_weight, d_bias, d_residual, None


def _compute_type(input: Tensor) -> torch.dtype:
    """float32 for 16-bit inputs on the CPU, since few CPUs have 16-bit arithmetic."""
    return torch.promote_types(input.dtype, torch.float32) if input.is_cpu else input.dtype


def transposed_with_gradient(
    backend: str, input: Tensor, weights: Weights, residual: Tensor | None, spec: ConvSpec
) -> Tensor:
    """The operator with autograd; uses torch's functions under a functional transform."""
    scale, bias = normalization(*weights[1:], spec.eps)
    weight = scaled_filters(weights.weight, scale, spec.groups)
    name, slope = spec.activation_name, spec.negative_slope
    if is_transformed():
        bias = None if bias is None else bias.to(input.dtype)
        y = F.conv_transpose2d(input, weight.to(input.dtype), bias, *spec.arguments()[:5])
        return activate(y if residual is None else y + residual, name, slope)
    # with a negative slope, the output does not determine the sign of the input
    fused = name in ("none", *_ACTIVATION_GRADIENTS) and slope >= 0
    plain = spec if fused else spec._replace(activation=0)
    y = _ConvTranspose2d.apply(backend, input, weight, bias, residual, plain)
    return y if fused else activate(y, name, slope)
