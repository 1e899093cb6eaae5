"""conv_bn_relu at inference on the convolutions of well-known models, against torch's layers."""

from __future__ import annotations

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
from fastvision.testing import cases
from fastvision.testing.numerics import assert_matches

# (input channels, filters, input height and width, kernel, stride, groups) and the activation
Shape = tuple[int, int, int, int, int, int]
MODELS: dict[str, tuple[str, list[Shape]]] = {
    "resnet50": (
        "relu",
        [
            (3, 64, 224, 7, 2, 1),
            (64, 64, 56, 1, 1, 1),
            (64, 64, 56, 3, 1, 1),
            (64, 256, 56, 1, 1, 1),
            (256, 64, 56, 1, 1, 1),
            (256, 128, 56, 1, 1, 1),
            (128, 128, 56, 3, 2, 1),
            (128, 512, 28, 1, 1, 1),
            (256, 512, 56, 1, 2, 1),
            (512, 128, 28, 1, 1, 1),
            (128, 128, 28, 3, 1, 1),
            (512, 256, 28, 1, 1, 1),
            (256, 256, 28, 3, 2, 1),
            (256, 1024, 14, 1, 1, 1),
            (512, 1024, 28, 1, 2, 1),
            (1024, 256, 14, 1, 1, 1),
            (256, 256, 14, 3, 1, 1),
            (1024, 512, 14, 1, 1, 1),
            (512, 512, 14, 3, 2, 1),
            (512, 2048, 7, 1, 1, 1),
            (1024, 2048, 14, 1, 2, 1),
            (2048, 512, 7, 1, 1, 1),
            (512, 512, 7, 3, 1, 1),
        ],
    ),
    "mobilenet_v2": (
        "relu6",
        [
            (3, 32, 224, 3, 2, 1),
            (32, 32, 112, 3, 1, 32),
            (32, 16, 112, 1, 1, 1),
            (16, 96, 112, 1, 1, 1),
            (96, 96, 112, 3, 2, 96),
            (96, 24, 56, 1, 1, 1),
            (24, 144, 56, 1, 1, 1),
            (144, 144, 56, 3, 1, 144),
            (144, 144, 56, 3, 2, 144),
            (144, 32, 28, 1, 1, 1),
            (192, 192, 28, 3, 1, 192),
            (192, 64, 14, 1, 1, 1),
            (64, 384, 14, 1, 1, 1),
            (384, 384, 14, 3, 1, 384),
            (384, 96, 14, 1, 1, 1),
            (576, 576, 14, 3, 2, 576),
            (576, 160, 7, 1, 1, 1),
            (160, 960, 7, 1, 1, 1),
            (960, 960, 7, 3, 1, 960),
            (960, 320, 7, 1, 1, 1),
            (320, 1280, 7, 1, 1, 1),
        ],
    ),
    "resnext50": (
        "relu",
        [
            (128, 128, 56, 3, 1, 32),
            (256, 256, 56, 3, 2, 32),
            (256, 256, 28, 3, 1, 32),
            (512, 512, 28, 3, 2, 32),
            (512, 512, 14, 3, 1, 32),
            (1024, 1024, 14, 3, 2, 32),
            (1024, 1024, 7, 3, 1, 32),
        ],
    ),
    "convnext_tiny": (
        "none",
        [
            (96, 96, 56, 7, 1, 96),
            (192, 192, 28, 7, 1, 192),
            (384, 384, 14, 7, 1, 384),
            (768, 768, 7, 7, 1, 768),
        ],
    ),
    "vgg16": (
        "relu",
        [
            (3, 64, 224, 3, 1, 1),
            (64, 64, 224, 3, 1, 1),
            (64, 128, 112, 3, 1, 1),
            (128, 128, 112, 3, 1, 1),
            (128, 256, 56, 3, 1, 1),
            (256, 256, 56, 3, 1, 1),
            (256, 512, 28, 3, 1, 1),
            (512, 512, 28, 3, 1, 1),
            (512, 512, 14, 3, 1, 1),
        ],
    ),
}
BATCHES = (1, 8)
# the shapes that stand for the others in a quick run
QUICK = {(64, 64, 56, 3, 1, 1), (256, 64, 56, 1, 1, 1), (144, 144, 56, 3, 1, 144)}
ACTIVATIONS = {"none": lambda x, inplace: x, "relu": F.relu, "relu6": F.relu6}


def parameters(shape: Shape, device: torch.device) -> list[Tensor]:
    """Weight, and weight, bias, mean and variance of the normalization."""
    C, K, _, R, _, groups = shape
    g = cases.generator(11)
    weight = torch.randn(K, C // groups, R, R, generator=g) / (C // groups * R * R) ** 0.5
    norm = torch.rand(4, K, generator=g) + 0.5
    return [t.to(device) for t in (weight, *norm)]


def conv_case(model: str, activation: str, shape: Shape, batch: int, residual: bool) -> Case:
    C, K, size, R, stride, groups = shape
    padding = R // 2

    def inputs(device: torch.device) -> tuple[Tensor, ...]:
        x = cases.feature_map(batch, C, size, size, channels_last=True).to(device)
        out = (size + 2 * padding - R) // stride + 1
        added = cases.feature_map(batch, K, out, out, seed=12, channels_last=True).to(device)
        return (x, added) if residual else (x,)

    def layers(x: Tensor, added: Tensor | None, weight: Tensor, *norm: Tensor) -> Tensor:
        y = F.conv2d(x, weight, None, stride, padding, 1, groups)
        scale, shift, mean, variance = norm
        y = F.batch_norm(y, mean, variance, scale, shift)
        y = y if added is None else y.add_(added)
        return ACTIVATIONS[activation](y, inplace=True)

    def providers(device: torch.device) -> Providers:
        weight, *norm = parameters(shape, device)
        last = weight.contiguous(memory_format=torch.channels_last)
        scale, shift, mean, variance = norm
        nchw: dict[int, Tensor] = {}  # the inputs in the other format, converted beforehand

        @torch.inference_mode()
        def eager(x: Tensor, added: Tensor | None = None) -> Tensor:
            pair = [None if t is None else contiguous(t) for t in (x, added)]
            return layers(*pair, weight, *norm)

        def contiguous(t: Tensor) -> Tensor:
            if id(t) not in nchw:
                nchw[id(t)] = t.contiguous()
            return nchw[id(t)]

        @torch.inference_mode()
        def channels_last(x: Tensor, added: Tensor | None = None) -> Tensor:
            return layers(x, added, last, *norm)

        @torch.inference_mode()
        def run(x: Tensor, added: Tensor | None = None, *, backend: str) -> Tensor:
            return fastvision.ops.conv_bn_relu(
                x,
                weight,
                bn_weight=scale,
                bn_bias=shift,
                running_mean=mean,
                running_var=variance,
                stride=stride,
                padding=padding,
                groups=groups,
                residual=added,
                activation=activation,
                backend=backend,
            )

        peers: dict[str, Any] = {EAGER: eager, EAGER_CHANNELS_LAST: channels_last}
        if shape in QUICK and batch == 1:
            step = compiled(layers)
            peers[COMPILED] = lambda x, added=None: step(x, added, last, *norm)
        return peers | backends(run, device, reference=False)

    name = f"{C}->{K} {R}x{R}" + (f" stride {stride}" if stride > 1 else "")
    name += f" {groups} groups" if groups > 1 else ""
    name += " + residual" if residual else ""
    return Case(
        "conv_bn_relu",
        f"{model}, batch {batch}, {name}, {size}x{size}",
        inputs=inputs,
        providers=providers,
        check=lambda y, expected: assert_matches(y, expected, scale=4),
        work=lambda tensors, y: work.convolution(
            tensors[0], parameters(shape, torch.device("cpu"))[0], y, residual=residual
        ),
        quick=shape in QUICK and batch == 1,
        most_seconds=1.5,
    )


CASES = [
    conv_case(model, activation, shape, batch, residual)
    for model, (activation, shapes) in MODELS.items()
    for shape in shapes
    for batch in BATCHES
    # the last convolution of a bottleneck has the residual too
    for residual in (
        (False, True) if model == "resnet50" and shape[1] == 4 * shape[0] else (False,)
    )
]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_conv_bn_relu(case: Case, compare) -> None:
    compare(case)
