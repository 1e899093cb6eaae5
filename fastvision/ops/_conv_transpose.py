"""What runs transposed convolutions: weights made ready for a kernel, and the op on each device."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from ..reference.activations import ACTIVATIONS
from ..reference.conv_transpose2d import normalization, scaled_filters
from ._conv_cpu import conv_options
from ._convolution import format_of
from ._packing import Packs, remembered
from ._repeat import made_once

# stride, padding, output_padding, dilation: vertical, horizontal; activation: index in ACTIVATIONS
_SCHEMA = (
    "(Tensor input, Tensor weight, Tensor? bias, Tensor? bn_weight, Tensor? bn_bias, "
    "Tensor? running_mean, Tensor? running_var, Tensor? residual, SymInt[] stride, "
    "SymInt[] padding, SymInt[] output_padding, SymInt groups, SymInt[] dilation, float eps, "
    "int activation, float negative_slope) -> Tensor"
)
for _suffix in ("", "_triton"):
    torch.library.define(f"fastvision::conv_transpose2d{_suffix}", _SCHEMA)
torch.library.define(
    "fastvision::conv_transpose2d_separable",
    "(Tensor input, float[] rows, float[] columns, Tensor scale, Tensor? shift, "
    "Tensor? residual, int stride_y, int stride_x, int padding_y, int padding_x, int OH, int OW, "
    "int activation, float negative_slope) -> Tensor",
)
torch.library.define(
    "fastvision::conv_transpose2d_pack",
    "(Tensor weight, Tensor? bias, int stride_y, int stride_x, int dilation_y, int dilation_x, "
    "int groups) -> Tensor",
)
# options: csrc/ops/conv_engine.h, ConvOptions; right and bottom are less by the output padding
torch.library.define(
    "fastvision::conv_transpose2d_packed",
    "(Tensor input, Tensor packed, Tensor? residual, Tensor options) -> Tensor",
)

_OPS = torch.ops.fastvision
# of stride[0] * stride[1]: with more, each has so few outputs that torch's kernels are as fast
MOST_PHASES = 64


def output_size(
    size: Sequence[int],
    kernel: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    output_padding: Sequence[int],
    dilation: Sequence[int],
) -> tuple[int, int]:
    """Height and width of a transposed convolution's result."""
    height, width = (
        (n - 1) * s - 2 * p + d * (k - 1) + extra + 1
        for n, k, s, p, extra, d in zip(
            size, kernel, stride, padding, output_padding, dilation, strict=True
        )
    )
    return height, width


def _fake(input: Tensor, weight: Tensor, *rest: Any) -> Tensor:
    stride, padding, output_padding, groups, dilation = rest[6:11]
    kernel = weight.shape[2:]
    size = output_size(input.shape[2:], kernel, stride, padding, output_padding, dilation)
    output = input.new_empty((input.shape[0], weight.shape[1] * groups, *size))
    return output.to(memory_format=format_of(input))


@dataclass(frozen=True)
class _Separable:
    """weight[c, c] = scale[c] * outer(rows, columns), and nothing between channels."""

    rows: list[float]
    columns: list[float]
    scale: Tensor  # [C]


def separable_filter(weight: Tensor, groups: int) -> _Separable | None:
    """The factors of a filter that keeps the channels apart, up to its dtype's rounding, or None.

    Bilinear upsampling is of that kind (FCN, Long et al. 2015, section 3.3).
    """
    C, K = weight.shape[:2]
    if groups == 1 and C == K:
        if C > 1 and bool(weight[0, 1:].any()):  # spares the pass over the whole weight
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
    # each factor was rounded, and so was their product
    tolerance = 4 * torch.finfo(weight.dtype).eps * scale.abs()[:, None, None]
    if not bool((error <= tolerance).all()):  # NaN is not
        return None
    return _Separable(rows.tolist(), columns.tolist(), scale)


@dataclass(frozen=True)
class _Prepared:
    """Weights in the form that a kernel takes; must not alias the originals."""

    separable: _Separable | None = None  # scaled by the batch normalization
    packed: Tensor | None = None  # for the CPU's engine, with normalization and bias
    weight: Tensor | None = None
    scale: Tensor | None = None  # [K], where it is not in the weight
    shift: Tensor | None = None  # [K], where it is not in `packed`


def _prepare(
    tensors: Sequence[Any],  # weight, bias, and the four of the batch normalization
    kind: str,  # "cpp", "triton" or "aten"
    dtype: torch.dtype,  # to compute in
    stride: Sequence[int],
    groups: int,
    dilation: Sequence[int],
    eps: float,
) -> _Prepared:
    weight = tensors[0].detach()
    wide = torch.promote_types(dtype, torch.float32)
    scale, shift = normalization(*tensors[1:], eps)  # type: ignore[call-arg]
    shift = None if shift is None else shift.detach().to(wide, copy=True)
    separable = None
    # on a GPU the look at the weight would wait for the device in each call
    if weight.is_cpu and tuple(dilation) == (1, 1):
        separable = separable_filter(weight, groups)
    if separable is not None:
        factor = separable.scale if scale is None else separable.scale * scale
        factor = factor.detach().to(wide).clone(memory_format=torch.contiguous_format)
        separable = _Separable(separable.rows, separable.columns, factor)
        taps = None
        if kind == "triton":
            taps = torch.tensor([*separable.rows, *separable.columns], device=weight.device)
        return _Prepared(separable=separable, weight=taps, shift=shift)
    if kind == "triton":  # nothing is rounded before the result: the scale is applied to the sums
        C, K, R, S = weight.shape
        filters = weight.view(groups, C // groups, K, R, S).permute(0, 2, 3, 4, 1)
        filters = filters.to(dtype).contiguous()  # [groups, K / groups, R, S, C / groups]
        scale = None if scale is None else scale.detach().to(wide)
        return _Prepared(weight=filters.clone(), scale=scale, shift=shift)
    weight = scaled_filters(weight, scale, groups).detach().to(dtype)
    shift = None if shift is None else shift.to(dtype)
    if kind == "cpp" and stride[0] * stride[1] <= MOST_PHASES:
        return _Prepared(
            packed=_OPS.conv_transpose2d_pack(weight, shift, *stride, *dilation, groups)
        )
    return _Prepared(weight=weight, shift=shift)


def compute_type(input: Tensor) -> torch.dtype:
    """float32 for 16-bit inputs on the CPU, where few machines have arithmetic for them."""
    return torch.promote_types(input.dtype, torch.float32) if input.is_cpu else input.dtype


def _prepared(kind: str, dtype: torch.dtype, tensors: Sequence[Any], *options: Any) -> _Prepared:
    purpose = ("conv_transpose2d", kind, dtype, options)
    return remembered(tuple(tensors), purpose, _prepare, kind, dtype, *options)


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


def _aten(input: Tensor, prepared: _Prepared, args: Sequence[Any]) -> Tensor:
    """Through torch's own kernels, what follows in place."""
    residual, stride, padding, output_padding, groups, dilation, _, activation, slope = args
    assert prepared.weight is not None
    dtype = prepared.weight.dtype
    bias = None if prepared.shift is None else prepared.shift.to(dtype)
    options = (stride, padding, output_padding, groups, dilation)
    y = F.conv_transpose2d(input.to(dtype), prepared.weight, bias, *options)
    if residual is not None:
        y += residual
    y = _activate_(y, ACTIVATIONS[activation], slope)
    return y.to(input.dtype).contiguous(memory_format=format_of(input))


class Layer:
    """A layer on the CPU with its packed weights and options, ready for any input of its dtype."""

    def __init__(
        self,
        tensors: Sequence[Any],  # weight, bias, and the four of the batch normalization
        dtype: torch.dtype,  # the input's
        stride: tuple[int, int],
        padding: tuple[int, int],
        output_padding: tuple[int, int],
        groups: int,
        dilation: tuple[int, int],
        eps: float,
        activation: int,
        negative_slope: float,
    ) -> None:
        self.packs = Packs()
        C, K, *self.kernel = tensors[0].shape
        wide = torch.promote_types(dtype, torch.float32)
        self.preparation: Any = ("cpp", wide, stride, groups, dilation, eps)
        self.channels = C
        self.args: Any = (stride, padding, output_padding, groups, dilation, eps)
        self.args += (activation, negative_slope)
        (top, left), (bottom, right) = padding, output_padding
        self.options = conv_options(
            *(K * groups, *self.kernel, *stride, left, left - right, top, top - bottom),
            *(*dilation, groups, activation),
            negative_slope=negative_slope,
        )

    @property
    def checks(self) -> bool:
        """Whether its kernel, chosen in the first call, refuses what does not fit."""
        prepared = self.packs.find("prepared")
        return prepared is not None and prepared.weight is None

    def __call__(self, input: Tensor, residual: Tensor | None, tensors: tuple[Any, ...]) -> Tensor:
        """``tensors``: as the constructor's, with the same values."""
        prepared: _Prepared = self.packs.get(
            "prepared", tensors, lambda: _prepare(tensors, *self.preparation)
        )
        if prepared.packed is not None:
            return _OPS.conv_transpose2d_packed.default(
                input, prepared.packed, residual, self.options
            )
        if prepared.separable is None:
            return _aten(input, prepared, (residual, *self.args))
        stride, padding, output_padding, _, dilation, _, activation, slope = self.args
        sizes = (input.shape[2:], self.kernel, stride, padding, output_padding, dilation)
        separable = prepared.separable
        return _OPS.conv_transpose2d_separable.default(
            *(input, separable.rows, separable.columns, separable.scale, prepared.shift, residual),
            *(*stride, *padding, *output_size(*sizes), activation, slope),
        )


def _cpu(input: Tensor, *args: Any) -> Tensor:
    tensors, residual = args[:6], args[6]
    stride, padding, output_padding, groups, dilation, *rest = args[7:]
    windows = (tuple(stride), tuple(padding), tuple(output_padding), groups, tuple(dilation))
    return made_once(Layer, tensors, input.dtype, *windows, *rest)(input, residual, tensors)


def _cuda(input: Tensor, weight: Tensor, *args: Any) -> Tensor:
    """cuDNN, with the batch normalization folded in."""
    tensors, rest = (weight, *args[:5]), args[5:]
    options = (tuple(rest[1]), rest[4], tuple(rest[5]), rest[6])
    prepared = _prepared("aten", input.dtype, tensors, *options)
    return _aten(input, prepared, rest)


def _triton(input: Tensor, weight: Tensor, *args: Any) -> Tensor:
    from ..kernels.conv_transpose2d import launch_conv_transpose2d, launch_separable

    tensors, rest = (weight, *args[:5]), args[5:]
    residual, stride, padding, output_padding, groups, dilation, eps, activation, slope = rest
    stride, dilation = tuple(stride), tuple(dilation)
    prepared = _prepared("triton", input.dtype, tensors, stride, groups, dilation, eps)
    kernel = weight.shape[2:]
    size = output_size(input.shape[2:], kernel, stride, padding, output_padding, dilation)
    format = format_of(input)
    shape = (input.shape[0], weight.shape[1] * groups, *size)
    ends = (stride, tuple(padding), activation, slope)
    assert prepared.weight is not None
    if prepared.separable is not None:
        output = torch.empty(shape, dtype=input.dtype, device=input.device, memory_format=format)
        launch_separable(
            input.contiguous(memory_format=format),
            *(prepared.weight, tuple(kernel), prepared.separable.scale, prepared.shift),
            None if residual is None else residual.contiguous(memory_format=format),
            *(output, format == torch.channels_last, *ends),
        )
        return output
    # the kernels' own format is channels_last
    x = input.contiguous(memory_format=torch.channels_last)
    if residual is not None:
        residual = residual.contiguous(memory_format=torch.channels_last)
    output = torch.empty(
        shape, dtype=input.dtype, device=input.device, memory_format=torch.channels_last
    )
    launch_conv_transpose2d(
        *(x, prepared.weight, prepared.scale, prepared.shift, residual, output, groups),
        *(dilation, *ends),
    )
    return output.contiguous(memory_format=format)


for _suffix in ("", "_triton"):
    torch.library.register_fake(f"fastvision::conv_transpose2d{_suffix}", _fake)
torch.library.impl("fastvision::conv_transpose2d", "CPU", _cpu)
torch.library.impl("fastvision::conv_transpose2d", "CUDA", _cuda)
torch.library.impl("fastvision::conv_transpose2d_triton", ("CPU", "CUDA"), _triton)

FORWARD = {
    "cpp": _OPS.conv_transpose2d.default,
    "cudnn": _OPS.conv_transpose2d.default,
    "triton": _OPS.conv_transpose2d_triton.default,
}
