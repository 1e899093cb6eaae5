"""Convolution, batch normalization with fixed statistics, residual, activation, in steps."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from .activations import activate


def fold_batch_norm(
    weight: Tensor,
    bias: Tensor | None,
    bn_weight: Tensor | None,
    bn_bias: Tensor | None,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    eps: float,
) -> tuple[Tensor, Tensor | None]:
    """Folds the normalization into the weight [K, ...] and bias [K] of the convolution before it.

    At inference batch normalization is a linear transform (Ioffe and Szegedy 2015, section 3.1).
    The results are in float32 or float64.
    """
    if running_mean is None or running_var is None:
        return weight, bias
    dtype = torch.promote_types(weight.dtype, torch.float32)
    scale = (running_var.to(dtype) + eps).rsqrt()
    if bn_weight is not None:
        scale = scale * bn_weight.to(dtype)
    shift = -running_mean.to(dtype) if bias is None else bias.to(dtype) - running_mean.to(dtype)
    shift = shift * scale
    if bn_bias is not None:
        shift = shift + bn_bias.to(dtype)
    return weight.to(dtype) * scale.view(-1, *[1] * (weight.dim() - 1)), shift


def conv_bn_relu(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    bn_weight: Tensor | None = None,
    bn_bias: Tensor | None = None,
    running_mean: Tensor | None = None,
    running_var: Tensor | None = None,
    residual: Tensor | None = None,
    stride: Sequence[int] = (1, 1),
    padding: Sequence[int] = (0, 0, 0, 0),
    dilation: Sequence[int] = (1, 1),
    groups: int = 1,
    eps: float = 1e-5,
    activation: str = "relu",
    negative_slope: float = 0.01,
) -> Tensor:
    """activation(batch_norm(conv2d(input, weight, bias)) + residual), rounded once at the end.

    Args:
        input: [N, C, H, W] of any float dtype.
        weight: [K, C / groups, R, S].
        bias, bn_weight, bn_bias, running_mean, running_var: [K], or None.
        residual: [N, K, OH, OW], or None.
        padding: left, right, top, bottom, as in :func:`torch.nn.functional.pad`.

    Returns:
        [N, K, OH, OW] in the dtype of ``input``.
    """
    dtype = torch.promote_types(input.dtype, torch.float32)
    weight, bias = fold_batch_norm(weight, bias, bn_weight, bn_bias, running_mean, running_var, eps)
    left, right, top, bottom = padding
    x = input.to(dtype)
    if left != right or top != bottom:
        x, left, top = F.pad(x, (left, right, top, bottom)), 0, 0
    y = F.conv2d(
        x,
        weight.to(dtype),
        None if bias is None else bias.to(dtype),
        tuple(stride),
        (top, left),
        tuple(dilation),
        groups,
    )
    if residual is not None:
        y = y + residual.to(dtype)
    return activate(y, activation, negative_slope).to(input.dtype)
