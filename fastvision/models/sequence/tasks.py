"""Tasks that a model of sequences learns in seconds: inputs and targets, and their loss.

Data is made of a :class:`torch.Generator`, so a seed gives the same sequences everywhere.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

START = 0  # the symbol in front of a target; sequences have none of it


def reversal(
    count: int, length: int, symbols: int, generator: torch.Generator | None = None
) -> tuple[tuple[Tensor, Tensor], Tensor]:
    """Random sequences and themselves backwards.

    Args:
        count, length: of the sequences.
        symbols: size of the alphabet with ``START``, which sequences have none of.

    Returns:
        Source and previous as a pair, and targets, int64 [count, length] each. The previous ones
        are the targets of the step before, ``START`` at first, for a decoder told the truth.
    """
    source = torch.randint(START + 1, symbols, (count, length), generator=generator)
    targets = source.flip(1)
    previous = torch.cat((torch.full((count, 1), START), targets[:, :-1]), 1)
    return (source, previous), targets


def next_sample(
    count: int, length: int, levels: int, generator: torch.Generator | None = None
) -> tuple[Tensor, Tensor]:
    """Sums of two sine waves of random frequency and phase, and the same one sample later.

    Args:
        count: of the waves.
        length: in samples.
        levels: of the amplitude, see :func:`mu_law`.

    Returns:
        Inputs and targets, int64 [count, length] each.
    """
    frequency = torch.empty(count, 2, 1).uniform_(0.02, 0.1, generator=generator)
    phase = torch.empty(count, 2, 1).uniform_(0, 2 * math.pi, generator=generator)
    wave = torch.sin(2 * math.pi * frequency * torch.arange(length + 1) + phase).mean(1)
    quantized = mu_law(wave, levels)
    return quantized[:, :-1], quantized[:, 1:]


def sorting(
    count: int, length: int, symbols: int, generator: torch.Generator | None = None
) -> tuple[Tensor, Tensor]:
    """Random sequences and themselves in ascending order.

    Args:
        count, length: of the sequences.
        symbols: size of the alphabet.

    Returns:
        Inputs and targets, int64 [count, length] each.
    """
    inputs = torch.randint(symbols, (count, length), generator=generator)
    return inputs, inputs.sort(1).values


def mu_law(wave: Tensor, levels: int) -> Tensor:
    """Quantizes numbers in [-1, 1] to int64 levels that are finest around zero.

    ``f(x) = sign(x) ln(1 + mu |x|) / ln(1 + mu)`` with mu = levels - 1 (van den Oord et al. 2016,
    section 2.2), and [-1, 1] in ``levels`` equal steps.
    """
    mu = levels - 1
    compressed = wave.sign() * torch.log1p(mu * wave.abs()) / math.log1p(mu)
    return ((compressed + 1) / 2 * mu).round().long().clamp(0, mu)


def loss(scores: Tensor, targets: Tensor) -> Tensor:
    """Mean cross entropy, in nats, of scores [N, T, symbols] and int64 targets [N, T]."""
    return F.cross_entropy(scores.flatten(0, 1), targets.flatten())
