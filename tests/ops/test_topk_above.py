"""The largest values along an axis, against a stable sort."""

from __future__ import annotations

import functools
import math

import pytest
import torch

from fastvision import _extension, reference
from fastvision.ops._topk_above import has_kernel, topk_above
from fastvision.testing import cases
from fastvision.testing.backends import LEVELS
from fastvision.testing.marks import needs_library
from fastvision.testing.threads import same_for_threads

DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)

pytestmark = [needs_library, pytest.mark.usefixtures("poisoned_memory")]


def values_of(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(shape, generator=cases.generator(0)).to(dtype)


def assert_same(x: torch.Tensor, k: int, least: float = -math.inf) -> None:
    assert has_kernel(x)
    actual, expected = topk_above(x, k, least), reference.topk_above(x, k, least)
    assert actual[0].dtype == x.dtype and actual[1].dtype == torch.int64
    assert torch.equal(actual[1], expected[1])
    torch.testing.assert_close(actual[0], expected[0], rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("columns", [1, 3, 16, 37])
def test_largest(columns, dtype, level, cpu_level):
    _extension.set_cpu_level(level)
    x = values_of(2, 3001, columns, dtype=dtype)  # 16-bit values have many ties
    for k in (1, 5, 400, 3001, 5000):
        assert_same(x, k)
    assert_same(x, 300, 1.5)  # of fewer values
    assert_same(x[:, ::2], 20)
    if columns > 1:
        assert_same(x[..., 1:], 20)
        assert_same(x.mT.contiguous().mT, 20)


def test_pieces():
    """Results do not depend on how many tasks a long column is split into."""
    x = values_of(1, 200_003, 1, dtype=torch.bfloat16)
    for values, k in ((x, 1000), (x.sort(1).values, 1000), (torch.zeros(3, 50_000, 1), 700)):
        actual = same_for_threads(functools.partial(topk_above, values, k))
        assert all(map(torch.equal, actual, reference.topk_above(values, k, -math.inf)))


def test_values_that_do_not_count():
    x = values_of(1, 500, 2)
    x[0, 3], x[0, 5, 0], x[0, 7], x[0, 9] = math.nan, math.inf, -math.inf, math.inf
    assert_same(x, 10)
    assert_same(x, 500)
    values, indices = topk_above(x, 10, 100.0)
    assert values[0].isfinite().sum() == 0 and (values[0] == math.inf).sum() == 3
    assert indices[0].tolist() == [[5, 9] + [0] * 8, [9] + [0] * 9]
    assert topk_above(x, 10, math.nan)[0].isnan().all()
    assert topk_above(torch.full((1, 9, 1), math.inf).repeat(1, 400, 1), 3)[1].tolist() == [
        [[0, 1, 2]]
    ]


@pytest.mark.parametrize("shape", [(0, 5, 2), (2, 0, 3), (2, 5, 0)])
def test_empty(shape):
    values, indices = topk_above(torch.zeros(shape), 4)
    assert values.shape == indices.shape == (shape[0], shape[2], min(4, shape[1]))


def test_gradient():
    x = values_of(2, 40, 3).double().requires_grad_()
    assert torch.autograd.gradcheck(lambda x: topk_above(x, 6)[0], x)
    values = topk_above(x, 6, 1.0)[0]
    values.nansum().backward()
    assert values.isnan().any()
    assert torch.equal(x.grad.sum((1,)), (~values.isnan()).double().sum(2))
    assert torch.equal(x.grad > 0, (x >= 1) & (x >= values.nan_to_num(nan=1.0).amin(2)[:, None]))


def test_refusals():
    with pytest.raises(RuntimeError, match="input must have 3 dimensions, got 2"):
        topk_above(torch.zeros(4, 4), 2)
    with pytest.raises(RuntimeError, match="k must not be negative, got -1"):
        topk_above(torch.zeros(1, 4, 4), -1)
    with pytest.raises(RuntimeError, match="input must be float16"):
        topk_above(torch.zeros(1, 4, 4, dtype=torch.int32), 1)


def test_opcheck():
    arguments = values_of(2, 30, 4), 5, -math.inf
    torch.library.opcheck(torch.ops.fastvision.topk_above.default, arguments)
