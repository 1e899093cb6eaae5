"""Fuzzers of normalization, pooling and linear layers."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from fastvision import ops
from fastvision.reference import ACTIVATIONS
from fastvision.reference.activations import activate
from fastvision.testing.numerics import assert_matches

from .inputs import (
    CHANNELS,
    DTYPES,
    HOSTILE,
    MORE_CHANNELS,
    Call,
    Results,
    Source,
    gradients,
    random_format,
    random_layout,
    random_map,
    spoil,
)

_SIDES, _LONG_SIDES = (1, 2, 3, 5, 7, 9), (16, 17, 33, 70)
_SMOOTH = ("none", "silu", "sigmoid", "hardswish")
_CHECKED = 1 / 8  # of the inputs, against another implementation


def batch_norm_relu(rng: Source) -> Call:
    dtype = rng.choice(DTYPES)
    channels = rng.size(CHANNELS[1:], MORE_CHANNELS)
    sizes = ((), (1, 1), (3,), (1, 7), (5, 5), (2, 17))
    shape = (rng.choice((0, 1, 2, 3, 9)), channels, *rng.size(sizes, ((7, 16), (40, 60))))
    count = shape[0] * math.prod(shape[2:])  # of values in a channel
    training = rng.chance(0.7) and count != 1
    hostile = 0.3 * rng.chance(0.3)

    def some_map() -> Tensor:
        if len(shape) == 4:
            return random_map(rng, shape, dtype, hostile)
        return random_layout(rng, torch.randn(shape).to(dtype))

    x, residual, grad = some_map(), some_map(), some_map()
    wide = torch.promote_types(dtype, torch.float32)
    mean, weight, bias = torch.randn(3, channels).to(wide)
    var = torch.rand(channels).to(wide) + 0.1
    whole = rng.chance(0.3)  # a layer's step, which has ops of its own
    leaves = [t.requires_grad_(whole or rng.chance(0.7)) for t in (x, weight, bias, residual)]
    used = [True, whole or rng.chance(0.8), whole or rng.chance(0.8), not whole and rng.chance(0.5)]
    if not whole and rng.chance(
        0.3
    ):  # the normalization alone, whose gradient is a kernel of its own
        used = [True, False, False, False]
    if rng.chance(0.2):  # running statistics that the kernel of the whole layer cannot update
        mean, var = (t.to(rng.choice(DTYPES)) for t in (mean, var))
    _, w, b, r = (t if use else None for t, use in zip(leaves, used, strict=True))
    wanted = [t for t, use in zip(leaves, used, strict=True) if use]
    activation = rng.choice(ACTIVATIONS)
    options: dict[str, Any] = {
        "activation": activation,
        "negative_slope": rng.choice((0.01, 0.0, -0.5)),
    }
    # a sum of thousands of terms in 16 bits has few digits, as has what remains of the gradient of
    # few values, and a kink has two sides
    smooth = activation in _SMOOTH and dtype.itemsize > 2 and count > 16 and not hostile

    def call() -> Results:
        running = mean.clone(), var.clone()
        y = ops.batch_norm_relu(x, *running, w, b, training, residual=r, **options)
        assert y.shape == shape and y.dtype == dtype
        grads = gradients(y, wanted, grad)
        # of the precision of the sums, whatever their dtype
        results = [y.detach(), *(t.to(wide) if t.dtype == torch.float64 else t for t in running)]
        return Results([*results, *grads]) if smooth else Results(results, grads)

    return call


def max_pool2d_with_indices(rng: Source) -> Call:
    shape = (
        rng.choice((0, 1, 1, 2)),
        rng.size(CHANNELS, MORE_CHANNELS),
        rng.size(_SIDES, _LONG_SIDES),
        rng.size(_SIDES, _LONG_SIDES),
    )
    x = torch.randn(shape).mul_(2).round_()
    if rng.chance(0.4):
        spoil(rng, x, 3)
    x = random_format(rng, x.to(rng.choice(DTYPES))).requires_grad_(rng.chance(0.7))
    kernel = [min(rng.randint(1, 4), size) for size in shape[2:]]
    padding = tuple(rng.randint(0, size // 2) for size in kernel)
    steps = rng.choice((kernel, (1, 1), (2, 2), (rng.randint(1, 4), rng.randint(1, 4))))
    dilation = (rng.choice((1, 1, 1, 2)), rng.choice((1, 1, 1, 3)))
    args: Any = (tuple(kernel), steps, padding, dilation, rng.chance(0.4))
    if rng.chance(0.3):  # integers alone have an op of their own
        size = max(min(kernel), 1)
        step = rng.choice((None, 1, size, rng.randint(1, 4)))
        args = (size, step, rng.randint(0, size // 2), rng.choice((1, 1, 2)), rng.chance(0.4))
    checked = x.numel() > 0 and rng.chance(_CHECKED)

    def call() -> Results:
        values, indices = ops.max_pool2d_with_indices(x, *args)
        if checked:
            expected, places = torch.nn.functional.max_pool2d(x, *args, return_indices=True)
            assert_matches(values, expected)
            assert torch.equal(indices, places)
        grad = torch.full_like(values, 0.5)
        return Results([values.detach(), indices, *gradients(values, (x,), grad)])

    return call


def max_unpool2d(rng: Source) -> Call:
    """At the places of a pooling, or others, which may be outside of the result."""
    shape = (
        rng.choice((0, 1, 1, 2)),
        rng.size(CHANNELS, MORE_CHANNELS),
        rng.size(_SIDES, _LONG_SIDES),
        rng.size(_SIDES, _LONG_SIDES),
    )
    dtype, kernel = rng.choice(DTYPES), rng.choice((1, 2, 2, 3, (2, 3), (3, 1)))
    steps: Any = rng.choice((None, None, None, (1, 2), (2, 2), (1 << 20, 1 << 20)))
    if steps == (1 << 20, 1 << 20):  # a large result, unless the map is a pixel
        shape = (*shape[:2], 1, 1)
    kernels = (kernel, kernel) if isinstance(kernel, int) else kernel
    down, across = steps or kernels
    size = ((shape[2] - 1) * down + kernels[0], (shape[3] - 1) * across + kernels[1])
    x = torch.randn(shape)
    if rng.chance(0.2):
        spoil(rng, x)
    x = random_format(rng, x.to(dtype)).requires_grad_(rng.chance(0.7))
    kind = rng.choice(("pooled", "pooled", "any", "outside"))
    if kind == "pooled" and x.numel() and steps is None:
        field = torch.randn(*shape[:2], *size)
        _, indices = torch.nn.functional.max_pool2d(field, kernels, return_indices=True)
    else:
        bad = rng.choice((1, 7, 1 << 40)) if kind == "outside" else 0
        indices = torch.randint(-bad, size[0] * size[1] + bad, shape)
    indices = random_format(rng, indices)

    def call() -> Results:
        plane = ops.max_unpool2d(x, indices, kernel, steps)
        assert plane.shape == (*shape[:2], *size)
        return Results([plane.detach(), *gradients(plane, (x,), torch.full_like(plane, 0.5))])

    return call


def linear_act(rng: Source) -> Call:
    rows = rng.choice((1, 1, 3)), rng.size((0, 2, 3, 4, 5, 9), (17, 40))
    return _linear(rng, rows, rng.choice(DTYPES))


def linear_rows(rng: Source) -> Call:
    """Of rows so few that the weight is read as it is."""
    return _linear(
        rng, rng.choice(((1,), (2,), (3,), (1, 1), (1, 3), (3, 1))), rng.choice(DTYPES[:2])
    )


def _linear(rng: Source, rows: tuple[int, ...], dtype: torch.dtype) -> Call:
    features = rng.size((1, 7, 8, 15, 16, 17, 33), (64, 65, 512, 520, 1024))
    outputs = rng.size((1, 2, 7, 9, 16, 17, 31, 33), (64, 130, 300, 520))
    x = torch.randn(*rows, features)
    hostile = rng.chance(0.2)
    if hostile:
        spoil(rng, x)
    x = random_layout(rng, x.to(dtype))
    weight = (torch.randn(outputs, features) / features**0.5).to(dtype)
    weight = random_layout(rng, weight) if rng.chance(0.3) else weight
    bias = torch.randn(outputs).to(dtype) if rng.chance(0.5) else None
    activation = rng.choice(ACTIVATIONS)
    checked = not hostile and rng.chance(_CHECKED)

    def call() -> Results:
        y = ops.linear_act(x, weight, bias, activation=activation)
        if checked:
            wide = (None if t is None else t.double() for t in (x, weight, bias))
            z = torch.nn.functional.linear(*wide)  # type: ignore[arg-type]
            assert_matches(y, activate(z, activation, 0.01), scale=20)
        return Results([y])

    return call


def squeeze_excitation(rng: Source) -> Call:
    channels, squeeze = rng.size(CHANNELS, MORE_CHANNELS), rng.size((1, 2, 7, 9, 16, 17), (33,))
    shape = (
        rng.randint(0, 3),
        channels,
        rng.size((0, 1, 2, 3, 7), (20,)),
        rng.size((1, 2, 5, 8, 16, 17), (33,)),
    )
    dtype = rng.choice(DTYPES)
    hostile = rng.chance(0.2)
    x = random_map(rng, shape, dtype, float(hostile))
    matrices = torch.randn(squeeze, channels), torch.randn(channels, squeeze, 1, 1)
    if hostile:
        for t in matrices:
            spoil(rng, t, 1, HOSTILE)
    weights = [
        matrices[0].to(dtype),
        torch.randn(squeeze).to(dtype) if rng.chance(0.5) else None,
        matrices[1].to(dtype),
        torch.randn(channels).to(dtype) if rng.chance(0.5) else None,
    ]
    names = rng.choice(("relu", "silu")), rng.choice(("sigmoid", "hardsigmoid"))
    checked = not hostile and x.numel() > 0 and rng.chance(_CHECKED)

    def call() -> Results:
        y = ops.squeeze_excitation(x, *weights, *names)
        if checked:
            expected = ops.squeeze_excitation(x, *weights, *names, backend="reference")
            assert_matches(y, expected, scale=10)
        return Results([y])

    return call


FUZZERS = {
    function.__name__: function
    for function in (
        batch_norm_relu,
        linear_act,
        linear_rows,
        max_pool2d_with_indices,
        max_unpool2d,
        squeeze_excitation,
    )
}
