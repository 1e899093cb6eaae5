"""Transposed convolution: every backend against the reference in float64."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from fastvision import ops
from fastvision._memory_format import memory_format
from fastvision.reference import ACTIVATIONS
from fastvision.testing.conv_transpose2d import SHAPES, batch_norm, composed, make, random, runs
from fastvision.testing.marks import LAYOUTS
from fastvision.testing.numerics import DTYPES, assert_matches
from fastvision.testing.tensors import dtype_id, in_format, leaf

pytestmark = pytest.mark.usefixtures("poisoned_memory")


@LAYOUTS
@pytest.mark.parametrize("dtype", DTYPES, ids=dtype_id)
@pytest.mark.parametrize("shape", SHAPES)
# the formats' code is the same for all types; Triton's interpreter is slow
@pytest.mark.only(
    lambda backend, dtype, channels_last, shape: (
        runs(backend, dtype, channels_last)
        and (dtype, channels_last) not in ((torch.float64, True), (torch.float16, False))
        and not (backend.interpreted and shape == "many phases")
    )
)
def test_forward_and_backward(backend, channels_last, dtype, shape):
    batch = 1 if backend.interpreted else 2
    x, weight, bias, options = make(shape, dtype, channels_last, backend.device, batch)
    args = [leaf(t) for t in (x, weight, bias)]
    y = ops.conv_transpose2d(*args, **options, backend=backend.name)
    exact = [leaf(t.double()) for t in args]
    expected = F.conv_transpose2d(*exact, **options)
    assert y.dtype == dtype
    if y.shape[-1] > 1:  # else both formats fit
        assert y.is_contiguous(memory_format=memory_format(channels_last and x.shape[-1] > 1))
    assert_matches(y, expected, scale=2)
    with torch.no_grad():
        assert_matches(ops.conv_transpose2d(*args, **options, backend=backend.name), y)

    grad = random(*y.shape, seed=3).to(y)
    y.backward(grad)
    expected.backward(grad.double())
    for ours, theirs in zip(args, exact, strict=True):
        assert_matches(ours.grad, theirs.grad, scale=8)


@LAYOUTS
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=dtype_id)
@pytest.mark.parametrize("shape", ["k3s2p1 op1", "depthwise", "many phases"])
# Triton's interpreter is slow
@pytest.mark.only(
    lambda backend, dtype, channels_last, shape: (
        runs(backend, dtype, channels_last)
        and not (backend.interpreted and (shape == "many phases" or dtype != torch.float32))
    )
)
def test_fused(backend, channels_last, dtype, activation, shape):
    x, weight, bias, options = make(shape, dtype, channels_last, backend.device)
    norm = batch_norm(bias.numel(), backend.device)
    size = F.conv_transpose2d(x.float(), weight.float(), **options).shape
    residual = random(*size, seed=8).to(x)
    args = [leaf(t) for t in (x, weight, bias, residual, norm["bn_weight"], norm["bn_bias"])]
    rest = {"residual": args[3], "activation": activation, "eps": 1e-3, "negative_slope": 0.2}
    norm |= {"bn_weight": args[4], "bn_bias": args[5]}
    run = {**norm, **options, **rest, "backend": backend.name}
    y = ops.conv_transpose2d_bn_relu(*args[:3], **run)
    exact = [leaf(t.double()) for t in args]
    wide = {name: value.double() for name, value in norm.items()}
    wide |= {"bn_weight": exact[4], "bn_bias": exact[5]}
    expected = composed(*exact[:3], wide, exact[3], activation, 0.2, options)
    assert_matches(y, expected, scale=4)
    with torch.no_grad():
        assert_matches(ops.conv_transpose2d_bn_relu(*args[:3], **run), expected, scale=4)

    # where rounding puts a value on the other side of a kink, the gradient jumps
    near_kink = expected.abs() < 0.05
    for kink in (3, 6):  # of hardswish and of relu6
        near_kink |= (expected - kink).abs() < 0.1
    grad = random(*y.shape, seed=3).to(y).masked_fill(near_kink, 0)
    y.backward(grad)
    expected.backward(grad.double())
    for ours, theirs in zip(args, exact, strict=True):
        assert_matches(ours.grad.to(dtype), theirs.grad, scale=16)


@torch.no_grad()
@LAYOUTS
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=dtype_id)
@pytest.mark.parametrize("shape", ["k2s2 wide", "k4s2p1", "k3s2p1 op1", "k<s", "uneven"])
def test_many_maps(cpu_level, channels_last, dtype, shape):
    """More pixels than a worker takes at once; phases go together where their grids are equal."""
    x, weight, bias, options = make(shape, dtype, channels_last, batch=90)
    residual = random(*F.conv_transpose2d(x, weight, bias, **options).shape, seed=8).to(x)
    y = ops.conv_transpose2d_bn_relu(x, weight, bias, **options, residual=residual)
    exact = F.conv_transpose2d(x.double(), weight.double(), bias.double(), **options)
    assert_matches(y, (exact + residual).relu(), scale=4)
    assert y.is_contiguous(memory_format=memory_format(channels_last))


@LAYOUTS
def test_hand_checked(backend, channels_last):
    """Each pixel becomes its multiple of the filter, and overlaps add."""
    x = torch.tensor([[[[1.0, 2], [3, 4]]]], device=backend.device)
    x = x.expand(1, 2, 2, 2).contiguous(memory_format=memory_format(channels_last))
    weight = torch.tensor([[1.0, 10], [100, 1000]], device=backend.device)
    weight = torch.stack([weight, 0 * weight])[:, None]
    y = ops.conv_transpose2d(x, weight, None, 2, backend=backend.name)
    assert y.tolist() == [
        [[[1, 10, 2, 20], [100, 1000, 200, 2000], [3, 30, 4, 40], [300, 3000, 400, 4000]]]
    ]
    y = ops.conv_transpose2d(x, weight, None, 1, backend=backend.name)
    assert y.tolist() == [[[[1, 12, 20], [103, 1234, 2040], [300, 3400, 4000]]]]


@pytest.mark.parametrize("shape", ["k2s2", "depthwise", "many phases"])
def test_empty_batch(backend, shape):
    x, weight, bias, options = make(shape, device=backend.device)
    args = [leaf(x[:0]), leaf(weight), leaf(bias)]
    y = ops.conv_transpose2d(*args, **options, backend=backend.name)
    assert y.shape == F.conv_transpose2d(x, weight, bias, **options)[:0].shape
    y.sum().backward()
    assert args[0].grad.shape == args[0].shape
    assert args[1].grad.eq(0).all() and args[2].grad.eq(0).all()
    with torch.no_grad():
        args[0] = args[0].to(memory_format=torch.channels_last)
        assert ops.conv_transpose2d(*args, **options, backend=backend.name).shape == y.shape


def test_strided_and_unbatched_input(backend):
    x, weight, bias, options = make("k3s2p1 op1", device=backend.device)
    wide = torch.zeros(4, 2 * x.shape[1], 2 * x.shape[2], x.shape[3]).to(x)
    view = wide[::2, 1::2, ::2]
    view.copy_(x)
    options["backend"] = backend.name
    expected = ops.conv_transpose2d(x, weight, bias, **options)
    actual = ops.conv_transpose2d(view, weight.mT.contiguous().mT, bias, **options)
    assert_matches(actual, expected)
    assert_matches(ops.conv_transpose2d(x[0], weight, bias, **options), expected[0])
    residual = torch.ones_like(expected)
    fused = ops.conv_transpose2d_bn_relu(
        x, weight, bias, residual=residual.mT.contiguous().mT, activation="none", **options
    )
    assert_matches(fused, expected + 1)


def test_phases_without_taps_of_a_narrow_depthwise_map():
    x, weight = torch.randn(1, 8, 3, 2), torch.randn(8, 1, 1, 2)
    arguments = (None, (2, 1), (0, 4), 0, 8, (1, 8))
    y = ops.conv_transpose2d(x, weight, *arguments)
    torch.testing.assert_close(y, F.conv_transpose2d(x, weight, *arguments))


def test_phases_without_taps_of_several_groups():
    x = torch.randn(1, 15, 3, 1).to(memory_format=torch.channels_last)
    weight = torch.randn(15, 2, 1, 1)
    arguments = (None, 2, (3, 1), 2, 5, (3, 4))
    y = ops.conv_transpose2d(x, weight, *arguments)
    torch.testing.assert_close(y, F.conv_transpose2d(x, weight, *arguments))


@pytest.mark.parametrize("padding", [0, 2, 3])  # 3: windows begin inside the map
@LAYOUTS
def test_rows_of_groups(padding, channels_last):
    x, weight = in_format(torch.randn(2, 32, 9, 14), channels_last), torch.randn(32, 8, 3, 3)
    y = ops.conv_transpose2d(x, weight, padding=padding, groups=4)
    expected = F.conv_transpose2d(x.double(), weight.double(), padding=padding, groups=4)
    assert_matches(y, expected, scale=2)
