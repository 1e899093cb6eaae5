"""Layers made of a convolution, a normalization and an activation, run as one op."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor, nn

from ..reference.activations import DEFAULT_SLOPE, activate
from ._checks import FLOATING, check_tensor, is_eager, needs_gradient
from ._normalization import frozen_at_once
from .batch_norm_relu import batch_norm_relu
from .chain import Sequential, call_conv, can_call_conv, run_layers
from .squeeze_excitation import SqueezeExcitation

__all__ = [
    "MLP",
    "Conv2dNormActivation",
    "Conv3dNormActivation",
    "ConvBNReLU2d",
    "ConvNormActivation",
    "ConvTranspose2dNormActivation",
    "FrozenBatchNorm2d",
    "Permute",
    "SqueezeExcitation",
    "interpolate",
]

interpolate = nn.functional.interpolate  # torchvision.ops.misc has it

# with fewer, torch's matrix product was up to 1.8 times as fast (AVX2 and AVX-512, Intel)
_MIN_ROWS_OF_MLP = 1024
_MIN_FROZEN = 100_000  # elements


def _is_faster_by_torch(x: Tensor) -> bool:
    """Whether an autograd.Function takes longer than the passes that it saves."""
    return (
        x.requires_grad
        and torch.is_grad_enabled()
        and is_eager()
        and x.is_cpu
        and x.element_size() >= 4
        and x.numel() < _MIN_FROZEN
    )


@torch.fx.wrap
def _frozen_batch_norm(
    x: Tensor,
    running_mean: Tensor,
    running_var: Tensor,
    weight: Tensor,
    bias: Tensor,
    eps: float,
) -> Tensor:
    check_tensor(x, "x")
    channels = (running_mean, running_var, weight, bias)
    dtype = weight.dtype
    if x.dim() == 4 and x.dtype in FLOATING and all(t.dtype is dtype for t in channels):
        if (
            x.dtype is not dtype
            and torch.promote_types(x.dtype, dtype) is dtype
            and not needs_gradient((x, *channels))
        ):
            x = x.to(dtype)  # the type of the result; with a gradient the formula is as fast
        if x.dtype is dtype and not _is_faster_by_torch(x):
            y = frozen_at_once(x, *channels, eps)
            return batch_norm_relu(x, *channels, eps=eps, activation="none") if y is None else y
    # of other dtypes and shapes torchvision's formula, which promotes them
    dtype = functools.reduce(torch.promote_types, (t.dtype for t in channels), x.dtype)
    wide = torch.promote_types(dtype, torch.float32)
    mean, var, w, b = (t.to(wide).reshape(1, -1, 1, 1) for t in channels)
    scale = w * (var + eps).rsqrt()
    return (x * scale).add_(b - mean * scale).to(dtype)


class FrozenBatchNorm2d(nn.Module):
    """Batch normalization whose statistics and affine parameters are buffers: they never change.

    The result has the type that torch promotes input and buffers to, as with torchvision's.

    Args:
        num_features: channels of the [N, C, H, W] input.
        eps: added to the variance.
    """

    weight: Tensor
    bias: Tensor
    running_mean: Tensor
    running_var: Tensor

    def __init__(self, num_features: int, eps: float = 1e-5) -> None:
        nn.Module.__init__(self)  # torchvision's class may stand between (integrations/torchvision)
        self.eps = eps
        self.register_buffer("weight", torch.ones(num_features))
        self.register_buffer("bias", torch.zeros(num_features))
        self.register_buffer("running_mean", torch.zeros(num_features))
        self.register_buffer("running_var", torch.ones(num_features))

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any
    ) -> None:
        state_dict.pop(prefix + "num_batches_tracked", None)  # in checkpoints of BatchNorm2d
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)

    def forward(self, x: Tensor) -> Tensor:
        statistics = self.running_mean, self.running_var
        return _frozen_batch_norm(x, *statistics, self.weight, self.bias, self.eps)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.weight.shape[0]}, eps={self.eps})"


class ConvBNReLU2d(nn.Module):
    """activation(bn(conv(input)) + residual), see :func:`conv_bn_relu`.

    ``conv`` is a :class:`torch.nn.Conv2d` and ``bn`` a :class:`torch.nn.BatchNorm2d`, so state
    dicts have the keys ``conv.*`` and ``bn.*``. ``bn`` may be replaced by a SyncBatchNorm, whose
    statistics are then those of all its processes (on the CPU too), by a FrozenBatchNorm2d, or by
    another module. If one of the two has hooks, they run as separate layers.

    Args:
        in_channels, out_channels, kernel_size, stride, padding, dilation, groups, padding_mode: of
            :class:`torch.nn.Conv2d`.
        bias: of the convolution; without, since the normalization would remove it.
        eps, momentum: of the batch normalization.
        activation, negative_slope: see :func:`conv_bn_relu`.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | tuple[int, int],
        stride: int | tuple[int, int] = 1,
        padding: int | tuple[int, int] | str = 0,
        dilation: int | tuple[int, int] = 1,
        groups: int = 1,
        bias: bool = False,
        padding_mode: Literal["zeros", "reflect", "replicate", "circular"] = "zeros",
        device: Any = None,
        dtype: Any = None,
        *,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        activation: str = "relu",
        negative_slope: float = DEFAULT_SLOPE,
    ) -> None:
        super().__init__()
        self.conv = nn.Conv2d(
            in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias,
            padding_mode, device, dtype,
        )  # fmt: skip
        self.bn = nn.BatchNorm2d(out_channels, eps, momentum, device=device, dtype=dtype)
        self.activation = activation
        self.negative_slope = negative_slope

    def forward(self, input: Tensor, residual: Tensor | None = None) -> Tensor:
        if can_call_conv(input, self.conv, self.bn):
            return call_conv(
                input, self.conv, self.bn, self.activation, self.negative_slope, residual
            )
        z = self.bn(self.conv(input))
        z = z if residual is None else z + residual
        return activate(z, self.activation, self.negative_slope)

    def extra_repr(self) -> str:
        slope = f", negative_slope={self.negative_slope}"
        return f"activation={self.activation}" + slope * (self.activation == "leaky_relu")


def _same_padding(kernel_size: Any, dilation: Any) -> Any:
    """What keeps the size for odd kernels, as in torchvision."""
    if isinstance(kernel_size, int) and isinstance(dilation, int):
        return (kernel_size - 1) // 2 * dilation
    dims = len(dilation if isinstance(kernel_size, int) else kernel_size)
    kernel = (kernel_size,) * dims if isinstance(kernel_size, int) else tuple(kernel_size)
    steps = (dilation,) * dims if isinstance(dilation, int) else tuple(dilation)
    return tuple((k - 1) // 2 * d for k, d in zip(kernel, steps, strict=True))


class ConvNormActivation(Sequential):
    """A Sequential of convolution, normalization and activation of any number of dimensions.

    torchvision's constructor, except that it may be used directly, without a warning. See
    :class:`~fastvision.ops.Conv2dNormActivation`, which runs as one op and explains the other
    arguments; of other convolutions, layers run as one op as far as
    :class:`~fastvision.ops.Sequential` does it.

    Args:
        conv_layer: makes the convolution.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | tuple[int, ...] = 3,
        stride: int | tuple[int, ...] = 1,
        padding: int | tuple[int, ...] | str | None = None,
        groups: int = 1,
        norm_layer: Callable[..., nn.Module] | None = nn.BatchNorm2d,
        activation_layer: Callable[..., nn.Module] | None = nn.ReLU,
        dilation: int | tuple[int, ...] = 1,
        inplace: bool | None = True,
        bias: bool | None = None,
        conv_layer: Callable[..., nn.Module] = nn.Conv2d,
    ) -> None:
        conv = conv_layer(
            in_channels,
            out_channels,
            kernel_size,
            stride,
            _same_padding(kernel_size, dilation) if padding is None else padding,
            dilation=dilation,
            groups=groups,
            bias=norm_layer is None if bias is None else bias,
        )
        layers = [conv]
        if norm_layer is not None:
            layers.append(norm_layer(out_channels))
        if activation_layer is not None:
            layers.append(activation_layer(**({} if inplace is None else {"inplace": inplace})))
        nn.Sequential.__init__(self, *layers)  # torchvision's class may stand between
        self.out_channels = out_channels


class Conv2dNormActivation(ConvNormActivation):
    """A Sequential of convolution, normalization and activation that runs as one op.

    torchvision's constructor and state dict (``0.*``, ``1.*``). It is one op where ``norm_layer``
    makes a BatchNorm2d, SyncBatchNorm (whose statistics are those of all its processes, on the CPU
    too), FrozenBatchNorm2d or is None, and ``activation_layer`` a ReLU, ReLU6, LeakyReLU, SiLU,
    Hardswish, Sigmoid or is None. Otherwise, and where a layer has hooks, layer by layer.

    Args:
        in_channels, out_channels, kernel_size, stride, dilation, groups: of the convolution.
        padding: of the convolution; ``(kernel_size - 1) // 2 * dilation`` if None.
        norm_layer: called with ``out_channels``.
        activation_layer: called with ``inplace`` unless that is None.
        inplace: of the activation, where it runs as a layer.
        bias: of the convolution; if None, only without a ``norm_layer``.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | tuple[int, int] = 3,
        stride: int | tuple[int, int] = 1,
        padding: int | tuple[int, int] | str | None = None,
        groups: int = 1,
        norm_layer: Callable[..., nn.Module] | None = nn.BatchNorm2d,
        activation_layer: Callable[..., nn.Module] | None = nn.ReLU,
        dilation: int | tuple[int, int] = 1,
        inplace: bool | None = True,
        bias: bool | None = None,
    ) -> None:
        ConvNormActivation.__init__(
            self, in_channels, out_channels, kernel_size, stride, padding, groups, norm_layer,
            activation_layer, dilation, inplace, bias, nn.Conv2d,
        )  # fmt: skip


class Conv3dNormActivation(ConvNormActivation):
    """A Sequential of 3-D convolution, normalization and activation.

    torchvision's constructor and state dict (``0.*``, ``1.*``). The convolution is torch's; on
    large maps, a BatchNorm3d and the activation after it run as one op, see :func:`norm_act`. The
    arguments are those of :class:`Conv2dNormActivation`, for [N, C, D, H, W] volumes.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | tuple[int, int, int] = 3,
        stride: int | tuple[int, int, int] = 1,
        padding: int | tuple[int, int, int] | str | None = None,
        groups: int = 1,
        norm_layer: Callable[..., nn.Module] | None = nn.BatchNorm3d,
        activation_layer: Callable[..., nn.Module] | None = nn.ReLU,
        dilation: int | tuple[int, int, int] = 1,
        inplace: bool | None = True,
        bias: bool | None = None,
    ) -> None:
        ConvNormActivation.__init__(
            self, in_channels, out_channels, kernel_size, stride, padding, groups, norm_layer,
            activation_layer, dilation, inplace, bias, nn.Conv3d,
        )  # fmt: skip


class ConvTranspose2dNormActivation(ConvNormActivation):
    """:class:`Conv2dNormActivation` of a transposed convolution.

    The same arguments and ``output_padding``; the state dict of the plain Sequential.
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
        ConvNormActivation.__init__(
            self, in_channels, out_channels, kernel_size, stride, padding, groups, norm_layer,
            activation_layer, dilation, inplace, bias,
            functools.partial(nn.ConvTranspose2d, output_padding=output_padding),
        )  # fmt: skip


class MLP(Sequential):
    """A multi-layer perceptron: linear layers with normalization, activation and dropout between.

    torchvision's constructor, initialization and state dict. Without gradients, on the CPU and with
    many rows, a linear layer and the activation after it are one op, see :func:`linear_act`.

    Args:
        in_channels: features of the [..., in_channels] input.
        hidden_channels: features after each linear layer; at least one.
        norm_layer: called with the features after each linear layer but the last; None for none.
        activation_layer: called after it, but not after the last linear layer; None for none.
        inplace: of activation and dropout, unless None.
        bias: of the linear layers.
        dropout: probability of the dropout at the end of each layer.

    Raises:
        ValueError: ``hidden_channels`` is empty.
    """

    def __init__(
        self,
        in_channels: int,
        hidden_channels: list[int],
        norm_layer: Callable[..., nn.Module] | None = None,
        activation_layer: Callable[..., nn.Module] | None = nn.ReLU,
        inplace: bool | None = None,
        bias: bool = True,
        dropout: float = 0.0,
    ) -> None:
        if not hidden_channels:
            raise ValueError("hidden_channels must have at least one element, got none")
        options = {} if inplace is None else {"inplace": inplace}
        layers: list[nn.Module] = []
        last = len(hidden_channels) - 1
        for i, features in enumerate(hidden_channels):
            layers.append(nn.Linear(in_channels, features, bias=bias))
            if i < last and norm_layer is not None:
                layers.append(norm_layer(features))
            if i < last and activation_layer is not None:
                layers.append(activation_layer(**options))
            layers.append(nn.Dropout(dropout, **options))
            in_channels = features
        nn.Sequential.__init__(self, *layers)  # torchvision's class may stand between

    def forward(self, input: Any) -> Any:
        if (
            isinstance(input, Tensor)
            and is_eager()
            and input.is_cpu
            and input.dim() > 0
            and input.numel() >= _MIN_ROWS_OF_MLP * input.shape[-1]
            and not needs_gradient((input, *self.parameters()))
        ):
            return run_layers(self._modules.values(), input)
        return nn.Sequential.forward(self, input)


class Permute(nn.Module):
    """Returns a view of its input with permuted dimensions, see :func:`torch.permute`.

    Args:
        dims: the order of the dimensions of the input in the result.
    """

    def __init__(self, dims: list[int]) -> None:
        nn.Module.__init__(self)  # torchvision's class may stand between
        self.dims = dims

    def forward(self, x: Tensor) -> Tensor:
        return torch.permute(x, self.dims)
