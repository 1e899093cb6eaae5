"""deform_conv2d and its gradients against torchvision."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torchvision
from torch import Tensor

import fastvision
from benchmarks import work
from benchmarks.harness import BASELINE, Case, Providers, backends
from fastvision.testing import cases
from fastvision.testing.deform_conv2d import Problem, leaves
from fastvision.testing.numerics import assert_matches

FORWARD, BOTH = "forward", "forward and backward"
FLOAT, HALF = torch.float32, torch.bfloat16
MEDIUM, SMALL = Problem((2, 64, 64, 64), 64), Problem((2, 16, 14, 14), 16)
# problem, dtypes, layouts (channels_last), part of a quick run: three stages of a ResNet, aligned
# frames of a video (EDVR), version 1, a grouped convolution, and a first layer
PROBLEMS = [
    (SMALL, (FLOAT,), (False,), True),
    (MEDIUM, (FLOAT, HALF), (False, True), True),
    (Problem((2, 128, 28, 28), 128), (FLOAT,), (False, True), False),
    (Problem((2, 256, 28, 28), 256), (FLOAT,), (False, True), False),
    (Problem((2, 512, 14, 14), 512), (FLOAT,), (False, True), False),
    (Problem((1, 64, 96, 128), 64, offset_groups=8), (FLOAT,), (False,), False),
    (Problem((2, 64, 64, 64), 64, mask=False), (FLOAT,), (False,), False),
    (Problem((2, 128, 28, 28), 128, groups=32), (FLOAT,), (False, True), False),
    (Problem((1, 3, 128, 128), 32), (FLOAT,), (False,), False),
]


class Call:
    """The result, or all gradients in one tensor: forward and backward in each call."""

    def __init__(self, problem: Problem, function: Any, gradient: bool) -> None:
        self.problem, self.function, self.gradient = problem, function, gradient
        self.grad: Tensor | None = None

    def __call__(self, *tensors: Tensor) -> Tensor:
        output = self.problem.call(self.function, [*tensors, *(None,) * (5 - len(tensors))])
        if not self.gradient:
            return output
        if self.grad is None:
            self.grad = torch.empty_like(output)  # in the result's memory format
            self.grad.copy_(cases.feature_map(*output.shape, seed=9))
        grads = torch.autograd.grad(output, tensors, self.grad)
        return torch.cat([grad.flatten() for grad in grads])


def torchvision_deform_conv2d(x: Tensor, *others: Any) -> Tensor:
    """bfloat16 goes through float32: torchvision has no kernels for it."""
    if x.dtype != HALF:
        return torchvision.ops.deform_conv2d(x, *others)
    wide = [t.float() if isinstance(t, Tensor) else t for t in (x, *others)]
    return torchvision.ops.deform_conv2d(*wide).to(x.dtype)


def deform_conv2d_case(
    problem: Problem, dtype: torch.dtype, mode: str, *, channels_last: bool, quick: bool
) -> Case:
    gradient = mode == BOTH

    def inputs(device: torch.device) -> tuple[Tensor, ...]:
        options = {"channels_last": channels_last, "gradients": gradient}
        return tuple(leaves(problem.tensors(dtype, device, **options)))

    def providers(device: torch.device) -> Providers:
        def run(*arguments: Any, backend: str) -> Tensor:
            return fastvision.ops.deform_conv2d(*arguments, backend=backend)

        every = {BASELINE: torchvision_deform_conv2d}
        every |= backends(run, device, reference=problem is SMALL)
        return {name: Call(problem, function, gradient) for name, function in every.items()}

    def least_work(tensors: tuple[Tensor, ...], _: Tensor) -> work.Work:
        output = tensors[0].new_empty((problem.shape[0], problem.filters, *problem.size))
        groups = problem.offset_groups
        return work.deformable_convolution(
            list(tensors), output, offset_groups=groups, backward=gradient
        )

    layout = "channels_last" if channels_last else "contiguous"
    kind = str(dtype).removeprefix("torch.")
    return Case(
        "deform_conv2d",
        f"{mode}, {problem}, {kind}, {layout}",
        inputs=inputs,
        providers=providers,
        check=lambda y, expected: assert_matches(
            y, expected, scale=2 * max(1.0, expected.abs().max().item())
        ),
        work=least_work,
        quick=quick,
        note="torchvision through float32" if dtype == HALF else "",
    )


CASES = [
    deform_conv2d_case(problem, dtype, mode, channels_last=last, quick=quick and not last)
    for problem, dtypes, layouts, quick in PROBLEMS
    for dtype in dtypes
    for mode in (FORWARD, BOTH)
    for last in layouts
]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_deform_conv2d(case: Case, compare) -> None:
    compare(case)
