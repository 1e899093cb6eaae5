"""Calls of conv_transpose2d again, with other weights, on other threads, and wrong ones."""

from __future__ import annotations

import re

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from fastvision import ops, reference
from fastvision.testing import cases
from fastvision.testing.conv_transpose2d import batch_norm, make, random, upsampler
from fastvision.testing.numerics import assert_matches
from fastvision.testing.tensors import leaf

pytestmark = pytest.mark.usefixtures("poisoned_memory")


def test_changed_weights_are_noticed(backend):
    """The cache for weight, bias and normalization is rebuilt after each kind of change."""
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


def test_inference_mode(cpu_level):
    """Tensors without a version counter are prepared in each call."""
    with torch.inference_mode():
        x, weight, bias, options = make("k2s2")
        for _ in range(2):
            y = ops.conv_transpose2d(x, weight, bias, **options)
            assert_matches(y, F.conv_transpose2d(x, weight, bias, **options), scale=2)
            weight.mul_(2)


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
