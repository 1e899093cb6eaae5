"""Stochastic depth: whole residual branches are left out at random in training."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ._checks import check_number, check_tensor

_MODES = ("batch", "row")


@torch.fx.wrap
def stochastic_depth(input: Tensor, p: float, mode: str, training: bool = True) -> Tensor:
    """Zeroes the input, or rows of it, with probability ``p`` and scales the others by 1 / (1 - p).

    Huang, Sun, Liu, Sedra and Weinberger, Deep networks with stochastic depth, 2016. The random
    numbers are torchvision's under the same seed.

    Args:
        input: [N, ...] of any floating-point type.
        p: probability, from 0 to 1.
        mode: "batch" draws once for all of ``input``, "row" once for each of its N rows.
        training: if False, or if ``p`` is 0, ``input`` itself is returned.

    Returns:
        [N, ...] in the dtype of ``input``.

    Differentiable in ``input``, any number of times and in forward mode.

    Raises:
        TypeError: ``input`` is not a tensor, or ``p`` no number.
        ValueError: ``p`` is not in [0, 1], ``mode`` is unknown, or ``input`` has no rows.
    """
    check_tensor(input, "input")
    if not isinstance(p, Tensor):
        check_number(p, "p")
    if not 0 <= p <= 1:
        raise ValueError(f"drop probability has to be between 0 and 1, but got {p}")
    if mode not in _MODES:
        raise ValueError(f"mode has to be either 'batch' or 'row', but got {mode}")
    if not training or p == 0:
        return input
    if mode == "row" and input.dim() == 0:
        raise ValueError("input must have shape [N, ...] in mode 'row', got []")
    rows = input.shape[0] if mode == "row" else 1
    kept = 1.0 - p
    scale = input.new_empty((rows, *(1,) * (input.dim() - 1)) if input.dim() else ())
    scale.bernoulli_(kept)
    return input * (scale.div_(kept) if kept > 0 else scale)


class StochasticDepth(nn.Module):
    """See :func:`stochastic_depth`.

    Args:
        p: probability that a row, or the whole input, is zeroed in training.
        mode: "batch" or "row".
    """

    def __init__(self, p: float, mode: str) -> None:
        nn.Module.__init__(self)  # torchvision's class may be a base (integrations/torchvision)
        self.p = p
        self.mode = mode

    def forward(self, input: Tensor) -> Tensor:
        return stochastic_depth(input, self.p, self.mode, self.training)

    def __repr__(self) -> str:
        return f"{type(self).__name__}(p={self.p}, mode={self.mode})"
