"""The convolutions of a fused model."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from .. import _extension, ops
from ..ops._checks import pair
from ..ops.conv.memo import layer_of
from ..ops.conv.spec import ConvSpec, Weights, paddings
from ..reference.activations import ACTIVATIONS, activate
from ..reference.conv_bn_relu import fold_batch_norm
from .anchors import NO_END, End, Norm
from .layers import FusedLayer, Made, State, own_kernels, weight_state

_NOTHING = contextlib.nullcontext()


class _FusedConvolution(FusedLayer):
    takes_norm = True
    takes_residual = True

    stride: Any
    padding: Any
    dilation: Any
    groups: int

    def _spec(self, eps: float = 0.0, end: End = NO_END) -> ConvSpec:
        raise NotImplementedError

    def _fits(self, x: Tensor, autocast: torch.dtype | None) -> bool:
        weight = self._parameters.get("weight")
        return (
            weight is not None
            and x.dim() == weight.dim()
            and x.shape[1] == self._inputs(weight)
            and self._weights_fit(x, autocast)
        )

    def _inputs(self, weight: Tensor) -> int:
        return weight.shape[1] * self.groups

    def shape_of(self, x: Tensor) -> tuple[int, ...]:
        return self._spec().output_shape(x.shape, self.weight.shape)

    def run(
        self,
        x: Tensor,
        norm: Norm | None,
        residual: Tensor | None,
        end: End,
        autocast: torch.dtype | None,
        *,
        eager: bool,
        overwrite: bool = False,
    ) -> Tensor:
        state: State = self.__dict__["_fused"]
        if autocast is not None:
            x = x.to(autocast)
        if state.channels_last and x.dim() == 4:
            x = x.contiguous(memory_format=torch.channels_last)
        if not eager:
            eps = 0.0 if norm is None else norm.eps
            return self._by_op(x, self._weights(norm), eps, residual, end)
        own = self._parameters
        weight, bias = own["weight"], own["bias"]
        key = (x.dtype, norm is None, residual is None, end, _extension.cpu_level())
        made = state.made.get(key)
        if made is None or not made.serves(weight, bias, norm):
            self.note(norm, residual, end)
            make = self._runner(x, norm, end)
            made = state.made[key] = Made(weight, bias, norm, make)
        return made.value(x, residual, made.weights, overwrite)

    def _weights(self, norm: Norm | None) -> Weights:
        own: Any = self._parameters
        return Weights(own["weight"], own["bias"], *(() if norm is None else norm.tensors))

    def _runner(self, x: Tensor, norm: Norm | None, end: End) -> Any:
        """Returns a factory of the function (input, residual, tensors) that runs a chain."""
        tensors, eps = self._weights(norm), 0.0 if norm is None else norm.eps
        if x.dim() == 4 and own_kernels(x):
            return lambda: layer_of(tensors, x.dtype, self._spec(eps, end))

        def make() -> Any:
            folded = self._folded(tensors, eps)
            return lambda input, residual, *_: self._by_op(input, folded, 0.0, residual, end)

        return make

    def _folded(self, tensors: Weights, eps: float) -> Weights:
        weight, bias, *norm = (None if t is None else t.detach() for t in tensors)
        if norm[2] is not None:
            dtype = weight.dtype  # type: ignore[union-attr]
            weight, bias = self._fold(weight, bias, norm, eps)  # type: ignore[arg-type]
            weight, bias = weight.to(dtype), bias.to(dtype)
        if weight.dim() == 4 and weight_state(self).channels_last:  # type: ignore[union-attr]
            weight = weight.contiguous(memory_format=torch.channels_last)  # type: ignore[union-attr]
        return Weights(weight, bias)  # type: ignore[arg-type]

    def _fold(
        self, weight: Tensor, bias: Tensor | None, norm: list[Any], eps: float
    ) -> tuple[Any, Any]:
        return fold_batch_norm(weight, bias, *norm, eps)  # type: ignore[call-arg]

    def _by_op(
        self, x: Tensor, weights: Weights, eps: float, residual: Tensor | None, end: End
    ) -> Tensor:
        # autocast may have been off when the layer was called
        kind = x.device.type
        with torch.autocast(kind, enabled=False) if torch.is_autocast_enabled(kind) else _NOTHING:
            return self._op(x, weights, eps, residual, *end)

    def _op(
        self,
        x: Tensor,
        weights: Weights,
        eps: float,
        residual: Tensor | None,
        activation: str,
        slope: float,
    ) -> Tensor:
        raise NotImplementedError


class FusedConv2d(_FusedConvolution):
    """See :func:`fastvision.ops.conv_bn_relu`."""

    overwrites = True

    def _spec(self, eps: float = 0.0, end: End = NO_END) -> ConvSpec:
        stride, dilation = pair(self.stride, "stride"), pair(self.dilation, "dilation")
        sides = paddings(self.padding, self.weight.shape[2:], stride, dilation)
        activation = ACTIVATIONS.index(end[0])
        return ConvSpec(stride, sides, dilation, self.groups, eps, activation, end[1])

    def _op(
        self,
        x: Tensor,
        weights: Weights,
        eps: float,
        residual: Tensor | None,
        activation: str,
        slope: float,
    ) -> Tensor:
        weight, bias, bn_weight, bn_bias, mean, var = weights
        spec = self._spec()
        return ops.conv_bn_relu(
            x, weight, bias,
            bn_weight=bn_weight, bn_bias=bn_bias, running_mean=mean, running_var=var, eps=eps,
            stride=spec.stride, padding=spec.padding, dilation=spec.dilation, groups=spec.groups,
            residual=residual, activation=activation, negative_slope=slope,
        )  # fmt: skip


class FusedConvTranspose2d(_FusedConvolution):
    """See :func:`fastvision.ops.conv_transpose2d_bn_relu`."""

    output_padding: Any

    def forward(self, input: Any, output_size: Any = None) -> Any:
        if output_size is None:
            return super().forward(input)
        return super(FusedLayer, self).forward(input, output_size)  # the original forward

    def _inputs(self, weight: Tensor) -> int:
        return weight.shape[0]

    def _spec(self, eps: float = 0.0, end: End = NO_END) -> ConvSpec:
        pairs = (self.stride, self.padding, self.output_padding, self.dilation)
        stride, (top, left), extra, dilation = (pair(value, "option") for value in pairs)
        activation = ACTIVATIONS.index(end[0])
        window = (stride, (left, left, top, top), dilation, self.groups)
        return ConvSpec(*window, eps, activation, end[1], transposed=True, output_padding=extra)

    def _fold(
        self, weight: Tensor, bias: Tensor | None, norm: list[Any], eps: float
    ) -> tuple[Any, Any]:
        # [I, O / groups, ...] to [O, I / groups, ...] and back, to reuse fold_batch_norm
        groups = self.groups
        inputs, outputs, *kernel = weight.shape
        rows = weight.view(groups, inputs // groups, outputs, *kernel).transpose(1, 2)
        rows = rows.reshape(groups * outputs, inputs // groups, *kernel)
        folded, shift = fold_batch_norm(rows, bias, *norm, eps)  # type: ignore[call-arg]
        folded = folded.view(groups, outputs, inputs // groups, *kernel).transpose(1, 2)
        return folded.reshape(weight.shape), shift

    def _op(
        self,
        x: Tensor,
        weights: Weights,
        eps: float,
        residual: Tensor | None,
        activation: str,
        slope: float,
    ) -> Tensor:
        weight, bias, bn_weight, bn_bias, mean, var = weights
        stride, padding, extra, groups, dilation = self._spec().arguments()[:5]
        return ops.conv_transpose2d_bn_relu(
            x, weight, bias,
            bn_weight=bn_weight, bn_bias=bn_bias, running_mean=mean, running_var=var, eps=eps,
            stride=stride, padding=padding, output_padding=extra, groups=groups, dilation=dilation,
            residual=residual, activation=activation, negative_slope=slope,
        )  # fmt: skip


class FusedConvNd(_FusedConvolution):
    """1-D and 3-D: torch's convolution with the normalization folded into its weights."""

    _conv_forward: Callable[..., Tensor]

    def shape_of(self, x: Tensor) -> Any:
        with torch.no_grad():
            weight = self.weight.to("meta")
            return self._conv_forward(torch.empty_like(x, device="meta"), weight, None).shape

    def _op(
        self,
        x: Tensor,
        weights: Weights,
        eps: float,
        residual: Tensor | None,
        activation: str,
        slope: float,
    ) -> Tensor:
        if weights.running_mean is not None:  # under a tracer
            weights = self._folded(weights, eps)
        weight, bias = (None if t is None else t.to(x.dtype) for t in weights[:2])
        y = self._conv_forward(x, weight, bias)
        if residual is not None:
            y += residual
        return y.relu_() if activation == "relu" else activate(y, activation, slope)
