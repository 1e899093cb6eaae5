"""The modules that a fused model runs: frozen weights, one op per call."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .. import ops
from ..ops._checks import is_eager, is_transformed, needs_gradient
from ..ops._conv_transpose import output_size as transposed_size
from ..ops._convolution import output_size, paddings, pair
from ..ops.linear_act import linear_act
from ..reference.activations import activate


class Norm(NamedTuple):
    """A batch normalization with fixed statistics, whatever module it was."""

    weight: Tensor | None
    bias: Tensor | None
    mean: Tensor
    var: Tensor
    eps: float


def is_channels_last(x: Tensor) -> bool:
    """Whether ``x``, [N, C, H, W] or [C, H, W], is in channels_last and not contiguous as well."""
    if x.is_contiguous() or x.dim() not in (3, 4):
        return False
    x = x if x.dim() == 4 else x.unsqueeze(0)
    return x.is_contiguous(memory_format=torch.channels_last)


def _frozen(tensor: Tensor | None) -> nn.Parameter | None:
    return None if tensor is None else nn.Parameter(tensor.detach(), requires_grad=False)


class _Fused(nn.Module):
    """What the fused layers share: weight, bias and an activation."""

    weight: Tensor
    bias: Tensor | None

    def __init__(
        self, weight: Tensor, bias: Tensor | None, activation: str, negative_slope: float
    ) -> None:
        super().__init__()
        self.weight = _frozen(weight)  # type: ignore[assignment]
        self.register_parameter("bias", _frozen(bias))
        self.activation, self.negative_slope = activation, negative_slope
        self.training = False

    def _sizes(self) -> str:
        return ", ".join(map(str, self.weight.shape))

    def extra_repr(self) -> str:
        return f"weight=[{self._sizes()}], bias={self.bias is not None}, {self.activation}"


class _FusedConvolution(_Fused):
    """activation(convolution(x) + residual); a batch normalization is part of the weights."""

    def __init__(
        self,
        convolution: nn.Conv2d | nn.ConvTranspose2d,
        weight: Tensor,
        bias: Tensor | None,
        activation: str = "none",
        negative_slope: float = 0.01,
        channels_last: bool = False,
    ) -> None:
        super().__init__(weight, bias, activation, negative_slope)
        self.stride = pair(convolution.stride, "stride")
        self.dilation = pair(convolution.dilation, "dilation")
        self.padding: Any = convolution.padding
        self.groups = convolution.groups
        self.channels_last = channels_last

    def extra_repr(self) -> str:
        options = f"stride={self.stride}, padding={self.padding}, groups={self.groups}"
        return f"{super().extra_repr()}, {options}, channels_last={self.channels_last}"

    def forward(self, input: Tensor, *, residual: Any = None, in_place: bool = False) -> Tensor:
        """``residual``: a tensor or number. ``in_place``: whether it is added as by +=."""
        if input.dim() == 3:  # one image, as torch's convolutions take it
            residual = residual.unsqueeze(0) if isinstance(residual, Tensor) else residual
            y = self.forward(input.unsqueeze(0), residual=residual, in_place=in_place)
            return y.squeeze(0)
        transformed = is_transformed()
        if self.channels_last and not transformed:  # vmap knows no memory formats
            input = input.contiguous(memory_format=torch.channels_last)
        backend = "reference" if transformed else None
        if residual is None or (
            isinstance(residual, Tensor)
            and residual.dtype == input.dtype
            and residual.shape == self._output_shape(input)
        ):
            return self._run(input, residual, self.activation, backend)
        # an addition that broadcasts or promotes
        y = self._run(input, None, "none", backend)
        if in_place:
            y += residual
        else:
            y = y + residual
        return activate(y, self.activation, self.negative_slope)

    def _output_shape(self, x: Tensor) -> tuple[int, ...]:
        raise NotImplementedError

    def _run(
        self, x: Tensor, residual: Tensor | None, activation: str, backend: str | None
    ) -> Tensor:
        raise NotImplementedError


class FusedConv2d(_FusedConvolution):
    """See :func:`fastvision.ops.conv_bn_relu`."""

    def __init__(self, convolution: nn.Conv2d, *arguments: Any, **options: Any) -> None:
        super().__init__(convolution, *arguments, **options)
        kernel = self.weight.shape[2:]
        self._padding = paddings(self.padding, kernel, self.stride, self.dilation)

    def _output_shape(self, x: Tensor) -> tuple[int, ...]:
        size = output_size(
            x.shape[2:], self.weight.shape[2:], self.stride, self._padding, self.dilation
        )
        return (x.shape[0], self.weight.shape[0], *size)

    def _run(
        self, x: Tensor, residual: Tensor | None, activation: str, backend: str | None
    ) -> Tensor:
        return ops.conv_bn_relu(
            x,
            self.weight,
            self.bias,
            stride=self.stride,
            padding=self._padding,
            dilation=self.dilation,
            groups=self.groups,
            residual=residual,
            activation=activation,
            negative_slope=self.negative_slope,
            backend=backend,
        )


class FusedConvTranspose2d(_FusedConvolution):
    """See :func:`fastvision.ops.conv_transpose2d_bn_relu`."""

    def __init__(self, convolution: nn.ConvTranspose2d, *arguments: Any, **options: Any) -> None:
        super().__init__(convolution, *arguments, **options)
        self.kernel_size = tuple(convolution.kernel_size)
        self.output_padding = tuple(convolution.output_padding)

    def forward(
        self,
        input: Tensor,
        output_size: list[int] | None = None,
        *,
        residual: Any = None,
        in_place: bool = False,
    ) -> Tensor:
        if output_size is None:
            return super().forward(input, residual=residual, in_place=in_place)
        assert residual is None, "no chain begins with a call that has options"
        options = self.stride, self.padding, self.kernel_size, 2, self.dilation
        theirs: Any = nn.ConvTranspose2d
        padding = theirs._output_padding(self, input, output_size, *options)
        y = F.conv_transpose2d(
            input, self.weight, self.bias, self.stride, self.padding, padding,
            self.groups, self.dilation,
        )  # fmt: skip
        return activate(y, self.activation, self.negative_slope)

    def _output_shape(self, x: Tensor) -> tuple[int, ...]:
        size = transposed_size(
            x.shape[2:],
            self.weight.shape[2:],
            self.stride,
            self.padding,
            self.output_padding,
            self.dilation,
        )
        return (x.shape[0], self.weight.shape[1] * self.groups, *size)

    def _run(
        self, x: Tensor, residual: Tensor | None, activation: str, backend: str | None
    ) -> Tensor:
        return ops.conv_transpose2d_bn_relu(
            x,
            self.weight,
            self.bias,
            stride=self.stride,
            padding=self.padding,
            output_padding=self.output_padding,
            groups=self.groups,
            dilation=self.dilation,
            residual=residual,
            activation=activation,
            negative_slope=self.negative_slope,
            backend=backend,
        )


class FusedLinear(_Fused):
    """See :func:`fastvision.ops.linear_act.linear_act`."""

    def forward(self, input: Tensor) -> Tensor:
        if torch.is_autocast_enabled(input.device.type) or is_transformed():
            return activate(
                F.linear(input, self.weight, self.bias), self.activation, self.negative_slope
            )
        return linear_act(
            input,
            self.weight,
            self.bias,
            activation=self.activation,
            negative_slope=self.negative_slope,
        )


class FusedBatchNorm2d(nn.Module):
    """relu(batch_norm(x)) with fixed statistics."""

    def __init__(self, norm: Norm) -> None:
        super().__init__()
        self.weight, self.bias = _frozen(norm.weight), _frozen(norm.bias)
        self.running_mean, self.running_var = _frozen(norm.mean), _frozen(norm.var)
        self.eps = norm.eps
        self.training = False

    def extra_repr(self) -> str:
        return f"{len(self.running_mean)}, eps={self.eps}, relu"  # type: ignore[arg-type]

    def forward(self, input: Tensor) -> Tensor:
        statistics = self.running_mean, self.running_var
        if is_transformed() or torch.is_autocast_enabled(input.device.type):
            return F.relu(F.batch_norm(input, *statistics, self.weight, self.bias, eps=self.eps))
        return ops.batch_norm_relu(input, *statistics, self.weight, self.bias, eps=self.eps)


class FusedFeaturePyramid(nn.Module):
    """torchvision.ops.FeaturePyramidNetwork without intermediate maps on the way down.

    Takes and returns maps by name, the finest first (Lin et al. 2017, Feature Pyramid Networks for
    Object Detection). What an inner block gives is overwritten.
    """

    def __init__(self, pyramid: Any) -> None:
        super().__init__()
        self.inner_blocks: Any = pyramid.inner_blocks
        self.layer_blocks: Any = pyramid.layer_blocks
        self.extra_blocks: Any = pyramid.extra_blocks
        self.training = False

    def forward(self, x: dict[str, Tensor]) -> dict[str, Tensor]:
        names, maps = list(x), list(x.values())
        inner = self.inner_blocks[-1](maps[-1])
        results = [self.layer_blocks[-1](inner)]
        for i in reversed(range(len(maps) - 1)):
            inner = _add_enlarged(self.inner_blocks[i](maps[i]), inner)
            results.insert(0, self.layer_blocks[i](inner))
        if self.extra_blocks is not None:
            results, names = self.extra_blocks(results, maps, names)
        return OrderedDict(zip(names, results, strict=False))

    def get_result_from_inner_blocks(self, x: Tensor, idx: int) -> Tensor:
        result: Tensor = self.inner_blocks[idx](x)
        return result

    def get_result_from_layer_blocks(self, x: Tensor, idx: int) -> Tensor:
        result: Tensor = self.layer_blocks[idx](x)
        return result


def _add_enlarged(fine: Tensor, coarse: Tensor) -> Tensor:
    """``fine``, which nobody else uses, plus ``coarse`` with each pixel repeated to its size."""
    if not _may_add_in_place(fine, coarse):
        return fine + F.interpolate(coarse, size=fine.shape[-2:], mode="nearest")
    N, C, H, W = fine.shape
    h, w = coarse.shape[2:]
    twice = 2 * h == H and 2 * w == W
    if twice and fine.is_contiguous():
        fine.view(N, C, h, 2, w, 2).add_(coarse[:, :, :, None, :, None])
    elif twice and is_channels_last(fine):
        pixels = fine.permute(0, 2, 3, 1).view(N, h, 2, w, 2, C)
        pixels.add_(coarse.permute(0, 2, 3, 1)[:, :, None, :, None])
    else:
        fine.add_(F.interpolate(coarse, size=(H, W), mode="nearest"))
    return fine


def _may_add_in_place(fine: Tensor, coarse: Tensor) -> bool:
    """Whether that gives the same, and no tracer would take sizes for constants."""
    return (
        type(fine) is type(coarse) is Tensor
        and is_eager()
        and not is_transformed()
        and not needs_gradient((fine, coarse))
        and fine.dim() == coarse.dim() == 4
        and fine.shape[:2] == coarse.shape[:2]
        and fine.dtype == coarse.dtype
    )


class ChannelShuffle(nn.Module):
    """:func:`torch.nn.functional.channel_shuffle` in the format of its input."""

    def __init__(self, groups: int) -> None:
        super().__init__()
        self.groups = groups

    def extra_repr(self) -> str:
        return f"groups={self.groups}"

    def forward(self, x: Tensor) -> Tensor:
        return F.channel_shuffle(x, self.groups)


class InputFormat(nn.Module):
    """The results of a graph in the format of its inputs: contiguous unless they were not."""

    def forward(self, outputs: Any, *inputs: Any) -> Any:
        return restore_format(outputs, inputs)


def restore_format(outputs: Any, inputs: Sequence[Any]) -> Any:
    """``outputs``, nested as it may be, with what is channels_last made contiguous.

    Not if an input is channels_last: then torch's own layers would have kept that.
    """
    if is_transformed() or any(isinstance(x, Tensor) and is_channels_last(x) for x in inputs):
        return outputs
    return _contiguous(outputs)


def _contiguous(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.contiguous() if is_channels_last(value) else value
    if isinstance(value, dict):
        for key, item in value.items():
            value[key] = _contiguous(item)
        return value
    if isinstance(value, list):
        value[:] = [_contiguous(item) for item in value]
        return value
    if isinstance(value, tuple):
        items = [_contiguous(item) for item in value]
        return type(value)(*items) if hasattr(value, "_fields") else type(value)(items)
    return value


def restore_format_hook(module: nn.Module, inputs: tuple[Any, ...], outputs: Any) -> Any:
    """Forward hook of a module that runs in channels_last inside."""
    return restore_format(outputs, inputs)
