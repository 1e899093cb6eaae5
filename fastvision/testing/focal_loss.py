"""Logits and targets of the focal losses."""

from __future__ import annotations

import torch
from torch import Tensor

from fastvision.testing import cases


def logits(*shape: int, dtype: torch.dtype = torch.float32, spread: float = 4) -> Tensor:
    return cases.feature_map(*shape, dtype=torch.float32).mul(spread).to(dtype)


def make_targets(kind: str, x: Tensor) -> Tensor:
    """Labels with background and ignored rows, the same as zeros and ones, or soft labels."""
    g = cases.generator(8)
    if kind == "soft":
        return torch.rand(x.shape, generator=g).to(x)
    labels = torch.randint(0, x.shape[-1], x.shape[:-1], generator=g)
    chance = torch.rand(labels.shape, generator=g)
    labels = torch.where(chance < 0.6, -1, labels)
    if kind == "labels":
        return torch.where(chance > 0.9, -2, labels).to(x.device)
    return (labels[..., None] == torch.arange(x.shape[-1])).to(x)


def softmax_targets(x: Tensor, ignore_index: int = -100) -> Tensor:
    labels = cases.classes(x[..., 0].numel(), x.shape[-1]).view(x.shape[:-1])
    labels.view(-1)[::5] = ignore_index
    return labels.to(x.device)


def differentiate(loss: Tensor, x: Tensor, grad: Tensor) -> Tensor:
    return torch.autograd.grad(loss, x, grad)[0]
