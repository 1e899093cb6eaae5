"""linear_act at inference on the layers of well-known models, against torch's."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

import fastvision
from benchmarks import work
from benchmarks.harness import COMPILED, EAGER, Case, Providers, compiled
from fastvision.testing import cases
from fastvision.testing.numerics import assert_matches

# (model, (rows, features), outputs, activation), part of a quick run
SHAPES = [
    (("VGG-16", (1, 25_088), 4096, "relu"), False),
    (("VGG-16", (8, 25_088), 4096, "relu"), False),
    (("AlexNet", (1, 9216), 4096, "relu"), False),
    (("AlexNet", (8, 9216), 4096, "relu"), True),
    (("VGG-16 and AlexNet", (1, 4096), 4096, "relu"), False),
    (("VGG-16 and AlexNet", (8, 4096), 4096, "relu"), False),
    (("VGG-16 and AlexNet", (1, 4096), 1000, "none"), False),
    (("VGG-16 and AlexNet", (8, 4096), 1000, "none"), False),
    (("ViT-B/16, MLP", (197, 768), 3072, "none"), True),  # its GELU is not fused
    (("ViT-B/16, MLP", (197, 3072), 768, "none"), False),
    (("Faster R-CNN, box head", (1000, 12_544), 1024, "relu"), False),
    (("Faster R-CNN, box head", (1000, 1024), 1024, "relu"), False),
]


def linear_case(
    model: str, shape: tuple[int, int], outputs: int, activation: str, *, quick: bool
) -> Case:
    rows, features = shape

    def inputs(device: torch.device) -> tuple[Tensor, ...]:
        weight = cases.feature_map(outputs, features, seed=11) / features**0.5
        bias = cases.feature_map(outputs, seed=12)
        return tuple(t.to(device) for t in (cases.feature_map(*shape), weight, bias))

    def layers(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        y = F.linear(x, weight, bias)
        return F.relu(y, inplace=True) if activation == "relu" else y

    def run(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return fastvision.ops.linear_act(x, weight, bias, activation=activation)

    def providers(device: torch.device) -> Providers:
        return {EAGER: layers, COMPILED: compiled(layers), "fastvision": run}

    return Case(
        "linear_act",
        f"{model}, {rows}x{features}->{outputs}, {activation}",
        inputs=inputs,
        providers=providers,
        check=lambda y, expected: assert_matches(y, expected, scale=4),
        work=lambda tensors, y: work.convolution(tensors[0], tensors[1], y),
        quick=quick,
    )


CASES = [linear_case(*specification, quick=quick) for specification, quick in SHAPES]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_linear_act(case: Case, compare) -> None:
    compare(case)
