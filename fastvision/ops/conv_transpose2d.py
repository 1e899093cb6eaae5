"""Transposed convolution, batch normalization, residual and activation as one op."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.nn import functional as F

from .. import _device, reference
from ..reference.activations import ACTIVATIONS
from ..reference.conv_transpose2d import normalization, scaled_filters
from ._backend import choose, unsupported
from ._checks import check_tensor, is_transformed, needs_gradient
from ._conv_cpu import conv_options
from ._convolution import (
    check_channels,
    check_maps,
    check_parameters,
    check_residual,
    check_window,
    format_of,
)
from ._packing import remembered
from ._repeat import is_plain, keep, made_once, repeat
from .batch_norm_relu import batch_norm_relu

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
    if kind != "aten" and tuple(dilation) == (1, 1):
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


def _compute_type(input: Tensor) -> torch.dtype:
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


class _Layer:
    """A layer on the CPU with its weights and options, ready for any input of its dtype."""

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
        C, K, *self.kernel = tensors[0].shape
        wide = torch.promote_types(dtype, torch.float32)
        self.prepared = _prepare(tensors, "cpp", wide, stride, groups, dilation, eps)
        self.channels = C
        self.checks = self.prepared.weight is None  # whether its kernel refuses what does not fit
        self.args: Any = (stride, padding, output_padding, groups, dilation, eps)
        self.args += (activation, negative_slope)
        (top, left), (bottom, right) = padding, output_padding
        self.options = conv_options(
            *(K * groups, *self.kernel, *stride, left, left - right, top, top - bottom),
            *(*dilation, groups, activation),
            negative_slope=negative_slope,
        )

    def __call__(self, input: Tensor, residual: Tensor | None) -> Tensor:
        prepared = self.prepared
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
    return made_once(_Layer, tensors, input.dtype, *windows, *rest)(input, residual)


def _cuda(input: Tensor, weight: Tensor, *args: Any) -> Tensor:
    """cuDNN, with the batch normalization folded in; separable filters by the Triton kernel."""
    tensors, rest = (weight, *args[:5]), args[5:]
    options = (tuple(rest[1]), rest[4], tuple(rest[5]), rest[6])
    may_separate = weight.shape[0] == weight.shape[1] * rest[4] and input.dtype != torch.float64
    if (
        may_separate
        and unsupported("triton", "cuda", input.device.index) is None
        and _prepared("triton", input.dtype, tensors, *options).separable is not None
    ):
        return _triton(input, weight, *args)
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

_FORWARD = {
    "cpp": _OPS.conv_transpose2d.default,
    "cudnn": _OPS.conv_transpose2d.default,
    "triton": _OPS.conv_transpose2d_triton.default,
}

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
        # not remembered: weights that are trained change in each step, and gradcheck writes to them
        # in a way that torch does not count
        output = _FORWARD[backend](
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
    """A key of _FORWARD, or "reference"."""
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


def _pair(value: Any, name: str) -> tuple[int, int]:
    if type(value) is int:
        return value, value
    pair = tuple(value) if isinstance(value, (tuple, list)) else (value,)
    if not all(hasattr(size, "__index__") and not isinstance(size, bool) for size in pair):
        raise TypeError(f"{name} must be one or two integers, got {value!r}")
    if len(pair) not in (1, 2):
        raise ValueError(f"{name} must be one or two integers, got {value!r}")
    return pair[0], pair[-1]


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
    plain = not training and backend in (None, "cpp") and is_plain(tensors)
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
    check_maps(input, weight)
    if 0 in input.shape[2:] or 0 in weight.shape[1:]:
        raise ValueError(
            "input must have pixels, and weight filters: got shapes "
            f"{list(input.shape)} and {list(weight.shape)}"
        )
    if activation not in ACTIVATIONS:
        raise ValueError(f"activation must be one of {ACTIVATIONS}, got {activation!r}")
    strides, dilations = _pair(stride, "stride"), _pair(dilation, "dilation")
    paddings, extra = _pair(padding, "padding"), _pair(output_padding, "output_padding")
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
        layer = made_once(_Layer, tensors[1:7], input.dtype, *options)
        if layer.checks:
            keep(tensors, call, layer)
        return layer(input, residual)
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
    return _FORWARD[chosen](*tensors, *options, eps, index, negative_slope)


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
