"""Shapes of transposed convolutions, their tensors, and the fused op in torch's steps."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from fastvision import reference
from fastvision.testing import cases
from fastvision.testing.backends import Backend

# C, K, (H, W), kernel, and the options: for each rule of the phases one case that has it
SHAPES: dict[str, Any] = {
    "k2s2": (6, 5, (5, 7), 2, {"stride": 2}),
    "k2s2 wide": (37, 35, (3, 4), 2, {"stride": 2}),
    "k4s2p1": (9, 20, (4, 5), 4, {"stride": 2, "padding": 1}),
    "k3s2p1 op1": (5, 18, (6, 5), 3, {"stride": 2, "padding": 1, "output_padding": 1}),
    "k5s3 op2 beyond the input": (3, 4, (3, 2), 5, {"stride": 3, "output_padding": 2}),
    "k<s": (4, 3, (3, 4), 2, {"stride": 3, "output_padding": 1}),
    "k1s2": (4, 8, (4, 3), 1, {"stride": 2}),
    "1x1 map": (8, 6, (1, 1), 4, {"stride": 1}),
    "s1": (4, 5, (4, 6), 3, {"padding": 1}),
    "uneven": (3, 5, (4, 5), (4, 3), {"stride": (2, 3), "padding": (1, 0)}),
    "dilation": (3, 4, (4, 5), 3, {"stride": 2, "dilation": 3, "padding": 2}),
    "dilation and stride with a factor": (3, 4, (5, 4), (2, 3), {"stride": 2, "dilation": (2, 4)}),
    "groups": (6, 9, (4, 5), 4, {"stride": 2, "padding": 1, "groups": 3}),
    "shared vectors": (12, 12, (4, 5), 3, {"stride": 2, "groups": 3}),
    "depthwise": (21, 21, (4, 5), 4, {"stride": 2, "padding": 1, "groups": 21}),
    "depthwise times two": (4, 8, (4, 5), 3, {"stride": 2, "groups": 4}),
    "padding crops inputs": (4, 4, (4, 5), 2, {"stride": 2, "padding": 3}),
    "many phases": (3, 4, (3, 2), 11, {"stride": 9}),
}
FACTORS = (2, 3, 8, 32)  # of bilinear upsampling


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=cases.generator(seed))


def make(
    shape: str,
    dtype: torch.dtype = torch.float32,
    channels_last: bool = False,
    device: str = "cpu",
    batch: int = 2,
) -> tuple[Tensor, Tensor, Tensor, dict[str, Any]]:
    """Input, weight, bias and options of one of SHAPES; sums are of about unit variance."""
    C, K, size, kernel, options = SHAPES[shape]
    R, S = kernel if isinstance(kernel, tuple) else (kernel, kernel)
    groups = options.get("groups", 1)
    x = cases.feature_map(batch, C, *size, dtype=dtype, channels_last=channels_last)
    weight = random(C, K // groups, R, S, seed=1) / math.sqrt(C // groups)
    return (
        x.to(device),
        weight.to(device, dtype),
        random(K, seed=2).to(device, dtype),
        dict(options),
    )


def runs(backend: Backend, dtype: torch.dtype, channels_last: bool = False) -> bool:
    """The case is one of the backend's."""
    if backend.name == "triton" and dtype == torch.float64:
        return False  # its kernels accumulate in float32
    if backend.interpreted and (dtype == torch.float16 or channels_last):
        return False  # Triton's interpreter is slow: it has the others
    # the reference is one text for all types
    return backend.name != "reference" or dtype == torch.float32


def batch_norm(K: int, device: str, dtype: torch.dtype | None = None) -> dict[str, Tensor]:
    values = {
        "bn_weight": 1 + 0.1 * random(K, seed=4),
        "bn_bias": random(K, seed=5),
        "running_mean": random(K, seed=6),
        "running_var": 0.5 + random(K, seed=7).square(),
    }
    return {name: value.to(device, dtype) for name, value in values.items()}


def composed(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    norm: dict[str, Tensor],
    residual: Tensor,
    activation: str,
    slope: float,
    options: dict[str, Any],
) -> Tensor:
    """The fused op in torch's steps, in float64."""
    y = F.conv_transpose2d(x, weight, bias, **options)
    statistics = norm["running_mean"], norm["running_var"]
    y = F.batch_norm(y, *statistics, norm["bn_weight"], norm["bn_bias"], eps=1e-3)
    return reference.activate(y + residual, activation, slope)


def bilinear(factor: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """[R, R] of FCN's upsampling by ``factor``."""
    size = 2 * factor - factor % 2
    centre = factor - 1 if size % 2 else factor - 0.5
    row = 1 - (torch.arange(size, dtype=torch.float64) - centre).abs() / factor
    return (row[:, None] * row).to(dtype)


def upsampler(
    channels: int, factor: int, depthwise: bool, dtype: torch.dtype = torch.float32
) -> Tensor:
    """The weight of a transposed convolution that is bilinear upsampling by ``factor``."""
    filters = bilinear(factor, dtype).expand(channels, 1, -1, -1)
    if depthwise:
        return filters.clone()
    return filters * torch.eye(channels, dtype=dtype)[:, :, None, None]
