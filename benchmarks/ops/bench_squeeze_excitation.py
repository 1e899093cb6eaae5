"""squeeze_excitation at the shapes of MobileNetV3, against torch's layers one by one."""

from __future__ import annotations

from collections.abc import Callable
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

# ((N, C, H), squeeze channels, channels_last), part of a quick run
SHAPES = [
    (((1, 16, 56), 8, True), False),
    (((1, 72, 28), 24, True), True),
    (((1, 672, 14), 168, True), True),
    (((1, 960, 7), 240, True), True),
    (((1, 672, 14), 168, False), False),
    (((8, 240, 14), 64, True), False),
    (((8, 960, 7), 240, True), False),
    (((8, 960, 7), 240, False), False),
]


def layers(x: Tensor, weight1: Tensor, bias1: Tensor, weight2: Tensor, bias2: Tensor) -> Tensor:
    z = F.relu(F.conv2d(F.adaptive_avg_pool2d(x, 1), weight1, bias1))
    return F.hardsigmoid(F.conv2d(z, weight2, bias2)) * x


def least(tensors: tuple[Tensor, ...], _: Any) -> work.Work:
    """The input read once and the output written; the weights read, and multiplied per image."""
    x, *weights = tensors
    elements = sum(w.numel() for w in weights)
    size = x.element_size()
    return work.Work((2 * x.numel() + elements) * size, 2 * x.numel() + 2 * elements * x.shape[0])


def case(shape: tuple[int, int, int], squeeze: int, channels_last: bool, *, quick: bool) -> Case:
    N, C, size = shape

    def inputs(device: torch.device) -> tuple[Tensor, ...]:
        g = cases.generator(6)
        x = cases.feature_map(N, C, size, size, seed=3, channels_last=channels_last)
        weights = [
            torch.randn(squeeze, C, 1, 1, generator=g) / C**0.5,
            torch.randn(squeeze, generator=g),
            torch.randn(C, squeeze, 1, 1, generator=g) / squeeze**0.5,
            torch.randn(C, generator=g),
        ]
        return tuple(t.to(device) for t in (x, *weights))

    def providers(device: torch.device) -> Providers:
        def ours(backend: str) -> Callable[..., Tensor]:
            return lambda *tensors: fastvision.ops.squeeze_excitation(
                *tensors, "relu", "hardsigmoid", backend=backend
            )

        peers = {EAGER_CHANNELS_LAST if channels_last else EAGER: layers}
        peers[COMPILED] = compiled(layers)
        names = backends(lambda: None, device, reference=False)
        return peers | {name: ours(name) for name in names if name != "cuda"}

    layout = "channels_last" if channels_last else "contiguous"
    return Case(
        "squeeze_excitation",
        f"{N}x{C}x{size}x{size}, {squeeze} squeezed, float32, {layout}",
        inputs=inputs,
        providers=providers,
        check=lambda actual, expected: assert_matches(actual, expected),
        work=least,
        quick=quick,
    )


CASES = [case(*specification, quick=quick) for specification, quick in SHAPES]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_squeeze_excitation(case: Case, compare) -> None:
    with torch.no_grad():
        compare(case)
