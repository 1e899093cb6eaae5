"""Chains of modules that become one fused layer."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from torch import nn

from fastvision.testing.fusion import check, conv, kinds, reasons

pytestmark = pytest.mark.usefixtures("one_thread", "small_weights_are_packed")


CHAINS: dict[str, tuple[Callable[[], nn.Module], dict[str, int]]] = {
    "conv bn relu": (
        lambda: nn.Sequential(conv(), nn.BatchNorm2d(6), nn.ReLU(inplace=True)),
        {"Conv2d + BatchNorm2d + relu": 1},
    ),
    "conv without bias, bn without affine": (
        lambda: nn.Sequential(conv(bias=False), nn.BatchNorm2d(6, affine=False), nn.SiLU()),
        {"Conv2d + BatchNorm2d + silu": 1},
    ),
    "strided, dilated, grouped": (
        lambda: nn.Sequential(
            conv(), nn.ReLU6(), conv(6, 4, stride=2, dilation=(2, 1), groups=2), nn.Hardswish()
        ),
        {"Conv2d + relu6": 1, "Conv2d + hardswish": 1},
    ),
    "leaky": (
        lambda: nn.Sequential(conv(padding="same"), nn.BatchNorm2d(6), nn.LeakyReLU(0.3)),
        {"Conv2d + BatchNorm2d + leaky_relu": 1},
    ),
    "valid, other eps": (
        lambda: nn.Sequential(conv(padding="valid"), nn.BatchNorm2d(6, eps=0.1), nn.Sigmoid()),
        {"Conv2d + BatchNorm2d + sigmoid": 1},
    ),
    "an activation there is no code for": (
        lambda: nn.Sequential(conv(), nn.BatchNorm2d(6), nn.GELU()),
        {"Conv2d + BatchNorm2d": 1},
    ),
    "dropout in between": (
        lambda: nn.Sequential(conv(), nn.BatchNorm2d(6), nn.Dropout(), nn.ReLU(), nn.Dropout2d()),
        {"Conv2d + BatchNorm2d + relu": 1},
    ),
    "linear": (
        lambda: nn.Sequential(
            nn.Flatten(),
            nn.Linear(504, 7),
            nn.ReLU(),
            nn.Linear(7, 5),
            nn.Hardswish(),
            nn.Dropout(),
        ),
        {"Linear + relu": 1, "Linear + hardswish": 1},
    ),
    "bn before conv": (
        lambda: nn.Sequential(nn.BatchNorm2d(3), nn.ReLU(True), conv(), nn.BatchNorm2d(6)),
        {"BatchNorm2d + relu": 1, "Conv2d + BatchNorm2d": 1},
    ),
    "relu before bn": (
        lambda: nn.Sequential(conv(), nn.ReLU(), nn.BatchNorm2d(6)),
        {"Conv2d + relu": 1},
    ),
    "synchronized": (
        lambda: nn.Sequential(conv(), nn.SyncBatchNorm(6), nn.ReLU()),
        {"Conv2d + SyncBatchNorm + relu": 1},
    ),
}


@pytest.mark.parametrize("channels_last", [None, True, False])
@pytest.mark.parametrize("name", CHAINS)
def test_chain(name: str, channels_last: bool | None) -> None:
    build, expected = CHAINS[name]
    fused = check(build(), channels_last=channels_last)
    assert kinds(fused) == expected
    assert not reasons(fused)
    assert not fused.training
