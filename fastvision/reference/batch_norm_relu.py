"""Batch normalization, residual and activation, forward and backward, one step at a time."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from .activations import activate


def _wide(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))


def _over_channels(values: Tensor, x: Tensor) -> Tensor:
    return values.view(-1, *[1] * (x.dim() - 2))


def batch_norm_relu_statistics(
    input: Tensor,
    running_mean: Tensor | None = None,
    running_var: Tensor | None = None,
    momentum: float = 0.1,
) -> tuple[Tensor, Tensor]:
    """Per-channel mean and biased variance, [C] each, of [N, C, ...].

    Updates the running statistics in place, using the unbiased variance.
    """
    x = _wide(input)
    dims = [0, *range(2, x.dim())]
    var, mean = torch.var_mean(x, dims, correction=0)
    if running_mean is not None:
        running_mean.lerp_(mean.to(running_mean.dtype), momentum)
    if running_var is not None:
        count = x.numel() // x.shape[1]
        running_var.lerp_((var * (count / (count - 1))).to(running_var.dtype), momentum)
    return mean, var


def _normalized(input: Tensor, mean: Tensor, var: Tensor, eps: float) -> Tensor:
    x = _wide(input)
    return (x - _over_channels(mean, x)) * _over_channels((var + eps).rsqrt(), x)


def _pre_activation(
    input: Tensor,
    mean: Tensor,
    var: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    residual: Tensor | None,
    eps: float,
) -> Tensor:
    z = _normalized(input, mean, var, eps)
    if weight is not None:
        z = z * _over_channels(weight, z)
    if bias is not None:
        z = z + _over_channels(bias, z)
    return z if residual is None else z + residual.to(z.dtype)


def batch_norm_relu(
    input: Tensor,
    mean: Tensor,
    var: Tensor,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    residual: Tensor | None = None,
    eps: float = 1e-5,
    activation: str = "relu",
    negative_slope: float = 0.01,
) -> Tensor:
    """activation((input - mean) / sqrt(var + eps) * weight + bias + residual), rounded once at the
    end.

    Args:
        input: [N, C, ...] of any float dtype.
        mean, var, weight, bias: [C] in float32 or float64.
        residual: same shape as ``input``.
        eps: added to the variance.
        activation: one of ACTIVATIONS.
        negative_slope: slope of leaky_relu.

    Returns:
        Tensor with the shape and dtype of ``input``.
    """
    z = _pre_activation(input, mean, var, weight, bias, residual, eps)
    return activate(z, activation, negative_slope).to(input.dtype)


def batch_norm_relu_training(
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    residual: Tensor | None,
    momentum: float,
    eps: float,
    activation: str,
    negative_slope: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """:func:`batch_norm_relu` with the batch's mean and variance, which are returned too."""
    mean, var = batch_norm_relu_statistics(input, running_mean, running_var, momentum)
    affine = (mean, var, weight, bias)
    output = batch_norm_relu(input, *affine, residual, eps, activation, negative_slope)
    return output, mean, var


def activation_gradient(
    grad: Tensor, z: Tensor, activation: str, negative_slope: float = 0.01
) -> Tensor:
    """Gradient with respect to ``z``, given the gradient of ``activate(z)``.

    For relu, relu6 and leaky_relu with a positive slope, ``z`` may be the activation's output.
    """
    if activation == "relu":
        return torch.where(z <= 0, 0, grad)
    if activation == "relu6":
        return torch.where((z <= 0) | (z >= 6), 0, grad)
    if activation == "leaky_relu":
        return torch.where(z > 0, grad, grad * negative_slope)
    if activation == "hardswish":
        return torch.where(z <= -3, 0, torch.where(z >= 3, grad, grad * (z / 3 + 0.5)))
    if activation in ("silu", "sigmoid"):
        s = F.sigmoid(z)
        return grad * (s * (1 - s) if activation == "sigmoid" else s * (1 + z * (1 - s)))
    return grad


def batch_norm_relu_sums(
    grad: Tensor,
    input: Tensor,
    mean: Tensor,
    var: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    residual: Tensor | None,
    output: Tensor | None,
    eps: float,
    activation: str,
    negative_slope: float,
) -> tuple[Tensor, Tensor]:
    """Gradients of bias and weight, and of the residual.

    Returns:
        sums [2, C] of dz and of dz * (input - mean) / sqrt(var + eps), where dz is the gradient
        before the activation; and dz itself, which is the residual's gradient, if ``residual`` or
        ``output`` is given (else an empty tensor). An ``output`` determines the activation's
        derivative.
    """
    if output is not None:
        z = _wide(output)
    else:
        z = _pre_activation(input, mean, var, weight, bias, residual, eps)
    dz = activation_gradient(_wide(grad), z, activation, negative_slope)
    dims = [0, *range(2, z.dim())]
    sums = torch.stack([dz.sum(dims), (dz * _normalized(input, mean, var, eps)).sum(dims)])
    given = residual is not None or output is not None
    return sums, dz.to(grad.dtype) if given else sums.new_empty(0)


def batch_norm_relu_backward(
    grad: Tensor,
    input: Tensor,
    mean: Tensor,
    var: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    sums: Tensor | None,
    count: int,
    eps: float,
    activation: str,
    negative_slope: float,
) -> Tensor:
    """Gradient of the input (Ioffe and Szegedy 2015, section 3).

    Args:
        sums: result of :func:`batch_norm_relu_sums`; None treats the statistics as constants.
        count: number of elements per channel.
    """
    z = _pre_activation(input, mean, var, weight, bias, None, eps)
    dx = activation_gradient(_wide(grad), z, activation, negative_slope)
    if sums is not None:
        normalized, means = _normalized(input, mean, var, eps), sums / count
        dx = dx - _over_channels(means[0], z) - normalized * _over_channels(means[1], z)
    scale = (var + eps).rsqrt()
    scale = scale if weight is None else scale * weight
    return (dx * _over_channels(scale, z)).to(grad.dtype)


def batch_norm_relu_gradients(
    grad: Tensor,
    input: Tensor,
    mean: Tensor,
    var: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    residual: Tensor | None,
    output: Tensor | None,
    of_batch: bool,
    eps: float,
    activation: str,
    negative_slope: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """Results of :func:`batch_norm_relu_sums`, and the gradient of the input.

    Args:
        of_batch: whether the statistics are those of ``input``; otherwise they are constants.
    """
    affine, end = (mean, var, weight, bias), (eps, activation, negative_slope)
    sums, dz = batch_norm_relu_sums(grad, input, *affine, residual, output, *end)
    if residual is not None or output is not None:
        grad, end = dz, (eps, "none", 0.0)
    count = max(input.numel() // max(input.shape[1], 1), 1)
    total = sums if of_batch else None
    return sums, dz, batch_norm_relu_backward(grad, input, *affine, total, count, *end)
