"""conv_bn_relu at inference on a GPU, in 16 bits and large batches, against torch's layers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

import fastvision
from benchmarks import work
from benchmarks.harness import (
    COMPILED,
    EAGER,
    EAGER_CHANNELS_LAST,
    Case,
    Providers,
    backends,
    compiled,
)
from fastvision import reference
from fastvision.testing import cases
from fastvision.testing.numerics import assert_matches


@dataclass(frozen=True)
class Layer:
    C: int
    K: int
    size: int  # height and width of the input
    taps: int  # per axis
    stride: int = 1
    groups: int = 1
    residual: bool = False
    activation: str = "relu"

    def __str__(self) -> str:
        name = f"{self.C}->{self.K} {self.taps}x{self.taps}"
        name += f" stride {self.stride}" if self.stride > 1 else ""
        name += f" {self.groups} groups" if self.groups > 1 else ""
        name += " + residual" if self.residual else ""
        return f"{name} {self.activation}, {self.size}x{self.size}"


RESNET50 = [
    Layer(3, 64, 224, 7, stride=2),
    Layer(64, 64, 56, 1),
    Layer(64, 64, 56, 3),
    Layer(64, 256, 56, 1, residual=True),
    Layer(256, 512, 56, 1, stride=2, activation="none"),
    Layer(128, 128, 28, 3),
    Layer(128, 512, 28, 1, residual=True),
    Layer(256, 256, 28, 3, stride=2),
    Layer(1024, 256, 14, 1),
    Layer(256, 1024, 14, 1, residual=True),
    Layer(512, 512, 7, 3),
    Layer(512, 2048, 7, 1, residual=True),
]
OTHERS = [
    Layer(96, 96, 112, 3, stride=2, groups=96, activation="relu6"),
    Layer(144, 144, 56, 3, groups=144, activation="relu6"),
    Layer(240, 240, 28, 5, groups=240, activation="silu"),
    Layer(384, 384, 14, 7, groups=384, activation="none"),
    Layer(128, 128, 56, 3, groups=32),
    Layer(24, 144, 56, 1, activation="silu"),
]

# layers, batches, dtype
SPECIFICATIONS = [
    (RESNET50, (1, 32, 256), torch.bfloat16),
    (OTHERS, (32, 256), torch.bfloat16),
    (RESNET50[2:4], (32,), torch.float16),
    (RESNET50[2:4], (32,), torch.float32),
]


def conv_case(layer: Layer, batch: int, dtype: torch.dtype) -> Case:
    padding = layer.taps // 2
    fan_in = layer.C // layer.groups * layer.taps**2

    def inputs(device: torch.device) -> tuple[Tensor, ...]:
        options = {"dtype": dtype, "channels_last": True}
        x = cases.feature_map(batch, layer.C, layer.size, layer.size, **options).to(device)
        out = (layer.size + 2 * padding - layer.taps) // layer.stride + 1
        added = cases.feature_map(batch, layer.K, out, out, seed=12, **options).to(device)
        return (x, added) if layer.residual else (x,)

    def parameters(device: torch.device) -> tuple[Tensor, list[Tensor]]:
        """Weight; weight, bias, mean and variance of the normalization, as in a 16-bit model."""
        g = cases.generator(11)
        shape = (layer.K, layer.C // layer.groups, layer.taps, layer.taps)
        weight = torch.randn(shape, generator=g) / fan_in**0.5
        norm = torch.rand(4, layer.K, generator=g) + 0.5
        return weight.to(device, dtype), [t.to(device, dtype) for t in norm]

    def layers(x: Tensor, added: Tensor | None, weight: Tensor, *norm: Tensor) -> Tensor:
        scale, shift, mean, variance = norm
        y = F.conv2d(x, weight, None, layer.stride, padding, 1, layer.groups)
        y = F.batch_norm(y, mean, variance, scale, shift)
        y = y if added is None else y.add_(added)
        return reference.activate(y, layer.activation)

    def providers(device: torch.device) -> Providers:
        weight, norm = parameters(device)
        last = weight.contiguous(memory_format=torch.channels_last)
        nchw: dict[int, Tensor] = {}  # the inputs in the other format, converted beforehand
        step = compiled(layers)

        def contiguous(t: Tensor | None) -> Tensor | None:
            if t is None:
                return None
            if id(t) not in nchw:
                nchw[id(t)] = t.contiguous()
            return nchw[id(t)]

        @torch.inference_mode()
        def eager(x: Tensor, added: Tensor | None = None) -> Tensor:
            return layers(contiguous(x), contiguous(added), weight, *norm)

        @torch.inference_mode()
        def channels_last(x: Tensor, added: Tensor | None = None) -> Tensor:
            return layers(x, added, last, *norm)

        @torch.inference_mode()
        def compile(x: Tensor, added: Tensor | None = None) -> Tensor:
            return step(x, added, last, *norm)

        @torch.inference_mode()
        def run(x: Tensor, added: Tensor | None = None, *, backend: str) -> Tensor:
            scale, shift, mean, variance = norm
            return fastvision.ops.conv_bn_relu(
                x,
                weight,
                bn_weight=scale,
                bn_bias=shift,
                running_mean=mean,
                running_var=variance,
                stride=layer.stride,
                padding=padding,
                groups=layer.groups,
                residual=added,
                activation=layer.activation,
                backend=backend,
            )

        peers: dict[str, Any] = {
            EAGER: eager,
            EAGER_CHANNELS_LAST: channels_last,
            COMPILED: compile,
        }
        return peers | backends(run, device, reference=False)

    def expected(x: Tensor, added: Tensor | None = None) -> Tensor:
        weight, (scale, shift, mean, variance) = parameters(x.device)
        return reference.conv_bn_relu(
            x,
            weight,
            None,
            scale,
            shift,
            mean,
            variance,
            added,
            [layer.stride] * 2,
            [padding] * 4,
            groups=layer.groups,
            activation=layer.activation,
        )

    kind = str(dtype).removeprefix("torch.")
    return Case(
        "conv_bn_relu_gpu",
        f"batch {batch}, {layer}, {kind}",
        inputs=inputs,
        providers=providers,
        # some candidates round the sum before the normalization, or the folded weights
        check=lambda y, wanted: assert_matches(y, wanted, scale=4),
        expected=expected,
        work=lambda tensors, y: work.convolution(
            tensors[0], parameters(torch.device("cpu"))[0], y, residual=layer.residual
        ),
        quick=batch == 32,
    )


CASES = [
    conv_case(layer, batch, dtype)
    for layers, batches, dtype in SPECIFICATIONS
    for layer in layers
    for batch in batches
]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_conv_bn_relu_gpu(case: Case, compare, request) -> None:
    if request.config.getoption("--device") != "cuda":
        pytest.skip("for CUDA devices")
    compare(case)
