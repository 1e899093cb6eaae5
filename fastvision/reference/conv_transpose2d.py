"""Transposed convolution, batch normalization with fixed statistics, residual, activation."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from .activations import activate


def normalization(
    bias: Tensor | None,
    bn_weight: Tensor | None,
    bn_bias: Tensor | None,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    eps: float,
) -> tuple[Tensor | None, Tensor | None]:
    """Scale and shift [K] for the sum without bias, in float32 or float64; None where unused."""
    if running_mean is None or running_var is None:
        return None, bias
    dtype = torch.promote_types(running_var.dtype, torch.float32)
    scale = (running_var.to(dtype) + eps).rsqrt()
    if bn_weight is not None:
        scale = scale * bn_weight.to(dtype)
    shift = -running_mean.to(dtype) if bias is None else bias.to(dtype) - running_mean.to(dtype)
    shift = shift * scale
    return scale, shift if bn_bias is None else shift + bn_bias.to(dtype)


def scaled_filters(weight: Tensor, scale: Tensor | None, groups: int) -> Tensor:
    """``weight`` [C, K / groups, R, S], each output channel multiplied by ``scale`` [K]."""
    if scale is None:
        return weight
    C, K = weight.shape[:2]
    per_group = scale.view(groups, 1, K).expand(groups, C // groups, K).reshape(C, K, 1, 1)
    return weight.to(torch.promote_types(weight.dtype, scale.dtype)) * per_group


def conv_transpose2d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    bn_weight: Tensor | None = None,
    bn_bias: Tensor | None = None,
    running_mean: Tensor | None = None,
    running_var: Tensor | None = None,
    residual: Tensor | None = None,
    stride: Sequence[int] = (1, 1),
    padding: Sequence[int] = (0, 0),
    output_padding: Sequence[int] = (0, 0),
    groups: int = 1,
    dilation: Sequence[int] = (1, 1),
    eps: float = 1e-5,
    activation: str = "none",
    negative_slope: float = 0.01,
) -> Tensor:
    """activation(batch_norm(conv_transpose2d(input, weight, bias)) + residual), rounded once.

    A transposed convolution is the gradient of a convolution (Zeiler et al. 2010; Dumoulin and
    Visin 2016, section 4): each input pixel adds a multiple of the filter to the output, at the
    pixel's position times the stride, minus the padding.

    Args:
        input: [N, C, H, W] of any float dtype.
        weight: [C, K / groups, R, S].
        bias, bn_weight, bn_bias, running_mean, running_var: [K], or None.
        residual: [N, K, OH, OW], or None.
        stride, padding, output_padding, dilation: (vertical, horizontal).

    Returns:
        [N, K, OH, OW] in the dtype of ``input``.
    """
    dtype = torch.promote_types(input.dtype, torch.float32)
    scale, bias = normalization(bias, bn_weight, bn_bias, running_mean, running_var, eps)
    weight = scaled_filters(weight, scale, groups)
    y = F.conv_transpose2d(
        input.to(dtype),
        weight.to(dtype),
        None if bias is None else bias.to(dtype),
        tuple(stride),
        tuple(padding),
        tuple(output_padding),
        groups,
        tuple(dilation),
    )
    if residual is not None:
        y = y + residual.to(dtype)
    return activate(y, activation, negative_slope).to(input.dtype)
