"""Transposed convolution: every backend against the reference in float64."""

from __future__ import annotations

import copy
import math
import re

import pytest
import torch
from torch import nn
from torch.autograd import forward_ad
from torch.nn import functional as F

from fastvision import ops, reference
from fastvision.ops.conv.prepared import separable_filter
from fastvision.reference import ACTIVATIONS
from fastvision.testing import cases
from fastvision.testing.numerics import assert_matches

DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]
LAYOUTS = pytest.mark.parametrize("channels_last", [False, True], ids=["nchw", "channels_last"])
pytestmark = pytest.mark.usefixtures("poisoned_memory")

# C, K, (H, W), kernel, and the options: for each rule of the phases one case that has it
SHAPES = {
    "k2s2": (6, 5, (5, 7), 2, {"stride": 2}),
    "k2s2 wide": (37, 35, (3, 4), 2, {"stride": 2}),
    "k4s2p1": (9, 20, (4, 5), 4, {"stride": 2, "padding": 1}),
    "k3s2p1 op1": (5, 18, (6, 5), 3, {"stride": 2, "padding": 1, "output_padding": 1}),
    "k5s3 op2 beyond the input": (3, 4, (3, 2), 5, {"stride": 3, "output_padding": 2}),
    "k<s": (4, 3, (3, 4), 2, {"stride": 3, "output_padding": 1}),
    "k1s2": (4, 8, (4, 3), 1, {"stride": 2}),
    "1x1 map": (8, 6, (1, 1), 4, {"stride": 1}),
    "s1": (4, 5, (4, 6), 3, {"padding": 1}),
    "uneven": (3, 5, (4, 5), (4, 3), {"stride": (2, 3), "padding": (1, 0)}),
    "dilation": (3, 4, (4, 5), 3, {"stride": 2, "dilation": 3, "padding": 2}),
    "dilation and stride with a factor": (3, 4, (5, 4), (2, 3), {"stride": 2, "dilation": (2, 4)}),
    "groups": (6, 9, (4, 5), 4, {"stride": 2, "padding": 1, "groups": 3}),
    "shared vectors": (12, 12, (4, 5), 3, {"stride": 2, "groups": 3}),
    "depthwise": (21, 21, (4, 5), 4, {"stride": 2, "padding": 1, "groups": 21}),
    "depthwise times two": (4, 8, (4, 5), 3, {"stride": 2, "groups": 4}),
    "padding crops inputs": (4, 4, (4, 5), 2, {"stride": 2, "padding": 3}),
    "many phases": (3, 4, (3, 2), 11, {"stride": 9}),
}


def id_of(value) -> str | None:
    return str(value).removeprefix("torch.") if isinstance(value, torch.dtype) else None


def leaf(x: torch.Tensor) -> torch.Tensor:
    return x.detach().requires_grad_()


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=cases.generator(seed))


def make(shape, dtype=torch.float32, channels_last=False, device="cpu", batch=2):
    """Input, weight, bias and options of one of SHAPES; sums are of about unit variance."""
    C, K, size, kernel, options = SHAPES[shape]
    R, S = kernel if isinstance(kernel, tuple) else (kernel, kernel)
    groups = options.get("groups", 1)
    x = cases.feature_map(batch, C, *size, dtype=dtype, channels_last=channels_last)
    weight = random(C, K // groups, R, S, seed=1) / math.sqrt(C // groups)
    return (
        x.to(device),
        weight.to(device, dtype),
        random(K, seed=2).to(device, dtype),
        dict(options),
    )


def format_of(channels_last: bool) -> torch.memory_format:
    return torch.channels_last if channels_last else torch.contiguous_format


def supported(backend, dtype, channels_last=False) -> None:
    if backend.name == "triton" and dtype == torch.float64:
        pytest.skip("the Triton kernels accumulate in float32")
    if backend.interpreted and (dtype == torch.float16 or channels_last):
        pytest.skip("Triton's interpreter is slow: it has the others")
    if backend.name == "reference" and dtype != torch.float32:
        pytest.skip("the reference is one text for all types")


@LAYOUTS
@pytest.mark.parametrize("dtype", DTYPES, ids=id_of)
@pytest.mark.parametrize("shape", SHAPES)
def test_forward_and_backward(backend, channels_last, dtype, shape):
    supported(backend, dtype, channels_last)
    if (dtype, channels_last) in ((torch.float64, True), (torch.float16, False)):
        pytest.skip("the formats' code is the same for all types")
    if backend.interpreted and shape == "many phases":
        pytest.skip("Triton's interpreter is slow")
    batch = 1 if backend.interpreted else 2
    x, weight, bias, options = make(shape, dtype, channels_last, backend.device, batch)
    args = [leaf(t) for t in (x, weight, bias)]
    y = ops.conv_transpose2d(*args, **options, backend=backend.name)
    exact = [leaf(t.double()) for t in args]
    expected = F.conv_transpose2d(*exact, **options)
    assert y.dtype == dtype
    if y.shape[-1] > 1:  # else both formats fit
        assert y.is_contiguous(memory_format=format_of(channels_last and x.shape[-1] > 1))
    assert_matches(y, expected, scale=2)
    with torch.no_grad():
        assert_matches(ops.conv_transpose2d(*args, **options, backend=backend.name), y)

    grad = random(*y.shape, seed=3).to(y)
    y.backward(grad)
    expected.backward(grad.double())
    for ours, theirs in zip(args, exact, strict=True):
        assert_matches(ours.grad, theirs.grad, scale=8)


def batch_norm(K: int, device: str, dtype: torch.dtype | None = None) -> dict[str, torch.Tensor]:
    values = {
        "bn_weight": 1 + 0.1 * random(K, seed=4),
        "bn_bias": random(K, seed=5),
        "running_mean": random(K, seed=6),
        "running_var": 0.5 + random(K, seed=7).square(),
    }
    return {name: value.to(device, dtype) for name, value in values.items()}


def composed(x, weight, bias, norm, residual, activation, slope, options):
    """The fused op in torch's steps, in float64."""
    y = F.conv_transpose2d(x, weight, bias, **options)
    statistics = norm["running_mean"], norm["running_var"]
    y = F.batch_norm(y, *statistics, norm["bn_weight"], norm["bn_bias"], eps=1e-3)
    return reference.activate(y + residual, activation, slope)


@LAYOUTS
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=id_of)
@pytest.mark.parametrize("shape", ["k3s2p1 op1", "depthwise", "many phases"])
def test_fused(backend, channels_last, dtype, activation, shape):
    supported(backend, dtype, channels_last)
    if backend.interpreted and (shape == "many phases" or dtype != torch.float32):
        pytest.skip("Triton's interpreter is slow")
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
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=id_of)
@pytest.mark.parametrize("shape", ["k2s2 wide", "k4s2p1", "k3s2p1 op1", "k<s", "uneven"])
def test_many_maps(cpu_level, channels_last, dtype, shape):
    """More pixels than a worker takes at once; phases go together where their grids are equal."""
    x, weight, bias, options = make(shape, dtype, channels_last, batch=90)
    residual = random(*F.conv_transpose2d(x, weight, bias, **options).shape, seed=8).to(x)
    y = ops.conv_transpose2d_bn_relu(x, weight, bias, **options, residual=residual)
    exact = F.conv_transpose2d(x.double(), weight.double(), bias.double(), **options)
    assert_matches(y, (exact + residual).relu(), scale=4)
    assert y.is_contiguous(memory_format=format_of(channels_last))


# --- separable filters


def bilinear(factor: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """[R, R] of FCN's upsampling by ``factor``."""
    size = 2 * factor - factor % 2
    centre = factor - 1 if size % 2 else factor - 0.5
    row = 1 - (torch.arange(size, dtype=torch.float64) - centre).abs() / factor
    return (row[:, None] * row).to(dtype)


def upsampler(channels: int, factor: int, depthwise: bool, dtype=torch.float32) -> torch.Tensor:
    filters = bilinear(factor, dtype).expand(channels, 1, -1, -1)
    if depthwise:
        return filters.clone()
    return filters * torch.eye(channels, dtype=dtype)[:, :, None, None]


@LAYOUTS
@pytest.mark.parametrize("depthwise", [False, True], ids=["dense", "depthwise"])
@pytest.mark.parametrize("dtype", DTYPES, ids=id_of)
@pytest.mark.parametrize("factor", [2, 3, 8, 32])
def test_bilinear(backend, channels_last, depthwise, dtype, factor):
    supported(backend, dtype)
    if factor == 32 and dtype != torch.float32:
        pytest.skip("a large map, once is enough")
    if backend.interpreted and (factor > 3 or (channels_last and depthwise)):
        pytest.skip("Triton's interpreter is slow")
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
    assert y.is_contiguous(memory_format=format_of(channels_last))
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
    x = x.contiguous(memory_format=format_of(channels_last))
    weight = upsampler(2, factor, depthwise=True).to(x)
    options = {"stride": factor, "padding": factor // 2, "groups": 2}
    y = ops.conv_transpose2d(x, weight, None, **options, backend=backend.name)
    expected = F.conv_transpose2d(x.double(), weight.double(), None, **options)
    assert torch.equal(y.isfinite(), expected.isfinite())
    y = ops.conv_transpose2d_bn_relu(x * math.nan, weight, None, **options, backend=backend.name)
    assert y[..., 2:-2, 2:-2].isnan().all()


# --- corner cases


@LAYOUTS
def test_hand_checked(backend, channels_last):
    """Each pixel becomes its multiple of the filter, and overlaps add."""
    x = torch.tensor([[[[1.0, 2], [3, 4]]]], device=backend.device)
    x = x.expand(1, 2, 2, 2).contiguous(memory_format=format_of(channels_last))
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


def test_changed_weights_are_noticed(backend):
    """What is kept of weight, bias and normalization is made anew after each kind of change."""
    x, weight, bias, options = make("k4s2p1", device=backend.device)
    norm = batch_norm(bias.numel(), backend.device)
    weight, bias = nn.Parameter(weight), nn.Parameter(bias)
    optimizer = torch.optim.SGD([weight, bias], lr=0.5)

    def check():
        run = {**norm, **options, "activation": "none"}
        with torch.no_grad():
            y = ops.conv_transpose2d_bn_relu(x, weight, bias, **run, backend=backend.name)
        expected = reference.conv_transpose2d(
            *(t.double() for t in (x, weight, bias, *norm.values())), None, (2, 2), (1, 1)
        )
        assert_matches(y, expected, scale=4)

    check()
    with torch.no_grad():
        weight[0, 0] += 1
    check()
    ops.conv_transpose2d(x, weight, bias, **options, backend=backend.name).sum().backward()
    optimizer.step()
    check()
    norm["running_mean"].add_(1)
    check()
    norm["running_var"].mul_(3)
    check()
    norm["bn_weight"] = norm["bn_weight"] * 2
    check()
    bias.data = bias.data + 1
    check()
    # another map size with the same weight
    x = torch.cat([x, x], 2)
    check()


def test_filter_that_stops_being_separable(backend):
    x = cases.feature_map(1, 3, 4, 4).to(backend.device)
    weight = upsampler(3, 2, depthwise=False).to(x)
    for value in (0.0, 1.0, -1.0):
        weight[0, 2, 1, 1] += value
        y = ops.conv_transpose2d(x, weight, None, 2, 1, backend=backend.name)
        assert_matches(y, F.conv_transpose2d(x.double(), weight.double(), None, 2, 1))


@torch.no_grad()
@pytest.mark.parametrize(
    "change",
    [
        {"input": cases.feature_map(2, 9, 4, 5)},
        {"input": cases.feature_map(2, 8, 4, 5).double()},
        {"input": cases.feature_map(2, 8, 4, 0)},
        {"input": 3},
        {"residual": torch.zeros(1, 12, 8, 10)},
        {"residual": torch.zeros(2, 12, 8, 10).double()},
        {"residual": 3},
        {"running_mean": 3},
        {"running_mean": None},
        {"bias": torch.ones(13)},
        {"groups": 0},
        {"stride": (1, 0)},
        {"output_padding": 9},
        {"activation": "gelu"},
    ],
    ids=lambda change: "-".join(f"{k}={type(v).__name__}" for k, v in change.items()),
)
@pytest.mark.parametrize("kernel, stride", [(2, 2), (11, 9)], ids=["packed", "many phases"])
def test_a_repeated_call_is_checked_as_the_first(change, kernel, stride):
    good = {
        "input": cases.feature_map(2, 8, 4, 5),
        "weight": random(8, 12, kernel, kernel),
        "bias": random(12),
        "running_mean": random(12),
        "running_var": torch.ones(12),
        "stride": stride,
    }

    def call(values):
        values = dict(values)
        return ops.conv_transpose2d_bn_relu(values.pop("input"), values.pop("weight"), **values)

    with pytest.raises((TypeError, ValueError)) as first:
        call(good | change)
    y = call(good)
    assert torch.equal(call(good), y)
    with pytest.raises(first.type, match=re.escape(str(first.value))):
        call(good | change)


def test_a_repeated_call_lets_gradients_through():
    x, weight, bias, options = make("k4s2p1")
    with torch.no_grad():
        expected = ops.conv_transpose2d(x, weight, bias, **options)
        assert torch.equal(ops.conv_transpose2d(x, weight, bias, **options), expected)
    y = ops.conv_transpose2d(leaf(x), weight, bias, **options)
    assert y.requires_grad and torch.equal(y, expected)
    weight.requires_grad_()
    assert ops.conv_transpose2d(x, weight, bias, **options).requires_grad
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        assert ops.conv_transpose2d(x, weight, bias, **options).dtype == torch.bfloat16
    assert torch.func.vmap(lambda x: ops.conv_transpose2d(x, weight, bias, **options))(
        x[None]
    ).shape == (1, *y.shape)


def test_options_may_be_lists():
    x, weight, bias, _ = make("k4s2p1")
    expected = ops.conv_transpose2d(x, weight, bias, 2, 1)
    for _ in range(2):
        assert torch.equal(ops.conv_transpose2d(x, weight, bias, [2, 2], [1, 1]), expected)


# --- derivatives


@pytest.mark.parametrize("shape", ["k3s2p1 op1", "groups"])
def test_second_and_forward_derivatives(cpu_level, shape):
    x, weight, bias, options = make(shape, torch.float64, batch=1)
    x, weight = x[..., :3, :3], weight[..., :3, :3]
    norm = batch_norm(bias.numel(), "cpu", torch.float64)
    residual = torch.ones_like(F.conv_transpose2d(x, weight, bias, **options))
    args = [leaf(t) for t in (x, weight, bias, residual, norm["bn_weight"])]

    def run(activation):
        def function(x, weight, bias, residual, bn_weight):
            parameters = norm | {"bn_weight": bn_weight, "negative_slope": 0.2}
            rest = {"residual": residual, "activation": activation}
            return ops.conv_transpose2d_bn_relu(x, weight, bias, **parameters, **rest, **options)

        return function

    for activation in ("sigmoid", "leaky_relu", "silu"):
        assert torch.autograd.gradcheck(
            run(activation), args, check_forward_ad=True, fast_mode=True
        )
    assert torch.autograd.gradgradcheck(run("sigmoid"), args, fast_mode=True)
    with forward_ad.dual_level():
        dual = forward_ad.make_dual(x, torch.ones_like(x))
        y = ops.conv_transpose2d(dual, weight, bias, **options)
        tangent = forward_ad.unpack_dual(y).tangent
    assert_matches(tangent, F.conv_transpose2d(torch.ones_like(x), weight, **options))


def test_gradcheck_without_normalization(cpu_level):
    """Its numerical gradient writes to the weight behind the version counter."""
    x, weight, bias, options = make("k2s2", torch.float64, batch=1)
    args = [leaf(t) for t in (x[..., :2, :2], weight[..., :2, :2], bias)]

    def run(x, weight, bias):
        return ops.conv_transpose2d(x, weight, bias, **options)

    assert torch.autograd.gradcheck(run, args, check_forward_ad=True, fast_mode=True)
    assert torch.autograd.gradgradcheck(run, args, fast_mode=True)


def test_func_transforms(cpu_level):
    x, weight, bias, options = make("k2s2")

    def loss(x, run=ops.conv_transpose2d):
        return run(x, weight, bias, **options).square().sum()

    y = leaf(x)
    (expected,) = torch.autograd.grad(loss(y, F.conv_transpose2d), y)
    assert_matches(torch.func.grad(loss)(x), expected, scale=8)
    each = torch.func.vmap(lambda x: ops.conv_transpose2d(x, weight, bias, **options))(x)
    assert_matches(each, F.conv_transpose2d(x, weight, bias, **options), scale=2)


@pytest.mark.parametrize("activation", ["relu", "silu"])
def test_training_uses_the_batch(backend, activation):
    x, weight, bias, options = make("k2s2", device=backend.device)
    norm = batch_norm(bias.numel(), backend.device)
    theirs = {name: value.double().clone() for name, value in norm.items()}
    args = [leaf(t) for t in (x, weight, bias)]
    run = {"training": True, "momentum": 0.3, "eps": 1e-3, "activation": activation, **options}
    y = ops.conv_transpose2d_bn_relu(*args, **norm, **run, backend=backend.name)
    exact = [leaf(t.double()) for t in args]
    expected = F.batch_norm(
        F.conv_transpose2d(*exact, **options),
        *(theirs["running_mean"], theirs["running_var"], theirs["bn_weight"], theirs["bn_bias"]),
        *(True, 0.3, 1e-3),
    )
    expected = reference.activate(expected, activation)
    assert_matches(y, expected, scale=4)
    for name, value in norm.items():
        assert_matches(value, theirs[name], scale=2)
    y.square().sum().backward()
    expected.square().sum().backward()
    for ours, other in zip(args[:2], exact[:2], strict=True):
        assert_matches(ours.grad, other.grad, scale=64)


# --- module


def layer(**arguments) -> ops.ConvTranspose2dNormActivation:
    module = ops.ConvTranspose2dNormActivation(6, 10, 4, 2, 1, **arguments)
    for name, value in batch_norm(10, "cpu").items():
        if isinstance(module[1], nn.BatchNorm2d):
            getattr(module[1], name.removeprefix("bn_")).data.copy_(value)
    return module.eval()


@pytest.mark.parametrize("activation_layer", [None, nn.ReLU, nn.LeakyReLU, nn.SiLU, nn.Tanh])
@pytest.mark.parametrize("norm_layer", [None, nn.BatchNorm2d, nn.Identity])
@pytest.mark.parametrize("training", [False, True])
def test_module(cpu_level, norm_layer, activation_layer, training):
    module = ops.ConvTranspose2dNormActivation(
        6, 10, 4, 2, 1, norm_layer=norm_layer, activation_layer=activation_layer,
        inplace=None if activation_layer is nn.Tanh else True, output_padding=1,
    ).train(training)  # fmt: skip
    plain = nn.Sequential(*copy.deepcopy(list(module)))
    assert list(plain.state_dict()) == list(module.state_dict())
    x = cases.feature_map(2, 6, 5, 4)
    assert_matches(module(x), plain(x), scale=4)
    for ours, theirs in zip(module.buffers(), plain.buffers(), strict=True):
        assert_matches(ours.float(), theirs.float())


def test_module_defaults_and_hooks(cpu_level, torchvision):
    like = torchvision.ops.Conv2dNormActivation(4, 8, (3, 5), dilation=(2, 1))
    module = ops.ConvTranspose2dNormActivation(4, 8, (3, 5), dilation=(2, 1))
    assert module[0].padding == like[0].padding and module[0].bias is None
    assert module.out_channels == like.out_channels
    module = layer()
    x, seen = cases.feature_map(1, 6, 5, 4), []
    expected = module(x)
    module[1].register_forward_hook(lambda *_: seen.append(True))
    assert_matches(module(x), expected, scale=2)
    assert seen


# --- torch's machinery


def raw_arguments(x, weight, bias, norm, options):
    stride, padding, extra, dilation = (
        [value, value] if isinstance(value := options.get(name, default), int) else list(value)
        for name, default in (
            ("stride", 1), ("padding", 0), ("output_padding", 0), ("dilation", 1)
        )
    )  # fmt: skip
    tensors = (x, weight, bias, *norm.values(), None)
    groups = options.get("groups", 1)
    return (*tensors, stride, padding, extra, groups, dilation, 1e-3, 1, 0.0)


@LAYOUTS
@pytest.mark.parametrize("shape", ["k3s2p1 op1", "depthwise"])
def test_opcheck(backend, channels_last, shape):
    if backend.name == "reference":
        pytest.skip("plain PyTorch, no op of its own")
    x, weight, bias, options = make(shape, torch.float32, channels_last, backend.device)
    suffix = "_triton" if backend.name == "triton" else ""
    op = getattr(torch.ops.fastvision, f"conv_transpose2d{suffix}").default
    norm = batch_norm(bias.numel(), backend.device)
    torch.library.opcheck(op, raw_arguments(x, weight, bias, norm, options))


@pytest.mark.parametrize("compiler", ["aot_eager", "inductor"])
def test_compile(cpu_level, compiler):
    if compiler == "inductor" and torch.__version__.startswith("2.13"):
        pytest.skip("inductor of torch 2.13 cannot lower a convolution's gradient of dynamic sizes")
    _, weight, bias, options = make("k4s2p1")
    norm = batch_norm(bias.numel(), "cpu")

    def step(x, weight):
        y = ops.conv_transpose2d_bn_relu(torch.relu(x), weight, bias, **norm, **options)
        return y.square().mean()

    torch.compiler.reset()
    compiled = torch.compile(step, fullgraph=True, backend=compiler, dynamic=True)
    for batch, height in ((2, 4), (3, 5)):
        x, w = leaf(cases.feature_map(batch, 9, height, 6)), leaf(weight)
        loss, expected = compiled(x, w), step(x, w)
        assert_matches(loss, expected, scale=10)
        grads = torch.autograd.grad(loss, (x, w))
        for grad, other in zip(grads, torch.autograd.grad(expected, (x, w)), strict=True):
            assert_matches(grad, other, scale=10)
    with torch.no_grad():
        assert_matches(compiled(x, w), expected, scale=10)


def test_export(cpu_level):
    module = layer()
    x = cases.feature_map(2, 6, 5, 4)
    shapes = {"input": {0: torch.export.Dim("batch", min=1)}}
    with torch.no_grad():
        program = torch.export.export(module, (x,), dynamic_shapes=shapes)
        for batch in (2, 1, 5):
            y = cases.feature_map(batch, 6, 5, 4)
            assert_matches(program.module()(y), module(y))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=id_of)
def test_autocast(backend, dtype):
    x, weight, bias, options = make("k4s2p1", device=backend.device)
    residual = torch.ones_like(F.conv_transpose2d(x, weight, bias, **options))
    args = [leaf(t) for t in (x, weight, bias)]
    with torch.autocast(backend.device, dtype):
        y = ops.conv_transpose2d_bn_relu(
            *args, residual=residual, activation="none", **options, backend=backend.name
        )
    assert y.dtype == dtype
    expected = F.conv_transpose2d(x.to(dtype).double(), weight.double(), bias.double(), **options)
    assert_matches(y, expected + 1, scale=2)
    y.float().sum().backward()
    exact = [leaf(t.double()) for t in args]
    F.conv_transpose2d(*exact, **options).sum().backward()
    for ours, theirs in zip(args, exact, strict=True):
        assert ours.grad.dtype == torch.float32
        error = (ours.grad.double() - theirs.grad).abs() / (1 + theirs.grad.abs())
        assert_matches(error.to(dtype), torch.zeros_like(error), scale=4)


def test_inference_mode(cpu_level):
    """Tensors without a version counter are prepared in each call."""
    with torch.inference_mode():
        x, weight, bias, options = make("k2s2")
        for _ in range(2):
            y = ops.conv_transpose2d(x, weight, bias, **options)
            assert_matches(y, F.conv_transpose2d(x, weight, bias, **options), scale=2)
            weight.mul_(2)


def test_meta(cpu_level):
    x, weight, bias, options = (t.to("meta") if hasattr(t, "to") else t for t in make("k2s2"))
    assert ops.conv_transpose2d(x, weight, bias, **options).shape == (2, 5, 10, 14)


@pytest.mark.parametrize("threads", [1, 3])
def test_bits_do_not_depend_on_threads(cpu_level, threads):
    x, weight, bias, options = make("k4s2p1", batch=40)
    filters = upsampler(9, 8, depthwise=True)
    expected = ops.conv_transpose2d(x, weight, bias, **options)
    stretched = ops.conv_transpose2d(x, filters, None, 8, 4, groups=9)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        assert torch.equal(ops.conv_transpose2d(x, weight, bias, **options), expected)
        again = ops.conv_transpose2d(x, filters, None, 8, 4, groups=9)
    finally:
        torch.set_num_threads(before)
    assert torch.equal(again, stretched)


def test_bad_arguments():
    x, weight = torch.ones(1, 4, 3, 3), torch.ones(4, 2, 2, 2)
    vector = torch.ones(2)
    run, fused = ops.conv_transpose2d, ops.conv_transpose2d_bn_relu
    for call, error, text in [
        (lambda: run(None, weight), TypeError, "input.*NoneType"),
        (lambda: run(x[0, 0], weight), ValueError, r"input.*\[3, 3\]"),
        (lambda: run(x.int(), weight.int()), TypeError, "input.*int32"),
        (lambda: run(x, weight.double()), TypeError, "weight.*float64"),
        (lambda: run(x, weight[0]), ValueError, r"weight.*\[2, 2, 2\]"),
        (lambda: run(x, weight[:3]), ValueError, "input.*3 channels.*got 4"),
        (lambda: run(x[:, :, :0], weight), ValueError, r"input.*\[1, 4, 0, 3\]"),
        (lambda: run(x, weight[:, :, :0]), ValueError, r"weight.*\[4, 2, 0, 2\]"),
        (lambda: run(x, weight, torch.ones(3)), ValueError, r"bias.*\[2\].*\[3\]"),
        (lambda: run(x, weight, stride=0), ValueError, "stride.*0"),
        (lambda: run(x, weight, stride=1.5), TypeError, "stride.*1.5"),
        (lambda: run(x, weight, stride=(1, 2, 3)), ValueError, "stride.*1, 2, 3"),
        (lambda: run(x, weight, padding=-1), ValueError, "padding.*-1"),
        (lambda: run(x, weight, padding=2), ValueError, "padding.*2"),
        (lambda: run(x, weight, dilation=0), ValueError, "dilation.*0"),
        (lambda: run(x, weight, output_padding=1), ValueError, "output_padding.*1"),
        (lambda: run(x, weight, output_padding=-1), ValueError, "output_padding.*-1"),
        (lambda: run(x, weight, groups=3), ValueError, "groups.*4 channels.*3"),
        (lambda: run(x, weight, groups=0), ValueError, "groups.*0"),
        (lambda: run(x, weight, backend="gpu"), ValueError, "gpu.*expected"),
        (lambda: run(x, weight, backend="cuda"), ValueError, "cuda"),
        (lambda: fused(x, weight, activation="tanh"), ValueError, "activation.*tanh"),
        (lambda: fused(x, weight, running_mean=vector), ValueError, "running_var is None"),
        (lambda: fused(x, weight, bn_weight=vector), ValueError, "bn_weight.*running_mean"),
        (lambda: fused(x, weight, residual=x), ValueError, r"residual.*\[1, 2, 4, 4\]"),
    ]:
        with pytest.raises(error, match=text):
            call()


def test_phases_without_taps_of_a_narrow_depthwise_map():
    x, weight = torch.randn(1, 8, 3, 2), torch.randn(8, 1, 1, 2)
    arguments = (None, (2, 1), (0, 4), 0, 8, (1, 8))
    y = ops.conv_transpose2d(x, weight, *arguments)
    torch.testing.assert_close(y, F.conv_transpose2d(x, weight, *arguments))
