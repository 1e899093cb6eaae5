"""Fuzzers of convolutions."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fastvision import ops
from fastvision.ops.conv.memo import layer_of
from fastvision.ops.conv.spec import ConvSpec, Weights
from fastvision.reference import ACTIVATIONS
from fastvision.testing.deform_conv2d import Problem, leaves
from fastvision.testing.numerics import assert_matches

from .inputs import (
    DTYPES,
    HOSTILE,
    Call,
    Results,
    Source,
    gradients,
    random_format,
    random_map,
    spoil,
)

_CHECKED = 1 / 16  # of the inputs, against the reference


def _parameters(rng: Source, filters: int, dtype: torch.dtype) -> dict[str, Any]:
    """Bias, normalization and activation of a layer."""
    options: dict[str, Any] = {"activation": rng.choice(ACTIVATIONS)}
    if rng.chance(0.5):
        options["bias"] = torch.randn(filters).to(dtype)
    if rng.chance(0.4):
        options["running_mean"] = torch.randn(filters)
        # not nearly zero: that would magnify the rounding errors of a filter's sums
        options["running_var"] = torch.rand(filters) + 0.05
    return options


def _result_shape(x: Tensor, weight: Tensor, options: dict[str, Any]) -> tuple[int, ...]:
    left, right, top, bottom = options["padding"]
    axes = zip(
        x.shape[2:],
        weight.shape[2:],
        options.get("stride", (1, 1)),
        options.get("dilation", (1, 1)),
        (top + bottom, left + right),
        strict=True,
    )
    sizes = ((n + p - d * (r - 1) - 1) // s + 1 for n, r, s, d, p in axes)
    return (x.shape[0], weight.shape[0], *sizes)


def _convolution(
    rng: Source, x: Tensor, weight: Tensor, options: dict[str, Any], with_residual: bool
) -> Call:
    """Without and, after it, with a residual, which uses the weight as packed before."""
    shape, dtype = _result_shape(x, weight, options), x.dtype
    residual = None
    if with_residual and min(shape) >= 0:
        residual = random_format(rng, torch.randn(shape).to(dtype))
    overwrites = rng.chance(0.5)

    def call() -> Results:
        y = ops.conv_bn_relu(x, weight, **options)
        assert y.shape == shape and y.dtype == dtype
        if residual is None:
            return Results([y])
        added = ops.conv_bn_relu(x, weight, residual=residual, **options)
        if not overwrites:
            return Results([y, added])
        return Results([y, added, _overwritten(x, weight, residual, options)])

    return call


def _overwritten(x: Tensor, weight: Tensor, residual: Tensor, options: dict[str, Any]) -> Tensor:
    """The convolution with its result in the memory of a copy of the residual."""
    x = x.contiguous(memory_format=torch.channels_last)
    residual = residual.clone(memory_format=torch.channels_last)
    mean, var = options.get("running_mean"), options.get("running_var")
    weights = Weights(weight, options.get("bias"), None, None, mean, var)
    window = (options.get("stride", (1, 1)), options["padding"], options.get("dilation", (1, 1)))
    activation = ACTIVATIONS.index(options["activation"])
    spec = ConvSpec(*window, options.get("groups", 1), 1e-5, activation, 0.01)
    return layer_of(weights, x.dtype, spec)(x, residual, weights, overwrite=True)


def conv_bn_relu(rng: Source) -> Call:
    groups = rng.size((1, 1, 1, 2, 5, 8), (16, 33))
    few = ((1, 1), (1, 1), (1, 2), (2, 2), (3, 5))
    C, K = (
        rng.size((*few, (4, 4), (8, 8)), ((16, 16), (16, 17), (33, 9)))
        if groups < 8
        else rng.choice(few)
    )
    window = rng.choice(((1, 1), (3, 3), (3, 3), (1, 4), (5, 5), (7, 2), (2, 7)))
    shape = (
        rng.choice((0, 1, 1, 1, 2, 3)),
        C * groups,
        rng.size((0, 1, 2, 3, 5), (16, 20)),
        rng.size((1, 2, 7, 8, 9, 14, 15, 16, 17), (30, 33, 70)),
    )
    dtype = rng.choice(DTYPES)
    x = random_map(rng, shape, dtype, 0.15)
    weight = torch.randn(K * groups, C, *window).to(dtype) / (C * window[0] * window[1]) ** 0.5
    sides = (window[1], window[1], window[0], window[0])
    options = {
        "stride": (rng.randint(1, 3), rng.randint(1, 2)),
        # mostly enough for the window to fit
        "padding": tuple(rng.choice((0, 1, 2, 3, size // 2, size - 1)) for size in sides),
        "dilation": (1, rng.choice((1, 1, 3))),
        "groups": groups,
        **_parameters(rng, K * groups, dtype),
    }
    return _convolution(rng, x, weight, options, rng.chance(0.5))


def conv_winograd(rng: Source) -> Call:
    """3x3 convolutions with channels enough for Winograd's algorithm."""
    stride = rng.choice((1, 1, 2))
    C = rng.size((32, 33), (40, 64)) if stride == 1 else rng.size((64, 65), (72, 100))
    K = rng.size((16, 17), (39, 64, 130))
    height, width = rng.size((4, 5, 7, 8), (12, 17)), rng.size((4, 7, 8, 9), (16, 17))
    if rng.chance(0.01):  # weights of more than 8 MiB make larger tasks
        C, K, width = 256 // stride, 256, 10 * width
    shape = (rng.size((1, 1), (2,)), C, height, width)
    x = torch.randn(shape)
    if rng.chance(0.15):
        # a huge number's rounding errors would hide the others of its tile
        spoil(rng, x, 1, HOSTILE[:3])
    weight = torch.randn(K, C, 3, 3) / (9 * C) ** 0.5
    options = {
        "stride": (stride, stride),
        "padding": tuple(rng.randint(0, 3) for _ in range(4)),
        **_parameters(rng, K, torch.float32),
    }
    return _convolution(rng, random_format(rng, x), weight, options, rng.chance(0.3))


def _in_format(rng: Source, x: Tensor, channels_last: bool) -> Tensor:
    return x.to(memory_format=torch.channels_last) if channels_last else random_format(rng, x)


def conv_gradients(rng: Source) -> Call:
    """With channels enough for our own kernels, or nearly."""
    C, K = rng.size((16, 17, 31, 32), (33, 64)), rng.size((16, 16, 17), (32, 39))
    window = rng.choice(((3, 3), (3, 3), (1, 1), (1, 3), (5, 2)))
    return _gradients(rng, C, K, window, channels_last=rng.chance(0.3))


def conv_weight_gradient(rng: Source) -> Call:
    C, K = rng.size((16, 17, 31), (33, 64)), rng.size((16,), (32, 48))
    window = rng.choice(((3, 2), (2, 2), (1, 3), (5, 2)))
    return _gradients(rng, C, K, window, channels_last=True)


def conv_winograd_gradient(rng: Source) -> Call:
    C, K = rng.size((32, 33), (40, 64)), rng.size((16, 17), (32, 39))
    return _gradients(rng, C, K, (3, 3), channels_last=True)


def _gradients(
    rng: Source, C: int, K: int, window: tuple[int, int], *, channels_last: bool
) -> Call:
    height, width = (rng.size((1, 3, 4, 5, 8), (13, 24, 33)) for _ in range(2))
    x = torch.randn(rng.size((1, 1, 2), (3,)), C, height, width)
    x = _in_format(rng, x, channels_last)
    x.requires_grad_(rng.chance(0.8))
    weight = torch.randn(K, C, *window).requires_grad_(rng.chance(0.9))
    bias = torch.randn(K).requires_grad_(rng.chance(0.8))
    square = window == (3, 3) and rng.chance(0.9)
    options: dict[str, Any] = {
        "padding": tuple(rng.randint(0, 2) for _ in range(4)),
        "stride": (1, 1) if square else (rng.randint(1, 2), rng.randint(1, 2)),
        "dilation": (1, 1) if square else (rng.randint(1, 2), 1),
        "activation": rng.choice(("none", "relu")),
    }
    shape = _result_shape(x, weight, options)
    if min(shape) < 1:
        return Results  # refused in Python before any kernel
    grad = _in_format(rng, torch.randn(shape), channels_last and rng.chance(0.8))

    def call() -> Results:
        y = ops.conv_bn_relu(x, weight, bias, **options)
        grads = gradients(y, (x, weight, bias), grad)
        if options["activation"] != "none":  # a kink has two sides
            return Results([], grads)
        return Results([g / g.norm().clamp(min=1) for g in grads])

    return call


def _transposed(rng: Source) -> tuple[Tensor, Tensor, dict[str, Any], tuple[int, ...], bool]:
    """Input, weight and options of a transposed convolution, the shape of its result, and whether
    infinities may cancel in another order."""
    dtype = rng.choice(DTYPES)
    groups = rng.choice((1, 1, 2, 5))
    C, K = (groups * rng.size(sizes, (17, 33)) for sizes in ((1, 2, 3, 8), (1, 2, 8, 9)))
    window = [(rng.randint(1, 5), rng.randint(1, 4), rng.randint(0, 3)) for _ in range(2)]
    kernel, stride, padding = zip(*window, strict=True)
    dilation = (rng.choice((1, 1, 2, 3)), rng.choice((1, 1, 2, 4)))
    extra = tuple(rng.randrange(max(s, d)) for s, d in zip(stride, dilation, strict=True))
    kind = rng.choice(("dense", "separable", "hostile"))
    if kind == "separable":
        K, groups, dilation = C, C, (1, 1)
        extra = tuple(rng.randrange(s) for s in stride)
        weight = torch.randn(C, 1, 1, 1) * torch.randn(kernel[0], 1) * torch.randn(kernel[1])
        if rng.chance(0.3):  # the same between all channels
            weight, groups = weight * torch.eye(C)[:, :, None, None], 1
    else:
        weight = torch.randn(C, K // groups, *kernel)
    x = torch.randn(
        rng.choice((0, 1, 1, 2)), C, rng.size((1, 2, 3, 5), (9,)), rng.size((1, 2, 7, 9), (17, 30))
    )
    if kind == "hostile":
        spoil(rng, x, 9)
    options: dict[str, Any] = {
        "stride": stride,
        "padding": padding,
        "output_padding": extra,
        "groups": groups,
        "dilation": dilation,
    }
    if rng.chance(0.5):  # the same on both axes, as integers
        names = ("stride", "padding", "output_padding", "dilation")
        options |= {name: options[name][0] for name in names}
        stride, padding, extra, dilation = ((options[name],) * 2 for name in names)
    sizes = [
        (n - 1) * s - 2 * p + d * (r - 1) + e + 1
        for n, r, s, p, e, d in zip(
            x.shape[2:], kernel, stride, padding, extra, dilation, strict=True
        )
    ]
    shape = (x.shape[0], K, *sizes)
    return random_format(rng, x.to(dtype)), weight.to(dtype), options, shape, kind == "hostile"


def conv_transpose2d(rng: Source) -> Call:
    x, weight, options, shape, hostile = _transposed(rng)
    if min(shape[2:]) < 1:
        return Results  # refused in Python before any kernel
    bias = torch.randn(shape[1]).to(x.dtype) if rng.chance(0.5) else None
    leaves = [t.requires_grad_(rng.chance(0.4)) for t in (x, weight, bias) if isinstance(t, Tensor)]
    grad = random_format(rng, torch.randn(shape).to(x.dtype))
    repeats = rng.chance(0.5)

    def call() -> Results:
        y = ops.conv_transpose2d(x, weight, bias, **options)
        assert y.shape == shape and y.dtype == x.dtype
        results = [y.detach(), *gradients(y, leaves, grad)]
        if repeats:  # the first call packs the weights, the second finds them
            with torch.no_grad():
                results += [ops.conv_transpose2d(x, weight, bias, **options) for _ in range(2)]
        return Results([], results) if hostile else Results(results[:1], results[1:])

    return call


def conv_transpose2d_bn_relu(rng: Source) -> Call:
    x, weight, options, shape, hostile = _transposed(rng)
    return _normalized(rng, x, weight, options, shape, hostile)


def conv_transpose2d_winograd(rng: Source) -> Call:
    """Transposed convolutions with as many taps in each phase and channels enough for Winograd's
    algorithm."""
    taps, stride = rng.choice((2, 2, 3)), (rng.randint(1, 3), rng.randint(1, 3))
    C, K = rng.size((32, 33), (40, 64)), rng.size((1, 8, 16, 17), (39, 64, 130))
    size = [rng.size((1, 4, 5, 7, 8), (9, 12)), rng.size((2, 4, 7, 8), (9, 17))]
    if rng.chance(0.01):  # weights of more than 8 MiB make larger tasks, and order them by phases
        C, K, size[1] = 256, 256, 5 * size[1]
    kernel = [taps * s for s in stride]
    padding, extra = [rng.randint(0, 3) for _ in range(2)], [rng.randrange(s) for s in stride]
    options = {"stride": stride, "padding": tuple(padding), "output_padding": tuple(extra)}
    x = torch.randn(rng.size((1, 1), (2, 3)), C, *size)
    if rng.chance(0.15):
        # a huge number's rounding errors would hide the others of its tile
        spoil(rng, x, 1, HOSTILE[:3])
    weight = torch.randn(C, K, *kernel) / (taps * taps * C) ** 0.5
    ends = zip(size, kernel, stride, padding, extra, strict=True)
    shape = (x.shape[0], K, *((n - 1) * s - 2 * p + r + e for n, r, s, p, e in ends))
    return _normalized(rng, random_format(rng, x), weight, options, shape, hostile=False)


def _normalized(
    rng: Source,
    x: Tensor,
    weight: Tensor,
    options: dict[str, Any],
    shape: tuple[int, ...],
    hostile: bool,
) -> Call:
    if min(shape[2:]) < 1:
        return Results
    residual = torch.randn(shape).to(x.dtype) if rng.chance(0.5) else None
    residual = residual if residual is None else random_format(rng, residual)
    parameters = _parameters(rng, shape[1], x.dtype)

    def call() -> Results:
        y = ops.conv_transpose2d_bn_relu(x, weight, residual=residual, **options, **parameters)
        assert y.shape == shape and y.dtype == x.dtype
        return Results([], [y]) if hostile else Results([y])

    return call


def deform_conv2d(rng: Source) -> Call:
    """All gradients, at offsets that may be anything."""
    groups, offset_groups = rng.choice((1, 1, 2, 4)), rng.choice((1, 1, 2, 3))
    channels = groups * offset_groups * rng.size((1, 1, 2, 3), (5, 8, 17))
    problem = Problem(
        (
            rng.choice((0, 1, 1, 2)),
            channels,
            rng.size((1, 2, 3, 5), (7, 20)),
            rng.size((1, 2, 5, 9), (16, 33)),
        ),
        groups * rng.size((0, 1, 2, 3, 8), (9, 17, 33)),
        kernel=(rng.randint(1, 3), rng.randint(1, 3)),
        stride=(rng.randint(1, 3), rng.randint(1, 3)),
        padding=(rng.randint(0, 3), rng.randint(0, 3)),
        dilation=(rng.randint(1, 2), rng.randint(1, 2)),
        groups=groups,
        offset_groups=offset_groups,
        mask=rng.chance(0.6),
        bias=rng.chance(0.6),
    )
    if min(problem.size) < 1:
        return Results  # refused in Python before any kernel
    dtype = rng.choice(DTYPES)
    reach = rng.choice((0.0, 1.0, 10.0))
    tensors = problem.tensors(dtype, reach=reach)
    kind = rng.choice(("ordinary", "offsets", "all"))
    if kind != "ordinary":
        for t in leaves(tensors) if kind == "all" else leaves(tensors)[1:2]:
            spoil(rng, t, 9)
    for i in (0, 1, 4):
        t = tensors[i]
        tensors[i] = None if t is None else random_format(rng, t)
    # any part of the gradients, of which at least one is wanted
    wanted = [t for t in leaves(tensors) if rng.chance(0.7)] or [leaves(tensors)[0]]
    for t in wanted:
        t.requires_grad_()
    checked = kind != "all" and dtype.itemsize > 2 and rng.chance(_CHECKED)

    def call() -> Results:
        y = problem.call(ops.deform_conv2d, tensors)
        grads = torch.autograd.grad(y, wanted, torch.ones_like(y))
        assert all(g.shape == t.shape for g, t in zip(grads, wanted, strict=True))
        if kind == "all":  # sums may overflow in another order
            return Results([], [y.detach(), *grads])
        if checked:
            expected = problem.call(ops.deform_conv2d, tensors, backend="reference")
            assert_matches(y, expected, scale=10)
            others = torch.autograd.grad(expected, wanted, torch.ones_like(y))
            for g, other in zip(grads, others, strict=True):
                scale = max(1.0, other.abs().max().item()) if other.numel() else 1.0
                assert_matches(g, other, scale=10 * scale)
        return Results([y.detach()], grads)

    return call


FUZZERS = {
    function.__name__: function
    for function in (
        conv_bn_relu,
        conv_gradients,
        conv_transpose2d,
        conv_transpose2d_bn_relu,
        conv_transpose2d_winograd,
        conv_weight_gradient,
        conv_winograd,
        conv_winograd_gradient,
        deform_conv2d,
    )
}
