"""Transposed convolution, batch normalization with fixed statistics, residual, activation."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from .activations import activate


def fold_batch_norm_transposed(
    weight: Tensor,
    bias: Tensor | None,
    bn_weight: Tensor | None,
    bn_bias: Tensor | None,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    eps: float,
    groups: int,
) -> tuple[Tensor, Tensor | None]:
    """Weight [C, K / groups, R, S] and bias [K] of the transposed convolution that normalizes too.

    In float32 or better. Output channels are the second dimension of the weight, within each group.
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
    C, K = weight.shape[0], weight.shape[1]
    per_group = scale.view(groups, 1, K).expand(groups, C // groups, K).reshape(C, K, 1, 1)
    return weight.to(dtype) * per_group, shift


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
    """[N, K, OH, OW] of a float type, rounded once at the end.

    A transposed convolution is the gradient of a convolution (Zeiler et al. 2010; Dumoulin and
    Visin 2016, section 4): each input pixel adds its multiple of the filter at stride times its
    place, less the padding.
    """
    dtype = torch.promote_types(input.dtype, torch.float32)
    weight, bias = fold_batch_norm_transposed(
        weight, bias, bn_weight, bn_bias, running_mean, running_var, eps, groups
    )
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
