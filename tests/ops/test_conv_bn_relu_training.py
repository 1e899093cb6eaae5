"""conv_bn_relu in training and its gradients, against torch's own layers in float64."""

from __future__ import annotations

import pytest
import torch
from torch.autograd import gradcheck, gradgradcheck
from torch.nn import functional as F

from fastvision import ops
from fastvision.ops.conv import conv2d, cpu, gradient
from fastvision.reference.activations import ACTIVATIONS, activate
from fastvision.testing import cases
from fastvision.testing.marks import needs_library
from fastvision.testing.numerics import TOLERANCES, assert_matches
from fastvision.testing.threads import same_for_threads

pytestmark = pytest.mark.usefixtures("poisoned_memory")
GEOMETRIES = {
    "3x3": {"padding": 1},
    "strided": {"stride": 2, "padding": (0, 1)},
    "dilated": {"dilation": 2, "padding": 2},
    "grouped": {"groups": 2, "padding": "same"},
    "one-sided": {"padding": (0, 1, 2, 0)},
}
NAMES = ("input", "weight", "bias", "bn_weight", "bn_bias", "residual")


def make(geometry, dtype=torch.float64, device="cpu", channels_last=False):
    """The tensors of NAMES, then running mean and variance, and a gradient of the result."""
    g = cases.generator(1)
    C, K, groups = 4, 6, geometry.get("groups", 1)
    x, weight = torch.randn(2, C, 7, 6, generator=g), torch.randn(K, C // groups, 3, 3, generator=g)
    bias, bn_weight, bn_bias, mean = torch.randn(4, K, generator=g)
    var = torch.rand(K, generator=g) + 0.5
    size = layers(x, weight, bias, None, None, mean, var, None, False, "none", geometry).shape
    residual, grad = torch.randn(2, *size, generator=g)
    tensors = [x, weight, bias, bn_weight, bn_bias, residual, mean, var, grad]
    tensors = [t.to(device, dtype) for t in tensors]
    if channels_last:
        for i in (0, 5, 8):
            tensors[i] = tensors[i].contiguous(memory_format=torch.channels_last)
    return tensors


def layers(
    x, weight, bias, bn_weight, bn_bias, mean, var, residual, training, activation, geometry
):
    geometry = dict(geometry)
    if isinstance(geometry.get("padding"), tuple) and len(geometry["padding"]) == 4:
        x = F.pad(x, geometry.pop("padding"))
    y = F.conv2d(x, weight, bias, **geometry)
    y = F.batch_norm(y, mean, var, bn_weight, bn_bias, training, 0.3, 1e-3)
    return activate(y if residual is None else y + residual, activation)


def fused(
    x, weight, bias, bn_weight, bn_bias, mean, var, residual, training, activation, geometry, **rest
):
    return ops.conv_bn_relu(
        x, weight, bias, bn_weight=bn_weight, bn_bias=bn_bias, running_mean=mean, running_var=var,
        training=training, momentum=0.3, eps=1e-3, residual=residual, activation=activation,
        **geometry, **rest,
    )  # fmt: skip


def results(run, tensors, training, activation, geometry, **rest):
    """Result, running statistics and all gradients."""
    *inputs, mean, var, grad = [t.detach().clone() for t in tensors]
    inputs = [t.requires_grad_() for t in inputs]
    args = (*inputs[:5], mean, var, inputs[5], training, activation, geometry)
    y = run(*args, **rest)
    return [y, mean, var, *torch.autograd.grad(y, inputs, grad.to(y.dtype))]


@pytest.mark.parametrize("training", [False, True], ids=["eval", "training"])
@pytest.mark.parametrize("geometry", GEOMETRIES)
# Triton's convolution computes in float32, and this is float64
@pytest.mark.only(lambda backend, training: backend.name != "triton" or training)
def test_geometries(backend, geometry, training):
    geometry = GEOMETRIES[geometry]
    for channels_last in (False, True):
        tensors = make(geometry, device=backend.device, channels_last=channels_last)
        actual = results(fused, tensors, training, "relu", geometry, backend=backend.name)
        expected = results(layers, tensors, training, "relu", geometry)
        for a, b in zip(actual, expected, strict=True):
            assert_matches(a, b, scale=32)


@pytest.mark.parametrize("training", [False, True], ids=["eval", "training"])
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_activations(backend, dtype, activation, training):
    geometry = GEOMETRIES["3x3"]
    tensors = make(geometry, dtype, backend.device)
    actual = results(fused, tensors, training, activation, geometry, backend=backend.name)
    doubles = [t.double() for t in tensors]
    expected = results(layers, doubles, training, activation, geometry)
    eager = results(layers, tensors, training, activation, geometry)
    truncates = backend.name == "triton" and tensors[0].is_cpu  # Triton's interpreter, to bfloat16
    factor = 4 if truncates and dtype == torch.bfloat16 else 2
    for a, b, c in zip(actual, expected, eager, strict=True):
        assert a.dtype == dtype
        # no worse than the layers one by one: in bfloat16 z near a kink may fall on either side.
        # The gradient of the bias is zero in training, and the layers' may happen to be smaller
        budget = factor * (c.double() - b).norm() + 1e-5 * b.norm() + TOLERANCES[dtype]
        assert (a.double() - b).norm() <= budget


@pytest.mark.parametrize("training", [False, True], ids=["eval", "training"])
@pytest.mark.parametrize("activation", ["relu", "leaky_relu", "silu"])
def test_derivatives(activation, training):
    geometry = GEOMETRIES["strided"]
    x, *inputs, residual, mean, var, _ = make(geometry)
    inputs = [x[:1, :, :5, :4], *inputs, residual[:1, :, :2, :2]]
    inputs = [t.detach().clone().requires_grad_() for t in inputs]

    def run(x, weight, bias, bn_weight, bn_bias, residual):
        return fused(
            x, weight, bias, bn_weight, bn_bias, mean.clone(), var.clone(), residual, training,
            activation, geometry,
        )  # fmt: skip

    assert gradcheck(run, inputs, check_forward_ad=True, fast_mode=True)
    assert gradgradcheck(run, inputs, fast_mode=True)


@pytest.mark.parametrize("training", [False, True], ids=["eval", "training"])
def test_only_what_is_wanted_gets_a_gradient(training):
    geometry = GEOMETRIES["3x3"]
    tensors = make(geometry)
    everything = results(layers, tensors, training, "relu", geometry)[3:]
    *inputs, mean, var, grad = tensors
    for wanted in range(1, 2 ** len(inputs)):
        args = [t.detach().requires_grad_(bool(wanted >> i & 1)) for i, t in enumerate(inputs)]
        y = fused(*args[:5], mean.clone(), var.clone(), args[5], training, "relu", geometry)
        y.backward(grad)
        for x, expected in zip(args, everything, strict=True):
            assert (x.grad is not None) == x.requires_grad
            if x.grad is not None:
                assert_matches(x.grad, expected, scale=32)


@needs_library
@pytest.mark.parametrize("training", [False, True], ids=["eval", "training"])
@pytest.mark.parametrize("padding", [0, 1, 2, (0, 2, 1, 0)], ids=str)
@pytest.mark.parametrize("stride", [1, 2])
def test_winograd(stride, padding, training, monkeypatch):
    """Convolutions whose result, and with stride 1 whose input's gradient, come from Winograd's
    algorithm."""
    used = []
    decide = gradient.winograd_wins_once
    for module in (conv2d, gradient):
        monkeypatch.setattr(
            module, "winograd_wins_once", lambda *args: used.append(decide(*args)) or used[-1]
        )
    g = cases.generator(2)
    C = 32 * stride
    monkeypatch.setattr("fastvision.ops.conv.winograd._MIN_STRIDED", 1)
    x = torch.randn(2, C, 26 * stride, 25 * stride, generator=g)
    weight = torch.randn(40, C, 3, 3, generator=g) / 9
    bias, bn_weight, bn_bias, mean = torch.randn(4, 40, generator=g)
    geometry = {"padding": padding, "stride": stride}
    exact = (x.double(), weight.double(), *torch.zeros(4, 40).double(), torch.ones(40).double())
    size = layers(*exact[:6], exact[6], None, False, "none", geometry).shape
    residual, grad = torch.randn(2, *size, generator=g)
    x, residual, grad = (
        t.contiguous(memory_format=torch.channels_last) for t in (x, residual, grad)
    )
    tensors = [x, weight, bias, bn_weight, bn_bias, residual, mean, torch.ones(40), grad]
    actual = results(fused, tensors, training, "relu", geometry)
    expected = results(layers, [t.double() for t in tensors], training, "relu", geometry)
    for a, b in zip(actual, expected, strict=True):
        # an element near zero may fall on either side of it
        assert (a.double() - b).norm() <= 1e-3 * b.norm() + 1e-3
    assert used.count(True) == training + (stride == 1)


@pytest.mark.parametrize("training", [False, True], ids=["eval", "training"])
@pytest.mark.parametrize("with_norm", [False, True])
def test_parts_may_be_missing(training, with_norm):
    """No bias, no affine parameters, no residual, no normalization."""
    x, weight, *_, mean, var, grad = make(GEOMETRIES["3x3"])
    statistics = {"running_mean": mean.clone(), "running_var": var.clone()} if with_norm else {}
    a, b = (weight.detach().requires_grad_() for _ in range(2))
    y = ops.conv_bn_relu(x, a, padding=1, training=training, **statistics)
    expected = F.conv2d(x, b, padding=1)
    if with_norm or training:
        running = (mean.clone(), var.clone()) if with_norm else (None, None)
        expected = F.batch_norm(expected, *running, training=training)
    expected = expected.relu()
    assert_matches(y, expected, scale=4)
    y.backward(grad)
    expected.backward(grad)
    assert_matches(a.grad, b.grad, scale=32)


def test_running_statistics_are_never_stale():
    """What an inference has folded is folded anew after training has moved the statistics."""
    geometry = GEOMETRIES["3x3"]
    x, weight, bias, bn_weight, bn_bias, residual, mean, var, _ = make(geometry, torch.float32)
    args = (x, weight, bias, bn_weight, bn_bias, mean, var, residual)
    for _ in range(2):
        y = fused(*args, False, "relu", geometry)
        assert_matches(y, layers(*args, False, "relu", geometry), scale=4)
        fused(*args, True, "relu", geometry)


@pytest.mark.parametrize("training", [False, True], ids=["eval", "training"])
def test_autocast(training):
    geometry = GEOMETRIES["3x3"]
    tensors = make(geometry, torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        actual = results(fused, tensors, training, "relu", geometry)
        eager = results(layers, tensors, training, "relu", geometry)
    expected = results(layers, [t.double() for t in tensors], training, "relu", geometry)
    # torch adds a float32 residual in float32
    assert actual[0].dtype == torch.bfloat16
    for a, b, c in zip(actual[1:], expected[1:], eager[1:], strict=True):
        assert a.dtype == torch.float32
        assert (a.double() - b).norm() <= 2 * (c.double() - b).norm() + 2e-2 * b.norm()


@pytest.mark.parametrize("training", [False, True], ids=["eval", "training"])
@pytest.mark.parametrize("activation", ["relu", "silu"])
# test_batch_norm_relu.py has the parts of Triton's
@pytest.mark.only(lambda backend: backend.name != "triton")
def test_compile(backend, activation, training):
    geometry = GEOMETRIES["3x3"]
    tensors = make(geometry, torch.float32, backend.device)
    torch.compiler.reset()
    compiled = torch.compile(fused, fullgraph=True, backend="aot_eager")
    options = (tensors, training, activation, geometry)
    actual = results(compiled, *options, backend=backend.name)
    expected = results(fused, *options, backend=backend.name)
    for a, b in zip(actual, expected, strict=True):
        assert_matches(a, b, scale=4)


@needs_library
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    "shape, filters, window, options",
    [
        ((2, 16, 9, 7), 16, (3, 3), {"padding": (1, 1)}),
        ((1, 7, 40, 200), 32, (3, 3), {"padding": (1, 1)}),  # a chunk is less than a row
        ((9, 24, 5, 5), 48, (3, 3), {"padding": (1, 1), "stride": (2, 2)}),  # or several images
        ((3, 5, 17, 33), 80, (2, 5), {"padding": (4, 3), "stride": (3, 2), "dilation": (2, 3)}),
        ((8, 13, 12, 12), 144, (1, 1), {}),
        ((2, 32, 30, 30), 16, (3, 3), {"padding": (0, 2)}),
        ((1, 19, 3, 3), 16, (3, 3), {}),
    ],
    ids=str,
)
def test_gradient_of_the_weight(shape, filters, window, options, dtype):
    g = torch.Generator().manual_seed(3)
    x = torch.randn(shape, generator=g, dtype=torch.float64)
    weight = torch.zeros(filters, shape[1], *window, dtype=torch.float64, requires_grad=True)
    y = F.conv2d(x, weight, **options)
    grad = torch.randn(y.shape, generator=g, dtype=torch.float64)
    (expected,) = torch.autograd.grad(y, weight, grad)
    stride, padding = options.get("stride", (1, 1)), options.get("padding", (0, 0))
    sides = (padding[1], padding[1], padding[0], padding[0])
    numbers = (filters, *window, *stride, *sides, *options.get("dilation", (1, 1)), 1, 0)
    actual = torch.ops.fastvision.conv_weight_gradient(
        *(t.to(dtype).contiguous(memory_format=torch.channels_last) for t in (grad, x)),
        cpu.conv_options(*numbers),
    )
    assert actual.dtype == dtype and actual.is_contiguous()
    bound = {torch.float32: 2e-6, torch.float64: 1e-14}[dtype]
    assert (actual - expected).norm() <= bound * expected.norm()


@needs_library
def test_gradient_of_the_weight_does_not_depend_on_threads():
    g = torch.Generator().manual_seed(3)
    maps = torch.randn(2, 4, 32, 40, 40, generator=g)
    x, grad = (t.contiguous(memory_format=torch.channels_last) for t in maps)
    options = cpu.conv_options(32, 3, 3, 1, 1, 1, 1, 1, 1, 1, 1, 1, 0)
    operator = torch.ops.fastvision.conv_weight_gradient
    same_for_threads(lambda: operator(grad, x, options), (1, 3))


@needs_library
@pytest.mark.parametrize(
    "change",
    [
        {"grad": torch.zeros(2, 16, 9, 9)},
        {"grad": torch.zeros(2, 17, 9, 9).contiguous(memory_format=torch.channels_last)},
        {"grad": torch.zeros(1, 16, 9, 9).contiguous(memory_format=torch.channels_last)},
        {"grad": torch.zeros(2, 16, 10, 9).contiguous(memory_format=torch.channels_last)},
        {"options": torch.zeros(13, dtype=torch.int64)},
    ],
    ids=lambda change: "-".join(f"{k}={list(v.shape)}" for k, v in change.items()),
)
def test_gradient_of_the_weight_of_bad_arguments(change):
    arguments = {
        "grad": torch.zeros(2, 16, 9, 9).contiguous(memory_format=torch.channels_last),
        "input": torch.zeros(2, 4, 9, 9).contiguous(memory_format=torch.channels_last),
        "options": cpu.conv_options(16, 3, 3, 1, 1, 1, 1, 1, 1, 1, 1, 1, 0),
    }
    with pytest.raises(RuntimeError, match="must"):
        torch.ops.fastvision.conv_weight_gradient(**(arguments | change))


def test_batched_gradients():
    x = torch.randn(8, 16, 12, 12).contiguous(memory_format=torch.channels_last).requires_grad_()
    weight = torch.randn(32, 16, 3, 3, requires_grad=True)
    grads = torch.randn(3, 8, 12, 12, 32).permute(0, 1, 4, 2, 3)
    y = ops.conv_bn_relu(x, weight, padding=1, activation="none")
    batched = torch.autograd.grad(y, (x, weight), grads, is_grads_batched=True, retain_graph=True)
    for i, grad in enumerate(grads):
        single = torch.autograd.grad(y, (x, weight), grad, retain_graph=True)
        for a, b in zip(batched, single, strict=True):
            torch.testing.assert_close(a[i], b, rtol=1e-3, atol=1e-3)


def test_weights_that_are_trained_are_not_remembered():
    weight = torch.randn(16, 16, 3, 3, requires_grad=True)
    x = torch.randn(2, 16, 9, 9)
    y = ops.conv_bn_relu(x, weight, activation="none")
    weight.data.mul_(2)
    torch.testing.assert_close(ops.conv_bn_relu(x, weight, activation="none"), 2 * y)
