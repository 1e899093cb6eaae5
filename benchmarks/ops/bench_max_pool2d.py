"""max_pool2d_with_indices, max_unpool2d and their gradients against torch's."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

import fastvision
from benchmarks import work
from benchmarks.harness import EAGER, Case, Providers, backends
from fastvision.testing import cases
from fastvision.testing.numerics import assert_matches

FLOAT, BFLOAT = torch.float32, torch.bfloat16
POOL, UNPOOL = "pool", "unpool"
# SegNet's first, third and fifth pooling of 224 pixels, ResNet's, and one of a small image
# (shape, kernel, stride, padding), dtypes, part of a quick run
PROBLEMS = [
    (((1, 64, 224, 224), 2, 2, 0), (FLOAT, BFLOAT), False),
    (((1, 256, 56, 56), 2, 2, 0), (FLOAT, BFLOAT), True),
    (((1, 512, 14, 14), 2, 2, 0), (FLOAT,), True),
    (((8, 64, 112, 112), 3, 2, 1), (FLOAT, BFLOAT), False),
    (((4, 3, 224, 224), 2, 2, 0), (FLOAT,), False),
]


class Gradient:
    """The gradient of the first input alone: the forward pass runs once."""

    def __init__(self, forward: Callable[..., Tensor]) -> None:
        self.forward = forward
        self.output: Tensor | None = None

    def __call__(self, x: Tensor, *others: Tensor) -> Tensor:
        if self.output is None:
            self.output = self.forward(x, *others)
            self.grad = torch.empty_like(self.output)  # in the result's memory format
            self.grad.copy_(cases.feature_map(*self.output.shape, seed=7))
        return torch.autograd.grad(self.output, x, self.grad, retain_graph=True)[0]


def pooling_case(
    mode: str,
    gradient: bool,
    shape: tuple[int, ...],
    kernel: int,
    stride: int,
    padding: int,
    dtype: torch.dtype,
    *,
    channels_last: bool,
    quick: bool,
) -> Case:
    window = (kernel, stride, padding)

    def inputs(device: torch.device) -> tuple[Tensor, ...]:
        x = cases.feature_map(*shape, dtype=dtype, channels_last=channels_last).to(device)
        given = (x,) if mode == POOL else F.max_pool2d(x, *window, return_indices=True)
        return (given[0].requires_grad_(gradient), *given[1:])

    def eager(*given: Tensor) -> Tensor:
        if mode == POOL:
            return F.max_pool2d(*given, *window, return_indices=True)[0]
        return F.max_unpool2d(*given, *window, shape[2:])

    def run(*given: Tensor, backend: str) -> Tensor:
        if mode == POOL:
            return fastvision.ops.max_pool2d_with_indices(*given, *window, backend=backend)[0]
        return fastvision.ops.max_unpool2d(*given, *window, shape[2:], backend=backend)

    def providers(device: torch.device) -> Providers:
        found: dict[str, Callable[..., Any]] = {EAGER: eager}
        found |= backends(run, device, reference=False)
        return {name: Gradient(call) if gradient else call for name, call in found.items()}

    layout = "channels_last" if channels_last else "contiguous"
    size = "x".join(map(str, shape))
    kind = str(dtype).removeprefix("torch.")
    return Case(
        "max_pool2d",
        f"{mode}{', gradient' * gradient}, {size}, {kernel}x{kernel}/{stride}, {kind}, {layout}",
        inputs=inputs,
        providers=providers,
        check=lambda y, expected: assert_matches(y, expected, scale=4),
        work=lambda _, __: work.max_pooling(shape, kernel, stride, padding, dtype),
        quick=quick and not gradient,
    )


CASES = [
    pooling_case(mode, gradient, *problem, dtype, channels_last=last, quick=quick)
    for problem, dtypes, quick in PROBLEMS
    for mode in (POOL, UNPOOL)
    if mode == POOL or problem[1] == problem[2]  # torch's rule differs where indices overlap
    for gradient in (False, True)
    for dtype in dtypes
    for last in (False, True)
]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_max_pool2d(case: Case, compare) -> None:
    compare(case)
