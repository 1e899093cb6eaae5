"""batch_norm_relu and conv_bn_relu in training, against torch's layers one by one."""

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
from fastvision._memory_format import memory_format
from fastvision.testing import cases
from fastvision.testing.numerics import TOLERANCES, assert_matches

FORWARD, STEP = "forward", "forward and backward"
FLOAT, BFLOAT = torch.float32, torch.bfloat16
NCHW, LAST = False, True  # channels_last
# ((N, C, H, W), mode, residual, dtype, channels_last), part of a quick run
NORMS = [
    (((2, 32, 14, 14), STEP, False, FLOAT, LAST), True),
    (((8, 64, 56, 56), FORWARD, False, FLOAT, LAST), True),
    (((8, 64, 56, 56), STEP, False, FLOAT, LAST), True),
    (((8, 64, 56, 56), FORWARD, False, FLOAT, NCHW), False),
    (((8, 64, 56, 56), STEP, False, FLOAT, NCHW), False),
    (((8, 512, 7, 7), STEP, False, FLOAT, LAST), False),
    (((8, 512, 7, 7), STEP, False, FLOAT, NCHW), False),
    (((8, 256, 56, 56), STEP, False, FLOAT, LAST), False),
    (((8, 256, 56, 56), STEP, True, FLOAT, LAST), False),
    (((8, 256, 56, 56), STEP, True, FLOAT, NCHW), False),
    (((8, 64, 56, 56), FORWARD, False, BFLOAT, LAST), False),
    (((8, 64, 56, 56), STEP, False, BFLOAT, LAST), False),
]
# (channels, height and width, batch), part of a quick run
CONVOLUTIONS = [((64, 56, 8), True), ((128, 28, 8), False), ((256, 14, 8), False)]
GRADIENT_TERMS = 64  # the gradients of weight and bias are sums over all places
# of a gradient's norm: where the activation's input is almost zero, either gradient is right. The
# layers' own gradients in float32 and float64 differ by up to 0.0018 here
FLIPPED = 5e-3


def check(actual: list[Tensor], expected: list[Tensor]) -> None:
    for a, b in zip(actual, expected, strict=True):
        assert_matches(a, b, scale=GRADIENT_TERMS)


def check_norms(actual: list[Tensor], expected: list[Tensor]) -> None:
    """Gradients, as a whole."""
    for a, b in zip(actual, expected, strict=True):
        bound = max(FLIPPED, GRADIENT_TERMS * TOLERANCES[a.dtype])
        assert (a - b).norm() <= bound * b.norm()


def differentiated(layers: Callable[..., Tensor], mode: str) -> Callable[..., list[Tensor]]:
    """The result, or the gradients of all inputs in ``mode`` STEP."""

    def run(*inputs: Any) -> list[Tensor]:
        *tensors, grad = inputs
        if mode == FORWARD:
            with torch.no_grad():
                return [layers(*tensors)]
        wanted = [t for t in tensors if t is not None]
        return list(torch.autograd.grad(layers(*tensors), wanted, grad))

    return run


def norm_case(
    shape: tuple[int, ...],
    mode: str,
    residual: bool,
    dtype: torch.dtype,
    channels_last: bool,
    *,
    quick: bool,
) -> Case:
    C = shape[1]

    def inputs(device: torch.device) -> tuple[Any, ...]:
        x, added, grad = (
            cases.feature_map(*shape, seed=seed, dtype=dtype, channels_last=channels_last)
            for seed in (3, 4, 5)
        )
        weight, bias = torch.rand(2, C, generator=cases.generator(6)) + 0.5
        tensors = [x, weight, bias, added]
        tensors = [t.to(device).requires_grad_(mode == STEP) for t in tensors]
        if not residual:
            tensors[3] = None
        return (*tensors, grad.to(device))

    def providers(device: torch.device) -> Providers:
        mean, var = torch.zeros(C, device=device), torch.ones(C, device=device)

        def layers(x: Tensor, weight: Tensor, bias: Tensor, added: Tensor | None) -> Tensor:
            y = F.batch_norm(x, mean, var, weight, bias, True)
            return F.relu(y if added is None else y + added, inplace=True)

        def ours(backend: str) -> Callable[..., Tensor]:
            return lambda x, weight, bias, added: fastvision.ops.batch_norm_relu(
                x, mean, var, weight, bias, True, residual=added, backend=backend
            )

        name = EAGER_CHANNELS_LAST if channels_last else EAGER
        peers = {name: differentiated(layers, mode)}
        if dtype == torch.float32:
            peers[COMPILED] = differentiated(compiled(layers), mode)
        names = backends(lambda: None, device, reference=False)
        return peers | {name: differentiated(ours(name), mode) for name in names if name != "cuda"}

    kind = str(dtype).removeprefix("torch.")
    layout = "channels_last" if channels_last else "contiguous"
    added = ", residual" * residual
    return Case(
        "batch_norm_relu",
        f"{mode}, {'x'.join(map(str, shape))}{added}, {kind}, {layout}",
        inputs=inputs,
        providers=providers,
        check=check_norms if mode == STEP else check,
        work=lambda tensors, _: work.batch_norm_relu(
            tensors[0], residual=residual, backward=mode == STEP
        ),
        quick=quick,
        most_seconds=2.0,
    )


def conv_case(C: int, size: int, batch: int, *, quick: bool) -> Case:
    """A training step of a 3x3 convolution with normalization and ReLU."""

    def inputs(device: torch.device) -> tuple[Tensor, ...]:
        x, grad = (
            cases.feature_map(batch, C, size, size, seed=seed, channels_last=True)
            for seed in (3, 5)
        )
        g = cases.generator(6)
        weight = torch.randn(C, C, 3, 3, generator=g) / (9 * C) ** 0.5
        scale, shift = torch.rand(2, C, generator=g) + 0.5
        tensors = [x, weight, scale, shift]
        return (*(t.to(device).requires_grad_() for t in tensors), grad.to(device))

    def providers(device: torch.device) -> Providers:
        mean, var = torch.zeros(C, device=device), torch.ones(C, device=device)

        def layers(x: Tensor, weight: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
            y = F.conv2d(x, weight, padding=1)
            return F.relu(F.batch_norm(y, mean, var, scale, shift, True), inplace=True)

        converted: dict[tuple[int, bool], Tensor] = {}  # beforehand: not part of the time

        def in_format(channels_last: bool, function: Callable[..., Tensor]) -> Any:
            run = differentiated(function, STEP)

            def call(*tensors: Tensor) -> list[Tensor]:
                for t in tensors:
                    if t.dim() == 4 and (id(t), channels_last) not in converted:
                        other = t.detach().contiguous(memory_format=memory_format(channels_last))
                        converted[id(t), channels_last] = other.requires_grad_(t.requires_grad)
                return run(*(converted.get((id(t), channels_last), t) for t in tensors))

            return call

        def ours(backend: str) -> Callable[..., Tensor]:
            return lambda x, weight, scale, shift: fastvision.ops.conv_bn_relu(
                x, weight, bn_weight=scale, bn_bias=shift, running_mean=mean, running_var=var,
                training=True, padding=1, backend=backend,
            )  # fmt: skip

        peers = {
            EAGER: in_format(False, layers),
            EAGER_CHANNELS_LAST: in_format(True, layers),
            COMPILED: in_format(True, compiled(layers)),
        }
        names = backends(lambda: None, device, reference=False)
        return peers | {name: in_format(True, ours(name)) for name in names}

    def least(tensors: tuple[Tensor, ...], _: Any) -> work.Work:
        x, weight = tensors[:2]
        conv = work.convolution(x, weight, x)
        norm = work.batch_norm_relu(x, backward=True)
        return work.Work(3 * conv.bytes + norm.bytes, 3 * conv.flops + norm.flops)

    return Case(
        "batch_norm_relu",
        f"training step, 3x3 convolution {C} to {C} @{size}, batch {batch}, float32",
        inputs=inputs,
        providers=providers,
        check=check_norms,
        work=least,
        quick=quick,
    )


CASES = [
    *(norm_case(*specification, quick=quick) for specification, quick in NORMS),
    *(conv_case(*shape, quick=quick) for shape, quick in CONVOLUTIONS),
]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_batch_norm_relu(case: Case, compare) -> None:
    compare(case)
