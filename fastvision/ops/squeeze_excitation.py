"""Squeeze and excitation: channels scaled by a gate that sees the means of all channels."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from .. import reference
from .._memory_format import format_of
from ..reference.activations import ACTIVATIONS
from ..reference.squeeze_excitation import GATES
from ._checks import (
    FLOATING,
    check_floating,
    check_tensor,
    is_traced,
    is_transformed,
    needs_gradient,
)
from ._layers import is_overridden, is_plain, own_class, wants_layers
from ._library import declare

_ACTIVATIONS = ("relu", "silu")


def _fake(input: Tensor, *_: Any) -> Tensor:
    return torch.empty_like(input, memory_format=format_of(input))


def _reference(
    input: Tensor, weight1: Tensor, bias1: Any, weight2: Tensor, bias2: Any, index: int, hard: bool
) -> Tensor:
    names = ACTIVATIONS[index], GATES[hard]
    return reference.squeeze_excitation(input, weight1, bias1, weight2, bias2, *names)


# activation: index in ACTIVATIONS; hard: whether the gate is a hardsigmoid
_OPERATOR = declare(
    "squeeze_excitation",
    "(Tensor input, Tensor weight1, Tensor? bias1, Tensor weight2, Tensor? bias2, int activation, "
    "bool hard) -> Tensor",
    fake=_fake,
    triton="kernels.squeeze_excitation.launch_squeeze_excitation",
    reference=_reference,
    lacks={"cuda": "there is no squeeze_excitation in CUDA C++, use 'triton'"},
    serves=("squeeze_excitation",),
)


def _check(
    input: Tensor, weight1: Tensor, bias1: Tensor | None, weight2: Tensor, bias2: Tensor | None
) -> None:
    check_tensor(input, "input")
    check_floating(input.dtype, "input")
    if input.dim() != 4:
        raise ValueError(f"input must have shape [N, C, H, W], got {list(input.shape)}")
    check_tensor(weight1, "weight1")
    C, S = input.shape[1], weight1.shape[0] if weight1.dim() > 0 else 0
    if S == 0:
        raise ValueError(f"weight1 must have shape [S, {C}] with S > 0, got {list(weight1.shape)}")
    for name, values, shape in (
        ("weight1", weight1, (S, C)),
        ("bias1", bias1, (S,)),
        ("weight2", weight2, (C, S)),
        ("bias2", bias2, (C,)),
    ):
        if values is None and name.startswith("bias"):
            continue
        check_tensor(values, name)
        assert values is not None
        of_conv = len(shape) == 2 and values.shape == (*shape, 1, 1)
        if values.shape != shape and not of_conv:
            raise ValueError(f"{name} must have shape {list(shape)}, got {list(values.shape)}")
        if values.dtype != input.dtype or values.device != input.device:
            raise ValueError(
                f"{name} must be {input.dtype} on {input.device} as input, "
                f"got {values.dtype} on {values.device}"
            )


def squeeze_excitation(
    input: Tensor,
    weight1: Tensor,
    bias1: Tensor | None,
    weight2: Tensor,
    bias2: Tensor | None,
    activation: str = "relu",
    scale_activation: str = "sigmoid",
    *,
    backend: str | None = None,
) -> Tensor:
    """input * scale_activation(weight2 activation(weight1 mean(input) + bias1) + bias2).

    Hu, Shen and Sun, Squeeze-and-excitation networks, 2018. The mean is over the pixels of each
    image and channel. Sums are in a fixed order, the same for any number of threads.

    Args:
        input: [N, C, H, W] float16, bfloat16, float32 or float64; contiguous or channels_last
            (others are copied).
        weight1: [S, C], or [S, C, 1, 1] of a convolution.
        bias1: [S]; None for none.
        weight2: [C, S], or [C, S, 1, 1] of a convolution.
        bias2: [C]; None for none.
        activation: "relu" or "silu".
        scale_activation: "sigmoid" or "hardsigmoid".
        backend: "triton", "cpp" or "reference"; None takes the fastest that can run.

    Returns:
        The shape, dtype and memory format of ``input``, rounded once; arithmetic is in float32
        (float64 for float64 inputs).

    Differentiable in all tensors, any number of times and in forward mode, through the operations
    of PyTorch.

    Raises:
        TypeError, ValueError: arguments that do not fit; weights of another dtype or device than
            ``input``.
    """
    tensors = (input, weight1, bias1, weight2, bias2)
    if is_traced():  # which records torch's operators, derivatives included
        return reference.squeeze_excitation(*tensors, activation, scale_activation)
    _check(*tensors)
    if activation not in _ACTIVATIONS:
        raise ValueError(f"activation must be one of {_ACTIVATIONS}, got {activation!r}")
    if scale_activation not in GATES:
        raise ValueError(f"scale_activation must be one of {GATES}, got {scale_activation!r}")
    chosen = _OPERATOR.choose(input, backend)
    if is_transformed() or needs_gradient(tensors):
        return reference.squeeze_excitation(*tensors, activation, scale_activation)
    return _OPERATOR.run[chosen](
        *tensors, ACTIVATIONS.index(activation), scale_activation == "hardsigmoid"
    )


class SqueezeExcitation(nn.Module):
    """Squeeze and excitation (Hu et al. 2018), see :func:`squeeze_excitation`.

    torchvision's constructor and state dict (``fc1.*``, ``fc2.*``). It is one op where
    ``activation`` makes a ReLU or SiLU and ``scale_activation`` a Sigmoid or Hardsigmoid;
    otherwise, under autocast, where a layer has hooks and where a subclass has a ``_scale`` of its
    own it runs layer by layer.

    Args:
        input_channels: C of the [N, C, H, W] input.
        squeeze_channels: outputs of the first of the two 1x1 convolutions.
        activation: called for the layer between them.
        scale_activation: called for the layer that makes the gate.
    """

    def __init__(
        self,
        input_channels: int,
        squeeze_channels: int,
        activation: Callable[..., nn.Module] = nn.ReLU,
        scale_activation: Callable[..., nn.Module] = nn.Sigmoid,
    ) -> None:
        nn.Module.__init__(self)  # torchvision's class may stand between
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc1 = nn.Conv2d(input_channels, squeeze_channels, 1)
        self.fc2 = nn.Conv2d(squeeze_channels, input_channels, 1)
        self.activation = activation()
        self.scale_activation = scale_activation()

    def _scale(self, input: Tensor) -> Tensor:
        """The gate of each channel, as torchvision's."""
        scale = self.fc2(self.activation(self.fc1(self.avgpool(input))))
        return self.scale_activation(scale)

    def forward(self, input: Tensor) -> Tensor:
        names = names_of(self, input)
        return self._scale(input) * input if names is None else apply(self, input, names)


def names_of(module: Any, input: Any) -> tuple[str, str] | None:
    """Activation and gate of the op that computes what the module's layers do with ``input``; None
    if they have to be called one by one."""
    activation = _NAMES.get(own_class(module.activation), "")
    gate = _NAMES.get(own_class(module.scale_activation), "")
    one_op = (
        isinstance(input, Tensor)
        and input.dim() == 4
        and input.dtype in FLOATING
        and activation in _ACTIVATIONS
        and gate in GATES
        and (input.is_meta or not torch.is_autocast_enabled(input.device.type))
        and not wants_layers()
        and not is_overridden(module, "_scale")
        and all(map(is_plain, module.children()))
        and _is_linear(module.fc1)
        and _is_linear(module.fc2)
    )
    return (activation, gate) if one_op else None


def apply(module: Any, input: Tensor, names: tuple[str, str]) -> Tensor:
    """The op with a module's weights."""
    fc1, fc2 = module.fc1, module.fc2
    return squeeze_excitation(input, fc1.weight, fc1.bias, fc2.weight, fc2.bias, *names)


_NAMES: dict[Any, str] = {
    nn.ReLU: "relu",
    nn.SiLU: "silu",
    nn.Sigmoid: "sigmoid",
    nn.Hardsigmoid: "hardsigmoid",
}


def _is_linear(conv: nn.Module) -> bool:
    """Whether it is a convolution that multiplies a 1x1 map by its weights."""
    return (
        own_class(conv) is nn.Conv2d
        and isinstance(conv, nn.Conv2d)
        and conv.kernel_size == (1, 1)
        and conv.padding == (0, 0)
        and conv.groups == 1
    )
