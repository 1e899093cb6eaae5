"""Layers of torch.nn called one after the other, as one op where there is an op for them."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from ..reference.activations import DEFAULT_SLOPE
from ._checks import FLOATING, is_eager
from ._layers import activation_of, is_frozen_batch_norm, is_plain, wants_layers
from .batch_norm_relu import batch_norm_relu
from .conv.conv2d import conv_bn_relu
from .conv.linear import linear_act
from .conv.transpose import conv_transpose2d_bn_relu

_CONVOLUTIONS = (nn.Conv2d, nn.ConvTranspose2d)
_MIN_VOLUMES = 1 << 18  # elements; with fewer, torch's shorter calls are as fast


def conv_norm_act(
    input: Tensor,
    conv: Any,
    norm: Any = None,
    activation: nn.Module | None = None,
    residual: Tensor | None = None,
) -> Tensor:
    """activation(norm(conv(input)) + residual) of a model's own layers, as one op if possible.

    One op (:func:`conv_bn_relu` or :func:`conv_transpose2d_bn_relu`) serves a Conv2d or
    ConvTranspose2d with zero padding, a BatchNorm2d, SyncBatchNorm or FrozenBatchNorm2d, and a
    ReLU, ReLU6, LeakyReLU, SiLU, Hardswish or Sigmoid, in training and in evaluation. Any other
    layer, a subclass, or a layer with hooks is called as it is, so the result is the same up to
    rounding. Images without a batch, [C, H, W], are an extension.

    Args:
        input: [N, C, H, W] or [C, H, W].
        conv: the convolution.
        norm: the normalization; None for none.
        activation: the activation; None for none.
        residual: of the shape of the result, added before the activation.

    Returns:
        [N, K, OH, OW] or [K, OH, OW].

    Raises:
        TypeError, ValueError: as the ops or the layers do.
    """
    end = activation_of_chain(activation)
    others = () if activation is None else (activation,)
    if end is not None and can_call_conv(input, conv, norm, *others):
        return call_conv(input, conv, norm, *end, residual)
    z = conv(input)
    z = z if norm is None else norm(z)
    z = z if residual is None else z + residual
    return z if activation is None else activation(z)


def norm_act(
    input: Tensor,
    norm: Any,
    activation: nn.Module | None = None,
    residual: Tensor | None = None,
) -> Tensor:
    """activation(norm(input) + residual) of a model's own layers, as one op if possible.

    The layers that :func:`batch_norm_relu` serves are those of :func:`conv_norm_act`, and a
    BatchNorm3d of a large contiguous input.

    Args:
        input: [N, C, H, W], or [N, C, D, H, W].
        norm: the normalization.
        activation: the activation; None for none.
        residual: of the shape of ``input``, added before the activation.

    Returns:
        The shape of ``input``.
    """
    end = activation_of_chain(activation)
    others = () if activation is None else (activation,)
    if (
        end is not None
        and _is_floating_tensor(input)
        and (_serves_volumes(norm, input) or (input.dim() == 4 and _serves(norm, input)))
        and has_dtype_for(norm, input)
        and _all_plain(norm, *others)
    ):
        statistics, training, momentum = statistics_of(norm)
        output = batch_norm_relu(
            input, *statistics, norm.weight, norm.bias, training, momentum, norm.eps,
            residual=residual, activation=end[0], negative_slope=end[1],
            process_group=process_group_of(norm),
        )  # fmt: skip
        count_batch(norm)
        return output
    z = norm(input)
    z = z if residual is None else z + residual
    return z if activation is None else activation(z)


class Sequential(nn.Sequential):
    """A :class:`torch.nn.Sequential` that runs chains of its layers as one op each.

    A chain is a convolution with the normalization and activation after it, a normalization with
    the activation after it, or a linear layer with the activation after it; see
    :func:`conv_norm_act`. Constructor, indexing and state dict are torch's. An in-place activation
    writes to a result that nobody else sees, so ``inplace`` makes no difference.
    """

    def forward(self, input: Any) -> Any:
        return run_layers(self._modules.values(), input)


def run_layers(layers: Iterable[Any], input: Any) -> Any:
    """Calls the layers in turn, chains of them as one op; see :class:`Sequential`."""
    layers, i = list(layers), 0
    while i < len(layers):
        layer, norm = layers[i], None
        kind = type(layer)
        i += 1
        if kind in _CONVOLUTIONS and i < len(layers) and _is_batch_norm(layers[i]):
            norm = layers[i]
            i += 1
        activation: nn.Module | None = None
        takes_activation = kind in (*_CONVOLUTIONS, nn.Linear, nn.BatchNorm3d) or _is_batch_norm(
            layer
        )
        if takes_activation and i < len(layers) and activation_of(layers[i]) is not None:
            activation = layers[i]
            i += 1
        if kind in _CONVOLUTIONS:
            input = conv_norm_act(input, layer, norm, activation)
        elif kind is nn.Linear:
            input = _linear_act(input, layer, activation)
        elif takes_activation:
            input = norm_act(input, layer, activation)
        else:
            input = layer(input)
    return input


def _linear_act(input: Any, linear: nn.Linear, activation: nn.Module | None) -> Any:
    end = activation_of_chain(activation)
    others = () if activation is None else (activation,)
    if (
        end is not None
        and _is_floating_tensor(input)
        and _all_plain(linear, *others)
        and (input.is_meta or not torch.is_autocast_enabled(input.device.type))
    ):
        return linear_act(
            input, linear.weight, linear.bias, activation=end[0], negative_slope=end[1]
        )
    z = linear(input)
    return z if activation is None else activation(z)


def activation_of_chain(module: nn.Module | None) -> tuple[str, float] | None:
    """As :func:`activation_of`, with no activation as one of its own, named "none"."""
    if module is None or type(module) is nn.Identity:
        return "none", DEFAULT_SLOPE
    return activation_of(module)


def can_call_conv(input: Any, conv: nn.Module, norm: nn.Module | None, *others: nn.Module) -> bool:
    """Whether :func:`call_conv` computes the same as calling the layers in turn."""
    if (
        not _is_floating_tensor(input)
        or type(conv) not in _CONVOLUTIONS
        or conv.padding_mode != "zeros"
    ):
        return False
    layers = (conv, *others) if norm is None else (conv, norm, *others)
    return (norm is None or _serves(norm, input)) and _all_plain(*layers)


def call_conv(
    input: Tensor,
    conv: Any,
    norm: Any,
    activation: str,
    negative_slope: float,
    residual: Tensor | None = None,
) -> Tensor:
    """activation(norm(conv(input)) + residual); ``norm`` is None or a batch normalization."""
    end: dict[str, Any] = {
        "residual": residual,
        "activation": activation,
        "negative_slope": negative_slope,
    }
    geometry: dict[str, Any] = {
        "stride": conv.stride,
        "padding": conv.padding,
        "dilation": conv.dilation,
        "groups": conv.groups,
    }
    op: Callable[..., Tensor] = conv_bn_relu
    if isinstance(conv, nn.ConvTranspose2d):
        op = conv_transpose2d_bn_relu
        geometry["output_padding"] = conv.output_padding
    if norm is None:
        return op(input, conv.weight, conv.bias, **geometry, **end)
    (running_mean, running_var), training, momentum = statistics_of(norm)
    group = process_group_of(norm)
    if group is not None:
        output = batch_norm_relu(
            conv(input), running_mean, running_var, norm.weight, norm.bias, True, momentum,
            norm.eps, process_group=group, **end,
        )  # fmt: skip
    else:
        output = op(
            input, conv.weight, conv.bias, bn_weight=norm.weight, bn_bias=norm.bias,
            running_mean=running_mean, running_var=running_var, training=training,
            momentum=momentum, eps=norm.eps, **geometry, **end,
        )  # fmt: skip
    count_batch(norm)
    return output


def _is_floating_tensor(input: Any) -> bool:
    """Whether it is of a type that the ops take; anything else traces the layers, or is refused by
    them."""
    return isinstance(input, Tensor) and input.dtype in FLOATING


def _is_batch_norm(module: nn.Module) -> bool:
    return type(module) in (nn.BatchNorm2d, nn.SyncBatchNorm) or is_frozen_batch_norm(module)


def _serves(norm: Any, input: Tensor) -> bool:
    """Whether the ops compute what ``norm`` does: a frozen one promotes dtypes and broadcasts."""
    if not is_frozen_batch_norm(norm):
        return _is_batch_norm(norm)
    return (
        input.dim() == 4
        and all(buffer.dtype == input.dtype for buffer in norm.buffers())
        and (input.is_meta or not torch.is_autocast_enabled(input.device.type))
    )


def _serves_volumes(norm: Any, input: Tensor) -> bool:
    """Of other memory formats the ops make a copy."""
    return (
        type(norm) is nn.BatchNorm3d
        and is_eager()
        and input.dim() == 5
        and input.is_contiguous()
        and input.numel() >= _MIN_VOLUMES
    )


def has_dtype_for(norm: Any, input: Tensor) -> bool:
    """Whether torch takes this input in this normalization."""
    values = norm.running_mean if norm.weight is None else norm.weight
    if values is None or values.dtype == input.dtype:
        return True
    return values.dtype == torch.float32 and input.element_size() == 2


def _all_plain(*layers: nn.Module) -> bool:
    return all(map(is_plain, layers)) and not wants_layers()


def statistics_of(norm: Any) -> tuple[tuple[Tensor | None, Tensor | None], bool, float]:
    """Running statistics, whether the batch's replace them, and the momentum, as in
    torch.nn.BatchNorm2d.forward; :func:`count_batch` belongs after the call."""
    running_mean, running_var = norm.running_mean, norm.running_var
    if is_frozen_batch_norm(norm):
        return (running_mean, running_var), False, 0.0
    training = norm.training or (running_mean is None and running_var is None)
    momentum = 0.0 if norm.momentum is None else norm.momentum
    if norm.momentum is None and _counts(norm):
        momentum = 1.0 / float(norm.num_batches_tracked + 1)
    if norm.training and not norm.track_running_stats:
        running_mean = running_var = None
    return (running_mean, running_var), training, momentum


def count_batch(norm: Any) -> None:
    """Counts a batch that the statistics of ``norm`` have taken in."""
    if not is_frozen_batch_norm(norm) and _counts(norm):
        norm.num_batches_tracked.add_(1)


def _counts(norm: Any) -> bool:
    return bool(norm.training and norm.track_running_stats and norm.num_batches_tracked is not None)


def process_group_of(norm: nn.Module) -> Any:
    """The processes that share the statistics of a batch; None for this one alone."""
    if not isinstance(norm, nn.SyncBatchNorm) or not norm.training:
        return None
    if not torch.distributed.is_available():
        return None
    if not torch.distributed.is_initialized():
        return None
    group = norm.process_group or torch.distributed.group.WORLD
    return group if torch.distributed.get_world_size(group) > 1 else None
