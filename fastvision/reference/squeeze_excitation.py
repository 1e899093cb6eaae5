"""Squeeze and excitation (Hu, Shen and Sun, Squeeze-and-excitation networks, equations 2 to 4)."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from .activations import activate

GATES = ("sigmoid", "hardsigmoid")


def squeeze_excitation(
    input: Tensor,
    weight1: Tensor,
    bias1: Tensor | None,
    weight2: Tensor,
    bias2: Tensor | None,
    activation: str,
    scale_activation: str,
) -> Tensor:
    """input * gate, [N, C, H, W], in float32 or better and rounded once at the end.

    Args:
        input: [N, C, H, W].
        weight1: [S, C] or [S, C, 1, 1].
        bias1: [S], or None.
        weight2: [C, S] or [C, S, 1, 1].
        bias2: [C], or None.
        activation: "relu" or "silu".
        scale_activation: one of ``GATES``.
    """
    dtype = torch.promote_types(input.dtype, torch.float32)

    def linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return F.linear(x, weight.flatten(1).to(dtype), None if bias is None else bias.to(dtype))

    hidden = activate(linear(input.mean((2, 3), dtype=dtype), weight1, bias1), activation)
    gate = F.sigmoid if scale_activation == "sigmoid" else F.hardsigmoid
    scale = gate(linear(hidden, weight2, bias2))
    return (input * scale.unflatten(1, (-1, 1, 1))).to(input.dtype)
