"""A linear layer and the activation after it as one op, for inference."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from ..reference.activations import ACTIVATIONS, activate
from ._checks import check_floating, check_tensor
from ._packing import remembered

torch.library.define(
    "fastvision::linear_act",
    "(Tensor input, Tensor weight, Tensor? bias, int activation, float negative_slope) -> Tensor",
)

# where oneDNN with a prepacked weight was 1.03 to 2.8 times as fast as F.linear on AVX2; with
# smaller weights the call costs more, for one row memory decides, for 1000 rows MKL was faster
_PACKED_ROWS = range(2, 513)
_LEAST_PACKED = 1 << 21  # numbers in the weight


def _pack(tensors: Sequence[Any]) -> Tensor:
    return torch.ops.mkldnn._reorder_linear_weight(tensors[0].detach(), 64)


def _can_pack(input: Tensor, weight: Tensor, activation: str) -> bool:
    return (
        activation in ("none", "relu")
        and input.dtype == weight.dtype == torch.float32
        and input.numel() // max(input.shape[-1], 1) in _PACKED_ROWS
        and weight.is_contiguous()
        and weight.numel() >= _LEAST_PACKED
        and not weight.is_inference()  # whose changes are not counted: packed anew every time
        and torch.backends.mkldnn.is_available()
        and torch._C._get_mkldnn_enabled()
    )


def _any_device(
    input: Tensor, weight: Tensor, bias: Tensor | None, activation: int, negative_slope: float
) -> Tensor:
    name = ACTIVATIONS[activation]
    if name == "relu":
        return F.linear(input, weight, bias).relu_()
    return activate(F.linear(input, weight, bias), name, negative_slope)


def _cpu(
    input: Tensor, weight: Tensor, bias: Tensor | None, activation: int, negative_slope: float
) -> Tensor:
    name = ACTIVATIONS[activation]
    if not _can_pack(input, weight, name):
        return _any_device(input, weight, bias, activation, negative_slope)
    rows = input.reshape(-1, input.shape[-1])
    packed = remembered((weight,), "oneDNN linear", _pack)
    bias = None if bias is None else bias.contiguous()  # oneDNN ignores its stride
    output = torch.ops.mkldnn._linear_pointwise(rows, packed, bias, "none", [], "")
    if name == "relu":
        output.relu_()  # oneDNN's own turns NaN into 0
    return output.view(*input.shape[:-1], weight.shape[0])


def _fake(
    input: Tensor, weight: Tensor, bias: Tensor | None, activation: int, negative_slope: float
) -> Tensor:
    return input.new_empty((*input.shape[:-1], weight.shape[0]))


torch.library.impl("fastvision::linear_act", "CPU", _cpu)
torch.library.impl("fastvision::linear_act", "CUDA", _any_device)
torch.library.register_fake("fastvision::linear_act", _fake)

_OP = torch.ops.fastvision.linear_act.default


def linear_act(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    activation: str = "relu",
    negative_slope: float = 0.01,
) -> Tensor:
    """activation(input @ weight.T + bias).

    On the CPU the weight is packed once for oneDNN where that is the faster way; the packed form is
    kept as long as the weight lives unchanged. Gradients flow, without that.

    Args:
        input: [..., I] of a float type.
        weight: [O, I] of input's type.
        bias: [O], or None.
        activation: "none", "relu", "relu6", "leaky_relu", "silu", "hardswish" or "sigmoid".
        negative_slope: leaky_relu's.

    Returns:
        [..., O], contiguous.

    Raises:
        TypeError: an argument is no tensor, input is not of a float type, or the dtypes differ.
        ValueError: the shapes do not fit, or the activation is unknown.
    """
    check_tensor(input, "input")
    check_tensor(weight, "weight")
    check_floating(input, "input")
    if weight.dtype != input.dtype or (bias is not None and bias.dtype != input.dtype):
        raise TypeError(f"weight and bias must have input's dtype {input.dtype}")
    if weight.dim() != 2 or input.dim() == 0 or input.shape[-1] != weight.shape[1]:
        raise ValueError(
            f"input must be [..., I] and weight [O, I], got {tuple(input.shape)} and "
            f"{tuple(weight.shape)}"
        )
    if bias is not None and bias.shape != weight.shape[:1]:
        raise ValueError(f"bias must be [{weight.shape[0]}], got {tuple(bias.shape)}")
    if activation not in ACTIVATIONS:
        raise ValueError(f"activation must be one of {ACTIVATIONS}, got {activation!r}")
    if torch.is_grad_enabled() and any(
        t is not None and t.requires_grad for t in (input, weight, bias)
    ):
        return activate(F.linear(input, weight, bias), activation, negative_slope)
    return _OP(input, weight, bias, ACTIVATIONS.index(activation), negative_slope)
