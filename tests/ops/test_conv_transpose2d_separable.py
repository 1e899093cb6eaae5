"""Transposed convolution by filters that are products, as bilinear upsampling's are."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn import functional as F

from fastvision import ops
from fastvision._memory_format import memory_format
from fastvision.ops.conv.prepared import separable_filter
from fastvision.testing import cases
from fastvision.testing.conv_transpose2d import (
    FACTORS,
    batch_norm,
    bilinear,
    composed,
    random,
    runs,
    upsampler,
)
from fastvision.testing.marks import LAYOUTS
from fastvision.testing.numerics import DTYPES, assert_matches
from fastvision.testing.tensors import dtype_id

pytestmark = pytest.mark.usefixtures("poisoned_memory")


@LAYOUTS
@pytest.mark.parametrize("depthwise", [False, True], ids=["dense", "depthwise"])
@pytest.mark.parametrize("dtype", DTYPES, ids=dtype_id)
@pytest.mark.parametrize("factor", FACTORS)
# once the large map is enough; Triton's interpreter is slow
@pytest.mark.only(
    lambda backend, dtype, factor, channels_last, depthwise: (
        runs(backend, dtype)
        and (factor < 32 or dtype == torch.float32)
        and not (backend.interpreted and (factor > 3 or (channels_last and depthwise)))
    )
)
def test_bilinear(backend, channels_last, depthwise, dtype, factor):
    channels, size = (2, (2, 3)) if backend.interpreted else (21, (5, 6))
    x = cases.feature_map(2, channels, *size, dtype=dtype, channels_last=channels_last)
    x = x.to(backend.device)
    weight = upsampler(channels, factor, depthwise, dtype).to(x)
    groups = channels if depthwise else 1
    assert separable_filter(weight, groups) is not None
    options = {"stride": factor, "padding": factor // 2, "groups": groups}
    norm = batch_norm(channels, backend.device, torch.promote_types(dtype, torch.float32))
    residual = random(2, channels, *(n * factor for n in size), seed=8).to(x)
    bias = random(channels, seed=2).to(x)
    y = ops.conv_transpose2d(x, weight, bias, **options, backend=backend.name)
    assert y.is_contiguous(memory_format=memory_format(channels_last))
    expected = F.conv_transpose2d(x.double(), weight.double(), bias.double(), **options)
    assert_matches(y, expected, scale=2)
    rest = {"residual": residual, "activation": "hardswish", "eps": 1e-3}
    y = ops.conv_transpose2d_bn_relu(
        x, weight, bias, **norm, **options, **rest, backend=backend.name
    )
    wide = {name: value.double() for name, value in norm.items()}
    args = (x.double(), weight.double(), bias.double(), wide, residual.double())
    assert_matches(y, composed(*args, "hardswish", 0, options), scale=4)


@LAYOUTS
@pytest.mark.parametrize("size, stride, padding", [(1, 1, 0), (1, 3, 0), (7, 2, 3), (9, 2, 1)])
def test_other_separable_filters(backend, channels_last, size, stride, padding):
    """One to five taps per axis, channels of their own scale, and outputs that no tap reaches."""
    x = cases.feature_map(1, 3, 4, 5, channels_last=channels_last).to(backend.device)
    rows, columns = random(size, seed=1), random(size, seed=2)
    filters = rows[:, None] * columns * random(3, seed=3).view(3, 1, 1, 1)
    filters = filters.to(x)
    assert separable_filter(filters, 3) is not None
    options = {"stride": stride, "padding": padding, "output_padding": stride - 1, "groups": 3}
    y = ops.conv_transpose2d(x, filters, None, **options, backend=backend.name)
    expected = F.conv_transpose2d(x.double(), filters.double(), None, **options)
    assert_matches(y, expected, scale=4)


def test_separable_filter_is_told_apart():
    weight = upsampler(4, 4, depthwise=False)
    found = separable_filter(weight, 1)
    assert found is not None and torch.equal(found.scale, found.scale[:1].expand(4))
    outer = torch.tensor(found.rows)[:, None] * torch.tensor(found.columns)
    assert_matches(outer * found.scale[0], bilinear(4))
    for c, k, value in ((0, 1, 1e-6), (3, 2, 1e-6), (2, 2, 1e-3), (1, 1, math.nan)):
        other = weight.clone()
        other[c, k, 1, 2] += value
        assert separable_filter(other, 1) is None
    assert separable_filter(torch.zeros(2, 2, 3, 3), 1) is None
    assert separable_filter(random(4, 1, 3, 3), 4) is None
    assert separable_filter(random(4, 3, 1, 1), 1) is None
    assert separable_filter(random(4, 2, 1, 1), 2) is None


@LAYOUTS
@pytest.mark.parametrize("factor", [2, 3, 9])
def test_nan_and_infinity_stay_where_they_are(backend, channels_last, factor):
    """Positions that no tap connects with an infinite pixel do not see it."""
    x = torch.ones(1, 2, 4, 5, device=backend.device)
    x[0, 0, 1, 1] = math.inf
    x = x.contiguous(memory_format=memory_format(channels_last))
    weight = upsampler(2, factor, depthwise=True).to(x)
    options = {"stride": factor, "padding": factor // 2, "groups": 2}
    y = ops.conv_transpose2d(x, weight, None, **options, backend=backend.name)
    expected = F.conv_transpose2d(x.double(), weight.double(), None, **options)
    assert torch.equal(y.isfinite(), expected.isfinite())
    y = ops.conv_transpose2d_bn_relu(x * math.nan, weight, None, **options, backend=backend.name)
    assert y[..., 2:-2, 2:-2].isnan().all()


def test_filter_that_stops_being_separable(backend):
    x = cases.feature_map(1, 3, 4, 4).to(backend.device)
    weight = upsampler(3, 2, depthwise=False).to(x)
    for value in (0.0, 1.0, -1.0):
        weight[0, 2, 1, 1] += value
        y = ops.conv_transpose2d(x, weight, None, 2, 1, backend=backend.name)
        assert_matches(y, F.conv_transpose2d(x.double(), weight.double(), None, 2, 1))
