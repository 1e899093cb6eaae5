"""Prepares the weights of a transposed convolution for its kernels."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from ..._memory_format import format_of
from ...reference.conv_transpose2d import normalization, scaled_filters
from .spec import ConvSpec, Weights

# stride[0] * stride[1]; with more, each phase has so few outputs that torch is as fast
MAX_PHASES = 64


@dataclass(frozen=True)
class Separable:
    """weight[c, c] = scale[c] * outer(rows, columns); zero between different channels."""

    rows: list[float]
    columns: list[float]
    scale: Tensor  # [C]


def separable_filter(weight: Tensor, groups: int) -> Separable | None:
    """Detects a per-channel filter that is separable up to its dtype's rounding; None otherwise.

    Bilinear upsampling is one (FCN, Long et al. 2015, section 3.3).
    """
    C, K = weight.shape[:2]
    if groups == 1 and C == K:
        if C > 1 and bool(weight[0, 1:].any()):  # avoids a pass over the whole weight
            return None
        filters = weight.diagonal().permute(2, 0, 1)
        if C > 1 and weight.count_nonzero() != filters.count_nonzero():
            return None
    elif groups == C and K == 1:
        filters = weight[:, 0]
    else:
        return None
    filters = filters.detach().double()  # [C, R, S]
    if filters.numel() == 0:
        return None
    c, y, x = torch.unravel_index(filters.abs().argmax(), filters.shape)
    rows, columns = filters[c, :, x] / filters[c, y, x], filters[c, y] / filters[c, y, x]
    scale = filters[:, y, x]
    error = (filters - scale[:, None, None] * rows[:, None] * columns).abs()
    # the factors and their product were rounded
    tolerance = 4 * torch.finfo(weight.dtype).eps * scale.abs()[:, None, None]
    if not bool((error <= tolerance).all()):  # also if NaN
        return None
    return Separable(rows.tolist(), columns.tolist(), scale)


@dataclass(frozen=True)
class Prepared:
    """Weights in the form a kernel reads; must not alias the originals."""

    separable: Separable | None = None  # scaled by the batch normalization
    packed: Tensor | None = None  # for the CPU engine, with normalization and bias
    weight: Tensor | None = None
    scale: Tensor | None = None  # [K], unless part of the weight
    shift: Tensor | None = None  # [K], unless part of `packed`


def prepare(weights: Weights, kind: str, dtype: torch.dtype, spec: ConvSpec) -> Prepared:
    """``kind``: "cpp", "winograd", "triton" or "aten"; ``dtype``: the compute dtype."""
    weight, groups = weights.weight.detach(), spec.groups
    wide = torch.promote_types(dtype, torch.float32)
    scale, shift = normalization(*weights[1:], spec.eps)
    shift = None if shift is None else shift.detach().to(wide, copy=True)
    separable = None
    # on a GPU, reading the weight would synchronize in every call
    if weight.is_cpu and spec.dilation == (1, 1):
        separable = separable_filter(weight, groups)
    if separable is not None:
        factor = separable.scale if scale is None else separable.scale * scale
        factor = factor.detach().to(wide).clone(memory_format=torch.contiguous_format)
        separable = Separable(separable.rows, separable.columns, factor)
        taps = None
        if kind == "triton":
            taps = torch.tensor([*separable.rows, *separable.columns], device=weight.device)
        return Prepared(separable=separable, weight=taps, shift=shift)
    if kind == "triton":  # applies the scale to the unrounded sums
        C, K, R, S = weight.shape
        filters = weight.view(groups, C // groups, K, R, S).permute(0, 2, 3, 4, 1)
        filters = filters.to(dtype).contiguous()  # [groups, K / groups, R, S, C / groups]
        scale = None if scale is None else scale.detach().to(wide)
        return Prepared(weight=filters.clone(), scale=scale, shift=shift)
    weight = scaled_filters(weight, scale, groups).detach().to(dtype)
    shift = None if shift is None else shift.to(dtype)
    if kind == "winograd":
        return Prepared(
            packed=torch.ops.fastvision.conv_transpose2d_winograd_pack.default(
                weight, shift, *spec.stride
            )
        )
    if kind == "cpp" and spec.stride[0] * spec.stride[1] <= MAX_PHASES:
        return Prepared(
            packed=torch.ops.fastvision.conv_transpose2d_pack.default(
                weight, shift, *spec.stride, *spec.dilation, groups
            )
        )
    return Prepared(weight=weight, shift=shift)


def _activate_(x: Tensor, activation: str, negative_slope: float) -> Tensor:
    """:func:`reference.activate` in place."""
    match activation:
        case "none":
            return x
        case "relu":
            return x.relu_()
        case "relu6":
            return F.hardtanh_(x, 0, 6)
        case "leaky_relu":
            return F.leaky_relu_(x, negative_slope)
        case "silu":
            return F.silu(x, inplace=True)
        case "hardswish":
            return F.hardswish(x, inplace=True)
    return x.sigmoid_()


def by_torch(input: Tensor, prepared: Prepared, residual: Tensor | None, spec: ConvSpec) -> Tensor:
    """Runs torch's own kernels, and the epilogue in place."""
    assert prepared.weight is not None
    dtype = prepared.weight.dtype
    bias = None if prepared.shift is None else prepared.shift.to(dtype)
    window = spec.arguments()[:5]
    y = F.conv_transpose2d(input.to(dtype), prepared.weight, bias, *window)
    if residual is not None:
        y += residual
    y = _activate_(y, spec.activation_name, spec.negative_slope)
    return y.to(input.dtype).contiguous(memory_format=format_of(input))
