"""Convolutions whose result takes the memory of their residual."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from fastvision.ops.conv import cpu
from fastvision.testing import cases
from fastvision.testing.marks import needs_library
from fastvision.testing.tensors import in_format

pytestmark = [needs_library, pytest.mark.usefixtures("poisoned_memory")]
RUN = torch.ops.fastvision
OPTIONS = cpu.conv_options(32, 3, 3, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1)  # 3x3 with padding, and ReLU


def maps(seed: int) -> Tensor:
    return in_format(cases.feature_map(2, 32, 13, 14, seed=seed), True)


@pytest.fixture(params=["conv_packed", "conv_winograd"])
def kernel(request) -> tuple[Callable[..., Tensor], Callable[..., None], Tensor]:
    """The op, the one in place, and packed weights."""
    weight = cases.feature_map(32, 32, 3, 3, seed=3)
    if request.param == "conv_packed":
        return RUN.conv_packed, RUN.conv_packed_, RUN.conv_pack(weight, None, 1)
    return RUN.conv_winograd, RUN.conv_winograd_, RUN.conv_winograd_pack(weight, None)


def test_result(kernel):
    run, run_in_place, packed = kernel
    x, residual = maps(0), maps(1)
    expected = run(x, packed, residual, OPTIONS)
    run_in_place(x, packed, residual, OPTIONS)
    assert torch.equal(residual, expected)


@pytest.mark.parametrize("groups", [2, 4, 8])
def test_groups(groups):
    packed = RUN.conv_pack(cases.feature_map(32, 32 // groups, 3, 3, seed=3), None, groups)
    options = cpu.conv_options(32, 3, 3, 1, 1, 1, 1, 1, 1, 1, 1, groups, 1)
    x, residual = maps(0), maps(1)
    expected = RUN.conv_packed(x, packed, residual, options)
    RUN.conv_packed_(x, packed, residual, options)
    assert torch.equal(residual, expected)


def test_parts_of_one_tensor(kernel):
    run, run_in_place, packed = kernel
    both = torch.cat([maps(0), maps(1)])
    for x, residual in ((both[:2], both[2:]), (both[2:], both[:2])):
        expected = run(x, packed, residual, OPTIONS)
        run_in_place(x, packed, residual, OPTIONS)
        assert torch.equal(residual, expected)


def test_refusals(kernel):
    _, run_in_place, packed = kernel
    x = maps(0)
    longer = torch.cat([x, x[:1]])
    for input, residual in ((x, x), (longer[:2], longer[1:]), (longer[1:], longer[:2])):
        with pytest.raises(RuntimeError, match="residual must not share memory with the input"):
            run_in_place(input, packed, residual, OPTIONS)
    for residual in (x[:1], x.double(), x[..., :-1], x.contiguous(), x[:1].expand(x.shape), x[0]):
        with pytest.raises(RuntimeError, match="residual must be channels_last and have the shape"):
            run_in_place(maps(1), packed, residual, OPTIONS)
    assert torch.equal(x, maps(0))


def test_stride():
    weight = cases.feature_map(32, 32, 3, 3, seed=3)
    packed = RUN.conv_winograd_pack(weight, None, False, 2)
    options = cpu.conv_options(32, 3, 3, 2, 2, 1, 1, 1, 1, 1, 1, 1, 1)
    x, residual = maps(0), in_format(cases.feature_map(2, 32, 7, 7, seed=1), True)
    expected = RUN.conv_winograd(x, packed, residual, options)
    RUN.conv_winograd_(x, packed, residual, options)
    assert torch.equal(residual, expected)
    for wrong, error in ((1, "packed does not belong to these sizes"), (3, "the stride 1 or 2")):
        with pytest.raises(RuntimeError, match=error):
            RUN.conv_winograd(x, packed, None, cpu.conv_options(32, 3, 3, wrong, wrong, *[1] * 8))
    with pytest.raises(RuntimeError, match="stride must be 1 or 2, got 3"):
        RUN.conv_winograd_pack(weight, None, False, 3)
