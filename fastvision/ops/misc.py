"""Layers made of a convolution, a normalization and an activation, run as one op."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from ..reference.activations import DEFAULT_SLOPE, activate
from ._checks import FLOATING, check_tensor
from .batch_norm_relu import batch_norm_relu
from .chain import Sequential, call_conv, can_call_conv


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
    dtype = x.dtype
    for buffer in (running_mean, running_var, weight, bias):
        dtype = torch.promote_types(dtype, buffer.dtype)
    if x.dim() == 4 and dtype in FLOATING:
        return batch_norm_relu(
            x.to(dtype), running_mean, running_var, weight, bias, eps=eps, activation="none"
        )
    # whatever else torchvision's formula takes
    channels = (running_mean, running_var, weight, bias)
    mean, var, w, b = (t.reshape(1, -1, 1, 1) for t in channels)
    scale = w * (var + eps).rsqrt()
    return x * scale + (b - mean * scale)


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
        nn.Module.__init__(self)  # torchvision's class may stand between (_torchvision_types.py)
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


def _same_padding(kernel_size: int | Sequence[int], dilation: int | Sequence[int]) -> Any:
    """What keeps the size for odd kernels, as in torchvision."""
    if isinstance(kernel_size, int) and isinstance(dilation, int):
        return (kernel_size - 1) // 2 * dilation
    kernel = (kernel_size,) * 2 if isinstance(kernel_size, int) else tuple(kernel_size)
    steps = (dilation,) * 2 if isinstance(dilation, int) else tuple(dilation)
    return tuple((k - 1) // 2 * d for k, d in zip(kernel, steps, strict=True))


class _ConvNormActivation(Sequential):
    """A convolution, a normalization and an activation."""

    def __init__(
        self,
        conv: nn.Conv2d | nn.ConvTranspose2d,
        norm_layer: Callable[..., nn.Module] | None,
        activation_layer: Callable[..., nn.Module] | None,
        inplace: bool | None,
    ) -> None:
        layers: list[nn.Module] = [conv]
        if norm_layer is not None:
            layers.append(norm_layer(conv.out_channels))
        if activation_layer is not None:
            layers.append(activation_layer(**({} if inplace is None else {"inplace": inplace})))
        nn.Sequential.__init__(self, *layers)  # torchvision's class may stand between
        self.out_channels = conv.out_channels


class Conv2dNormActivation(_ConvNormActivation):
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
        conv = nn.Conv2d(
            in_channels,
            out_channels,
            kernel_size,
            stride,
            _same_padding(kernel_size, dilation) if padding is None else padding,
            dilation,
            groups,
            norm_layer is None if bias is None else bias,
        )
        super().__init__(conv, norm_layer, activation_layer, inplace)


class ConvTranspose2dNormActivation(_ConvNormActivation):
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
        conv = nn.ConvTranspose2d(
            in_channels,
            out_channels,
            kernel_size,
            stride,
            _same_padding(kernel_size, dilation) if padding is None else padding,
            output_padding,
            groups,
            norm_layer is None if bias is None else bias,
            dilation,
        )
        super().__init__(conv, norm_layer, activation_layer, inplace)
