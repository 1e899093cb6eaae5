"""Derivatives of transposed convolution: second and forward ones, transforms, training."""

from __future__ import annotations

import pytest
import torch
from torch.autograd import forward_ad
from torch.nn import functional as F

from fastvision import ops, reference
from fastvision.testing.conv_transpose2d import batch_norm, make
from fastvision.testing.numerics import assert_matches
from fastvision.testing.tensors import leaf

pytestmark = pytest.mark.usefixtures("poisoned_memory")


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
