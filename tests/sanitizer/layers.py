"""Fuzzers of convolutions, normalization, pooling and linear layers."""

from __future__ import annotations

import math
import random

import torch
from inputs import DTYPES, HOSTILE, random_format
from torch import Tensor

from fastvision import ops
from fastvision.reference import ACTIVATIONS
from fastvision.reference.activations import activate
from fastvision.testing.deform_conv2d import Problem, leaves
from fastvision.testing.numerics import assert_matches


def fuzz_conv_bn_relu(rng: random.Random) -> list[Tensor]:
    if rng.random() < 0.3:  # Winograd's
        groups, C, K, window = 1, rng.choice((32, 33, 64)), rng.choice((16, 39, 64, 130)), (3, 3)
        stride, dilation = (1, 1), (1, 1)
        images, height, width = rng.randint(1, 2), rng.randint(12, 17), rng.randint(12, 17)
    else:
        groups = rng.choice((1, 1, 2, 5, 8, 33))
        C, K = rng.choice(((1, 1), (1, 1), (2, 2), (4, 4), (8, 8), (3, 5), (16, 17), (1, 2)))
        window = rng.choice(((1, 1), (3, 3), (1, 4), (5, 5), (7, 2)))
        stride, dilation = (rng.randint(1, 3), rng.randint(1, 2)), (1, rng.choice((1, 1, 3)))
        images, height, width = rng.randint(0, 3), rng.choice((0, 1, 5, 16)), rng.choice((1, 7, 30))
    dtype = rng.choice(DTYPES)
    x = random_format(rng, torch.randn(images, C * groups, height, width).to(dtype))
    if x.numel() and rng.random() < 0.2:
        # a huge number's rounding errors would hide the others of its tile
        hostile = HOSTILE if C < 32 else HOSTILE[:3]
        x[tuple(rng.randrange(size) for size in x.shape)] = rng.choice(hostile)
    weight = torch.randn(K * groups, C, *window).to(dtype) / (C * window[0] * window[1]) ** 0.5
    norm = {"running_mean": torch.randn(K * groups), "running_var": torch.rand(K * groups)}
    options = {
        "bias": torch.randn(K * groups).to(dtype) if rng.random() < 0.5 else None,
        "stride": stride,
        "padding": tuple(rng.randint(0, 3) for _ in range(4)),
        "dilation": dilation,
        "groups": groups,
        "activation": rng.choice(ACTIVATIONS),
        **(norm if rng.random() < 0.5 else {}),
    }
    try:
        y = ops.conv_bn_relu(x, weight, **options)
    except ValueError as error:
        assert "does not fit into input" in str(error)
        return []
    residual = random_format(rng, torch.randn(y.shape).to(dtype))
    return [y, ops.conv_bn_relu(x, weight, residual=residual, **options)]


def fuzz_conv_gradients(rng: random.Random) -> list[Tensor]:
    """Of 3x3 convolutions with pixels enough for Winograd's weight gradient, or nearly."""
    C, K = rng.choice((31, 32, 33, 64)), rng.choice((16, 17, 39, 70))
    sizes = ((1, 33, 31), (1, 9, 128), (2, 24, 25), (3, 20, 18), (7, 13, 12))
    images, height, width = rng.choice(sizes)
    x = random_format(rng, torch.randn(images, C, height, width)).requires_grad_()
    weight, bias = torch.randn(K, C, 3, 3).requires_grad_(), torch.randn(K).requires_grad_()
    padding = tuple(rng.randint(0, 3) for _ in range(4))
    y = ops.conv_bn_relu(x, weight, bias, padding=padding, activation="none")
    grad = random_format(rng, torch.randn(y.shape))
    gradients = torch.autograd.grad(y, (x, weight, bias), grad)
    return [g / g.norm() for g in gradients]


def fuzz_batch_norm_relu(rng: random.Random) -> list[Tensor]:
    dtype = rng.choice(DTYPES)
    channels = rng.choice((1, 2, 3, 8, 17, 33, 64, 130))
    sizes = ((), (1, 1), (1, 7), (5, 5), (7, 16), (40, 60))
    shape = (rng.choice((0, 1, 2, 3, 9)), channels, *rng.choice(sizes))
    training = rng.random() < 0.7 and shape[0] * math.prod(shape[2:]) != 1
    x = torch.randn(shape)
    if x.numel() and rng.random() < 0.2:
        x.view(-1)[rng.randrange(x.numel())] = rng.choice(HOSTILE)

    def in_some_format(t: Tensor) -> Tensor:
        return (random_format(rng, t) if len(shape) == 4 else t).to(dtype)

    x, residual, grad = (in_some_format(t) for t in (x, torch.randn(shape), torch.randn(shape)))
    wide = torch.promote_types(dtype, torch.float32)
    mean, weight, bias = torch.randn(3, channels).to(wide)
    var = torch.rand(channels).to(wide) + 0.1
    inputs = [t.requires_grad_(rng.random() < 0.8) for t in (x, weight, bias, residual)]
    activation = rng.choice(ACTIVATIONS)
    y = ops.batch_norm_relu(
        x, mean, var,
        weight if rng.random() < 0.8 else None,
        bias if rng.random() < 0.8 else None,
        training, residual=residual if rng.random() < 0.5 else None, activation=activation,
        negative_slope=rng.choice((0.01, 0.0, -0.5)),
    )  # fmt: skip
    assert y.shape == shape and y.dtype == dtype
    if y.requires_grad:
        y.backward(grad)
    grads = [t.grad for t in inputs if t.grad is not None]
    # a sum of thousands of terms in 16 bits has few digits, and a kink has two sides
    smooth = activation in ("none", "silu", "sigmoid", "hardswish") and dtype.itemsize > 2
    return [y.detach(), mean, var, *(grads if smooth else [])]


def fuzz_conv_transpose2d(rng: random.Random) -> list[Tensor]:
    dtype = rng.choice(DTYPES)
    groups = rng.choice((1, 1, 2, 5))
    C, K = groups * rng.choice((1, 2, 3, 8, 17)), groups * rng.choice((1, 2, 8, 9, 33))
    window = [(rng.randint(1, 6), rng.randint(1, 4), rng.randint(0, 3)) for _ in range(2)]
    kernel, stride, padding = zip(*window, strict=True)
    dilation = (rng.choice((1, 1, 2, 3)), rng.choice((1, 1, 2, 4)))
    extra = tuple(rng.randrange(max(s, d)) for s, d in zip(stride, dilation, strict=True))
    kind = rng.choice(("dense", "separable", "hostile"))
    if kind == "separable":
        K, groups, dilation = C, C, (1, 1)
        extra = tuple(rng.randrange(s) for s in stride)
    weight = torch.randn(C, K // groups, *kernel)
    if kind == "separable":
        weight = torch.randn(C, 1, 1, 1) * torch.randn(kernel[0], 1) * torch.randn(kernel[1])
        if rng.random() < 0.5:  # the same between all channels
            weight, groups = weight * torch.eye(C)[:, :, None, None], 1
    x = torch.randn(rng.randint(0, 3), C, rng.randint(1, 9), rng.choice((1, 2, 7, 30)))
    if kind == "hostile":
        x.view(-1)[: rng.randint(0, 9)] = rng.choice(HOSTILE)
    x, weight = random_format(rng, x.to(dtype)), weight.to(dtype)
    sizes = [
        (n - 1) * s - 2 * p + d * (r - 1) + e + 1
        for n, r, s, p, e, d in zip(
            x.shape[2:], kernel, stride, padding, extra, dilation, strict=True
        )
    ]
    if min(sizes) < 1:
        return []  # refused in Python before any kernel
    residual = torch.randn(x.shape[0], K, *sizes).to(dtype) if rng.random() < 0.5 else None
    y = ops.conv_transpose2d_bn_relu(
        x,
        weight,
        torch.randn(K).to(dtype) if rng.random() < 0.5 else None,
        stride=stride,
        padding=padding,
        output_padding=extra,
        groups=groups,
        dilation=dilation,
        residual=residual,
        activation=rng.choice(ACTIVATIONS),
    )
    assert y.shape == (x.shape[0], K, *sizes) and y.dtype == dtype
    return [] if kind == "hostile" else [y]  # infinities may cancel in another order


def fuzz_deform_conv2d(rng: random.Random) -> list[Tensor]:
    """All gradients, at offsets that may be anything."""
    groups, offset_groups = rng.choice((1, 1, 2, 4)), rng.choice((1, 1, 2, 3))
    channels = groups * offset_groups * rng.choice((1, 2, 5, 8, 17))
    problem = Problem(
        (rng.randint(0, 3), channels, rng.choice((1, 2, 7, 20)), rng.choice((1, 2, 9, 33))),
        groups * rng.choice((0, 1, 3, 8, 33)),
        kernel=(rng.randint(1, 3), rng.randint(1, 3)),
        stride=(rng.randint(1, 3), rng.randint(1, 3)),
        padding=(rng.randint(0, 3), rng.randint(0, 3)),
        dilation=(rng.randint(1, 2), rng.randint(1, 2)),
        groups=groups,
        offset_groups=offset_groups,
        mask=rng.random() < 0.6,
        bias=rng.random() < 0.6,
    )
    if min(problem.size) < 1:
        return []  # refused in Python before any kernel
    dtype = rng.choice(DTYPES)
    reach = rng.choice((0.0, 1.0, 10.0))
    tensors = problem.tensors(dtype, reach=reach)
    kind = rng.choice(("ordinary", "offsets", "all"))
    if kind != "ordinary":
        for t in leaves(tensors) if kind == "all" else leaves(tensors)[1:2]:
            for _ in range(rng.randrange(20) if t.numel() else 0):
                t.view(-1)[rng.randrange(t.numel())] = rng.choice(HOSTILE)
    for i in (0, 1, 4):
        t = tensors[i]
        tensors[i] = None if t is None else random_format(rng, t)
    # any part of the gradients, of which at least one is wanted
    wanted = [t for t in leaves(tensors) if rng.random() < 0.7] or [leaves(tensors)[0]]
    for t in wanted:
        t.requires_grad_()
    y = problem.call(ops.deform_conv2d, tensors)
    grads = torch.autograd.grad(y, wanted, torch.ones_like(y))
    assert all(g.shape == t.shape for g, t in zip(grads, wanted, strict=True))
    if kind == "all":  # sums may overflow in another order
        return []
    if dtype in (torch.float32, torch.float64):
        expected = problem.call(ops.deform_conv2d, tensors, backend="reference")
        assert_matches(y, expected, scale=10)
        for g, other in zip(
            grads, torch.autograd.grad(expected, wanted, torch.ones_like(y)), strict=True
        ):
            scale = max(1.0, other.abs().max().item()) if other.numel() else 1.0
            assert_matches(g, other, scale=10 * scale)
    return [y.detach()]


def fuzz_max_pool2d(rng: random.Random) -> list[Tensor]:
    images, channels = rng.randint(0, 2), rng.choice((0, 1, 3, 16, 33, 70))
    height, width = rng.choice((1, 2, 7, 20)), rng.choice((1, 2, 9, 16, 33, 70))
    x = torch.randn(images, channels, height, width).mul(2).round().to(rng.choice(DTYPES))
    for _ in range(rng.randrange(4) if x.numel() else 0):
        x.view(-1)[rng.randrange(x.numel())] = rng.choice(HOSTILE)
    x = random_format(rng, x).requires_grad_()
    kernel = [min(rng.randint(1, 4), size) for size in (height, width)]
    padding = tuple(rng.randint(0, size // 2) for size in kernel)
    window = (tuple(kernel), (rng.randint(1, 4), rng.randint(1, 4)), padding)
    window = (*window, (rng.choice((1, 1, 2)), rng.choice((1, 1, 3))))
    args = (*window, rng.random() < 0.5)
    values, indices = ops.max_pool2d_with_indices(x, *args)
    if x.numel():
        expected, places = torch.nn.functional.max_pool2d(x, *args, return_indices=True)
        assert_matches(values, expected)
        assert torch.equal(indices, places)
    values.nan_to_num(0, 0, 0).sum().backward()
    assert x.grad is not None
    if rng.random() < 0.5:  # other indices, which may be outside of the result
        bad = rng.choice((0, 0, 1, 1 << 40))
        indices = torch.randint(-bad, height * width + bad, indices.shape)
    leaf = values.detach().requires_grad_()
    stride = rng.choice(((2, 2), (1 << 20, 1 << 20)))
    kernel = [
        n - (m - 1) * s for n, m, s in zip((height, width), leaf.shape[2:], stride, strict=True)
    ]
    plane = ops.max_unpool2d(leaf, indices, kernel, stride)
    (grad,) = torch.autograd.grad(plane.nan_to_num(0, 0, 0).sum(), leaf)
    return [values, indices, x.grad, plane, grad]


def fuzz_linear_act(rng: random.Random) -> list[Tensor]:
    rows, features = rng.choice((0, 1, 2, 5, 17)), rng.choice((1, 7, 512, 520, 1024))
    dtype = rng.choice(DTYPES)
    x = torch.randn(rng.choice((1, 3)), rows, features).to(dtype)
    # large enough to be packed, at times
    weight = (torch.randn(rng.choice((1, 9, 300, 520)), features) / features**0.5).to(dtype)
    bias = torch.randn(weight.shape[0]).to(dtype) if rng.random() < 0.5 else None
    hostile = rng.random() < 0.3
    if hostile and x.numel():
        x.view(-1)[rng.randrange(x.numel())] = rng.choice(HOSTILE)
    activation = rng.choice(ACTIVATIONS)
    y = ops.linear_act(x, weight, bias, activation=activation)
    if not hostile:
        z = torch.nn.functional.linear(
            x.double(), weight.double(), None if bias is None else bias.double()
        )
        assert_matches(y, activate(z, activation, 0.01), scale=20)
    return [y]


def fuzz_squeeze_excitation(rng: random.Random) -> list[Tensor]:
    images, channels = rng.randint(0, 3), rng.choice((0, 1, 3, 8, 17, 70))
    height, width = rng.choice((0, 1, 2, 7)), rng.choice((1, 2, 5, 16))
    dtype, squeeze = rng.choice(DTYPES), rng.choice((1, 2, 9, 33))
    x = torch.randn(images, channels, height, width).to(dtype)
    weights = [
        torch.randn(squeeze, channels).to(dtype),
        torch.randn(squeeze).to(dtype) if rng.random() < 0.5 else None,
        torch.randn(channels, squeeze, 1, 1).to(dtype),
        torch.randn(channels).to(dtype) if rng.random() < 0.5 else None,
    ]
    hostile = rng.random() < 0.3
    if hostile and x.numel():
        for t in (x, weights[0], weights[2]):
            t.view(-1)[rng.randrange(t.numel())] = rng.choice(HOSTILE)
    names = rng.choice(("relu", "silu")), rng.choice(("sigmoid", "hardsigmoid"))
    y = ops.squeeze_excitation(random_format(rng, x), *weights, *names)
    if not hostile and y.numel():
        expected = ops.squeeze_excitation(x, *weights, *names, backend="reference")
        assert_matches(y, expected, scale=10)
    return [y]


FUZZERS = (
    fuzz_batch_norm_relu,
    fuzz_conv_bn_relu,
    fuzz_conv_gradients,
    fuzz_conv_transpose2d,
    fuzz_deform_conv2d,
    fuzz_linear_act,
    fuzz_max_pool2d,
    fuzz_squeeze_excitation,
)
