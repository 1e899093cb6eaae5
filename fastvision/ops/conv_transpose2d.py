"""Transposed convolution, batch normalization, residual and activation as one op."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.nn import functional as F

from .. import reference
from ..reference.activations import ACTIVATIONS
from ..reference.conv_transpose2d import fold_batch_norm_transposed
from ..reference.roi_align import is_channels_last
from ._backend import choose, unsupported
from ._checks import check_floating, check_tensor
from ._prepared import PreparedWeights

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
    "Tensor? residual, int[] stride, int[] padding, int[] output_size, int activation, "
    "float negative_slope) -> Tensor",
)
torch.library.define(
    "fastvision::conv_transpose2d_pack",
    "(Tensor weight, Tensor? bias, int[] stride, int[] dilation, int groups) -> Tensor",
)
torch.library.define(
    "fastvision::conv_transpose2d_packed",
    "(Tensor input, Tensor packed, Tensor? residual, int[] kernel, int[] stride, int[] padding, "
    "int[] output_padding, int[] dilation, int groups, int activation, float negative_slope) "
    "-> Tensor",
)

_OPS = torch.ops.fastvision
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


def _format_of(input: Tensor) -> torch.memory_format:
    return torch.channels_last if is_channels_last(input) else torch.contiguous_format


def _fake(input: Tensor, weight: Tensor, *rest: Any) -> Tensor:
    stride, padding, output_padding, groups, dilation = rest[6:11]
    kernel = weight.shape[2:]
    size = output_size(input.shape[2:], kernel, stride, padding, output_padding, dilation)
    output = input.new_empty((input.shape[0], weight.shape[1] * groups, *size))
    return output.to(memory_format=_format_of(input))


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
    """A weight with the batch normalization folded in, in the form that a kernel takes."""

    bias: Tensor | None
    separable: _Separable | None = None
    packed: Tensor | None = None  # includes the bias
    weight: Tensor | None = None


_PREPARED: PreparedWeights[_Prepared] = PreparedWeights()


def _prepare(
    tensors: Sequence[Tensor | None],  # weight, bias, and the four of the batch normalization
    dtype: torch.dtype,  # to compute in
    stride: Sequence[int],
    groups: int,
    dilation: Sequence[int],
    eps: float,
    form: str,
) -> _Prepared:
    original = tensors[0]
    assert original is not None
    weight, bias = fold_batch_norm_transposed(*tensors, eps, groups)  # type: ignore[arg-type]
    weight, bias = weight.to(dtype), None if bias is None else bias.to(dtype)
    if tuple(dilation) == (1, 1) and (separable := separable_filter(original, groups)):
        # the factors are those of the original weight, and the normalization scales each channel
        scale = fold_batch_norm_transposed(
            separable.scale.view(1, -1, 1, 1), None, *tensors[2:], eps, 1  # type: ignore[arg-type]
        )[0].flatten()
        wide = torch.promote_types(dtype, torch.float32)
        return _Prepared(
            None if bias is None else bias.to(wide),
            separable=_Separable(separable.rows, separable.columns, scale.to(wide)),
        )
    if form == "packed" and stride[0] * stride[1] <= MOST_PHASES:
        return _Prepared(None, packed=_OPS.conv_transpose2d_pack(weight, bias, stride, dilation, groups))
    return _Prepared(bias, weight=weight)


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


def _aten(
    input: Tensor,
    prepared: _Prepared,
    residual: Tensor | None,
    options: Sequence[Any],  # stride, padding, output_padding, groups, dilation
    activation: str,
    negative_slope: float,
) -> Tensor:
    """Through torch's own kernels, the rest in place."""
    assert prepared.weight is not None
    x = input.to(prepared.weight.dtype)
    y = F.conv_transpose2d(x, prepared.weight, prepared.bias, *options)
    if residual is not None:
        y += residual
    y = _activate_(y, activation, negative_slope)
    return y.to(input.dtype).contiguous(memory_format=_format_of(input))


def _compute_type(input: Tensor) -> torch.dtype:
    """float32 for 16-bit inputs on the CPU, where few machines have arithmetic for them."""
    return torch.promote_types(input.dtype, torch.float32) if input.is_cpu else input.dtype


def _prepared(
    input: Tensor, tensors: Sequence[Tensor | None], form: str, *options: Any
) -> _Prepared:
    dtype = _compute_type(input)
    return _PREPARED.get(
        tensors, (form, dtype, options), lambda: _prepare(tensors, dtype, *options, form)
    )


def _cpu(input: Tensor, weight: Tensor, *args: Any) -> Tensor:
    *rest, residual, stride, padding, output_padding, groups, dilation, eps = args[:-2]
    stride, dilation = tuple(stride), tuple(dilation)
    prepared = _prepared(input, (weight, *rest), "packed", stride, groups, dilation, eps)
    kernel = weight.shape
    if prepared.separable is not None:
        options = (stride, padding, output_padding, dilation)
        return _OPS.conv_transpose2d_separable(
            input,
            prepared.separable.rows,
            prepared.separable.columns,
            prepared.separable.scale,
            prepared.bias,
            residual,
            *(stride, padding, output_size(input.shape[2:], kernel[2:], *options)),
            *args[-2:],
        )
    if prepared.packed is not None:
        options = (stride, padding, output_padding, dilation)
        return _OPS.conv_transpose2d_packed(
            input, prepared.packed, residual, kernel, *options, groups, *args[-2:]
        )
    options = (stride, padding, output_padding, groups, dilation)
    return _aten(input, prepared, residual, options, ACTIVATIONS[args[-2]], args[-1])


def _cuda(input: Tensor, *args: Any) -> Tensor:
    raise NotImplementedError


def _triton(input: Tensor, *args: Any) -> Tensor:
    from ..kernels.conv_transpose2d import launch_conv_transpose2d  # triton only where it runs

    raise NotImplementedError(launch_conv_transpose2d)


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
        output = _FORWARD[backend](
            *(input, weight, bias, None, None, None, None, residual),
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
    if forward_ad._current_level >= 0 or torch._C._are_functorch_transforms_active():
        return _composed(*args)
    # of a negative slope the result does not tell the sign of what came in
    fused = activation in ("none", *_ACTIVATION_GRADIENTS) and negative_slope >= 0
    y = _ConvTranspose2d.apply(
        *(backend, input, weight, bias, residual, options),
        *(activation if fused else "none", negative_slope),
    )
    return y if fused else reference.activate(y, activation, negative_slope)


def _batch_norm_train(
    y: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    momentum: float,
    eps: float,
    residual: Tensor | None,
    activation: str,
    negative_slope: float,
) -> Tensor:
    """activation(batch_norm(y) + residual) with the batch's statistics."""
    y = F.batch_norm(y, running_mean, running_var, weight, bias, True, momentum, eps)
    if residual is not None:
        y = y + residual
    return reference.activate(y, activation, negative_slope)


def _choose(input: Tensor, requested: str | None, weight: Tensor, groups: int) -> str:
    """A key of _FORWARD, or "reference"."""
    backend = choose(input, requested)
    if requested is None and input.is_cuda and backend in ("cuda", "triton"):
        if unsupported("triton", "cuda", input.device.index) is None and _prefers_triton(
            input, weight, groups
        ):
            return "triton"
        return "cudnn"
    if backend == "cuda":
        raise ValueError(
            "backend='cuda' cannot run: transposed convolution has no CUDA C++ kernel, its backends "
            "are triton, cpp, reference and None"
        )
    return backend


def _prefers_triton(input: Tensor, weight: Tensor, groups: int) -> bool:
    """Where the tensor cores take the type and tiles are full; elsewhere cuDNN runs."""
    wide = min(weight.shape[0] // groups, weight.shape[1]) >= 16
    return (wide and input.element_size() == 2) or (groups > 1 and weight.shape[1] == 1)


def _pair(value: Any, name: str, least: int) -> tuple[int, int]:
    pair = tuple(value) if isinstance(value, (tuple, list)) else (value,)
    if not all(hasattr(size, "__index__") and not isinstance(size, bool) for size in pair):
        raise TypeError(f"{name} must be one or two integers, got {value!r}")
    if len(pair) not in (1, 2) or min(pair) < least:
        raise ValueError(f"{name} must be one or two integers from {least} on, got {value!r}")
    return pair[0], pair[-1]


def _check_vector(t: Tensor | None, name: str, size: int, input: Tensor) -> None:
    if t is None:
        return
    check_tensor(t, name)
    if tuple(t.shape) != (size,):
        raise ValueError(f"{name} must have shape [{size}], got {list(t.shape)}")
    check_floating(t, name)
    if t.device != input.device:
        raise ValueError(f"{name} must be on {input.device} as the input, got {t.device}")


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
    batch_norm: Sequence[Tensor | None] = (None, None, None, None),
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 0.0,
    residual: Tensor | None = None,
    activation: str = "none",
    negative_slope: float = 0.0,
) -> Tensor:
    check_tensor(input, "input")
    check_floating(input, "input")
    check_tensor(weight, "weight")
    if input.dim() == 3:  # without a batch
        residual = residual.unsqueeze(0) if isinstance(residual, Tensor) else residual
        args = (stride, padding, output_padding, groups, dilation, backend, batch_norm)
        rest = (training, momentum, eps, residual, activation, negative_slope)
        return _conv_transpose2d(input.unsqueeze(0), weight, bias, *args, *rest).squeeze(0)
    if input.dim() != 4 or 0 in input.shape[2:]:
        raise ValueError(
            f"input must have shape [N, C, H, W] or [C, H, W] with pixels, got {list(input.shape)}"
        )
    if not isinstance(groups, int) or groups < 1:
        raise ValueError(f"groups must be a positive integer, got {groups!r}")
    if weight.dim() != 4 or weight.shape[0] != input.shape[1] or 0 in weight.shape[1:]:
        raise ValueError(
            f"weight must have shape [{input.shape[1]}, K / groups, R, S] for input "
            f"{list(input.shape)}, got {list(weight.shape)}"
        )
    if weight.shape[0] % groups:
        raise ValueError(f"groups must divide the {weight.shape[0]} channels, got {groups}")
    if weight.device != input.device:
        raise ValueError(f"weight must be on {input.device} as the input, got {weight.device}")
    K = weight.shape[1] * groups
    strides, dilations = _pair(stride, "stride", 1), _pair(dilation, "dilation", 1)
    paddings = _pair(padding, "padding", 0)
    extra = _pair(output_padding, "output_padding", 0)
    for p, s, d in zip(extra, strides, dilations, strict=True):
        if p >= max(s, d):
            raise ValueError(
                f"output_padding must be smaller than stride or dilation, got {output_padding} "
                f"with stride {stride} and dilation {dilation}"
            )
    size = output_size(input.shape[2:], weight.shape[2:], strides, paddings, extra, dilations)
    if min(size) < 1:
        raise ValueError(f"padding must leave an output, got {padding} and an output of {size}")
    names = ("bn_weight", "bn_bias", "running_mean", "running_var")
    for t, name in zip((bias, *batch_norm), ("bias", *names), strict=True):
        _check_vector(t, name, K, input)
    normalizes = any(t is not None for t in batch_norm)
    if (batch_norm[2] is None) != (batch_norm[3] is None) or (
        normalizes and not training and batch_norm[2] is None
    ):
        raise ValueError(
            "running_mean and running_var must be given together, and whenever there is batch "
            "normalization without training"
        )
    if activation not in ACTIVATIONS:
        raise ValueError(f"activation must be one of {ACTIVATIONS}, got {activation!r}")
    if residual is not None:
        check_tensor(residual, "residual")
        if tuple(residual.shape) != (input.shape[0], K, *size):
            raise ValueError(
                f"residual must have the result's shape {[input.shape[0], K, *size]}, got "
                f"{list(residual.shape)}"
            )
        check_floating(residual, "residual")
    device = input.device.type
    if torch.is_autocast_enabled(device) and input.dtype != torch.float64:
        # the weight keeps its bits: it is folded and packed from them
        input = input.to(torch.get_autocast_dtype(device))
    elif weight.dtype != input.dtype:
        raise TypeError(f"weight must be {input.dtype} as the input, got {weight.dtype}")
    if residual is not None:
        residual = residual.to(input.dtype)

    chosen = _choose(input, backend, weight, groups)
    options = (strides, paddings, extra, groups, dilations)
    if training:
        y = _conv_transpose2d(
            input, weight, bias, strides, paddings, extra, groups, dilations, backend
        )
        bn_weight, bn_bias, running_mean, running_var = batch_norm
        norm = (running_mean, running_var, bn_weight, bn_bias, momentum, eps)
        return _batch_norm_train(y, *norm, residual, activation, negative_slope)
    tensors = (input, weight, bias, *batch_norm, residual)
    if chosen == "reference":
        return reference.conv_transpose2d(*tensors, *options, eps, activation, negative_slope)
    if forward_ad._current_level >= 0 or (
        torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors)
    ):
        weight, bias = fold_batch_norm_transposed(weight, bias, *batch_norm, eps, groups)
        ends = (residual, options, activation, negative_slope)
        return _differentiable(chosen, input, weight, bias, *ends)
    return _FORWARD[chosen](*tensors, *options, eps, ACTIVATIONS.index(activation), negative_slope)


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


# activation modules that the op has, with what tells their slope
_MODULES: dict[type[nn.Module], str] = {
    nn.ReLU: "relu",
    nn.ReLU6: "relu6",
    nn.LeakyReLU: "leaky_relu",
    nn.SiLU: "silu",
    nn.Hardswish: "hardswish",
    nn.Sigmoid: "sigmoid",
}


class ConvTranspose2dNormActivation(nn.Sequential):
    """Transposed convolution, normalization and activation, fused where they can be.

    The arguments are those of :class:`torchvision.ops.Conv2dNormActivation`, and ``output_padding``;
    the sub-modules are "0", "1" and "2", so that checkpoints of the plain ``nn.Sequential`` load.
    With other layers than ``nn.BatchNorm2d`` and the activations of
    :func:`conv_transpose2d_bn_relu`, or with hooks on a sub-module, they run one after the other.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | tuple[int, int] = 3,
        stride: int | tuple[int, int] = 1,
        padding: int | tuple[int, int] | None = None,
        groups: int = 1,
        norm_layer: Callable[..., nn.Module] | None = nn.BatchNorm2d,
        activation_layer: Callable[..., nn.Module] | None = nn.ReLU,
        dilation: int | tuple[int, int] = 1,
        inplace: bool | None = True,
        bias: bool | None = None,
        *,
        output_padding: int | tuple[int, int] = 0,
    ) -> None:
        if padding is None:
            kernel, dilations = _pair(kernel_size, "kernel_size", 1), _pair(dilation, "dilation", 1)
            padding = ((kernel[0] - 1) // 2 * dilations[0], (kernel[1] - 1) // 2 * dilations[1])
        layers: list[nn.Module] = [
            nn.ConvTranspose2d(
                in_channels,
                out_channels,
                kernel_size,
                stride,
                padding,
                output_padding,
                groups,
                norm_layer is None if bias is None else bias,
                dilation,
            )
        ]
        if norm_layer is not None:
            layers.append(norm_layer(out_channels))
        if activation_layer is not None:
            layers.append(activation_layer(**({} if inplace is None else {"inplace": inplace})))
        super().__init__(*layers)
        self.out_channels = out_channels

    def forward(self, input: Tensor) -> Tensor:
        conv, *rest = self
        norm = rest.pop(0) if rest and type(rest[0]) is nn.BatchNorm2d else None
        activation = _MODULES.get(type(rest[0])) if len(rest) == 1 else "none"
        if (
            type(conv) is not nn.ConvTranspose2d
            or len(rest) > 1
            or activation is None
            or (norm is not None and (norm.training or norm.running_mean is None))
            or any(module._forward_hooks or module._forward_pre_hooks for module in self)
        ):
            return super().forward(input)
        return conv_transpose2d_bn_relu(
            input,
            conv.weight,
            conv.bias,
            bn_weight=norm.weight if norm is not None else None,
            bn_bias=norm.bias if norm is not None else None,
            running_mean=norm.running_mean if norm is not None else None,
            running_var=norm.running_var if norm is not None else None,
            eps=norm.eps if norm is not None else 0.0,
            stride=conv.stride,
            padding=conv.padding,  # type: ignore[arg-type]
            output_padding=conv.output_padding,
            groups=conv.groups,
            dilation=conv.dilation,
            activation=activation,
            negative_slope=getattr(rest[0], "negative_slope", 0.01) if rest else 0.01,
        )
