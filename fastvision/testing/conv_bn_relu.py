"""Arguments of one convolution with all that follows it, and what torch's layers make of them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from fastvision import ops, reference
from fastvision.testing import cases
from fastvision.testing.tensors import in_format


class Sample:
    """Seeded arguments of one convolution, weights of such size that results are around 1."""

    def __init__(
        self,
        C: int,
        K: int,
        kernel: tuple[int, int],
        *,
        groups: int = 1,
        images: int = 2,
        size: tuple[int, int] = (11, 9),
        dtype: torch.dtype = torch.float32,
        device: str = "cpu",
        channels_last: bool = False,
        norm: bool = True,
    ) -> None:
        g = cases.generator(21)
        per_group = C // groups
        weight = torch.randn(K, per_group, *kernel, generator=g)
        weight /= (per_group * kernel[0] * kernel[1]) ** 0.5
        vectors = torch.rand(5, K, generator=g) + 0.5
        x = cases.feature_map(images, C, *size, seed=22)
        self.input = in_format(x.to(dtype), channels_last).to(device)
        self.weight = weight.to(device, dtype)
        self.bias, *rest = (v.to(device, dtype) for v in vectors)
        names = ("bn_weight", "bn_bias", "running_mean", "running_var")
        self.norm = dict(zip(names, rest, strict=True)) if norm else {}
        self.groups = groups

    def __call__(self, **options: Any) -> Tensor:
        return ops.conv_bn_relu(
            self.input, self.weight, self.bias, groups=self.groups, **self.norm, **options
        )

    def expected(
        self,
        residual: Tensor | None = None,
        activation: str = "relu",
        negative_slope: float = 0.01,
        **window: Any,
    ) -> Tensor:
        """By torch's own layers, in float64."""
        x, weight, bias = (t.double() for t in (self.input, self.weight, self.bias))
        padding = window.pop("padding", 0)
        if isinstance(padding, tuple) and len(padding) == 4:
            x, padding = F.pad(x, padding), 0
        y = F.conv2d(x, weight, bias, padding=padding, groups=self.groups, **window)
        if self.norm:
            scale, shift, mean, var = (t.double() for t in self.norm.values())
            y = F.batch_norm(y, mean, var, scale, shift)
        if residual is not None:
            y = y + residual.double()
        return reference.activate(y, activation, negative_slope)
