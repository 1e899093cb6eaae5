"""batch_norm_relu: every backend against torch's own layers in float64."""

from __future__ import annotations

import functools

import pytest
import torch
from torch.autograd import gradcheck, gradgradcheck
from torch.library import opcheck
from torch.nn import functional as F

from fastvision import ops
from fastvision._memory_format import memory_format
from fastvision.reference.activations import ACTIVATIONS, activate
from fastvision.testing import cases
from fastvision.testing.marks import LAYOUTS, needs_library
from fastvision.testing.numerics import DTYPES, assert_matches
from fastvision.testing.threads import same_for_threads

pytestmark = pytest.mark.usefixtures("poisoned_memory")
# planes of one value and of less than a vector; ends of vectors; several pieces; no image
SHAPES = (
    (4, 5, 1, 1),
    (2, 3, 1, 5),
    (2, 3, 7, 9),
    (3, 33, 5, 4),
    (8, 3, 4, 6),
    (1, 16, 41, 53),
    (6, 20),
    (2, 3, 40),
    (1, 2, 3, 4, 5),
    (0, 3, 4, 4),
)
SMALL = {(1, 16, 41, 53): (1, 16, 6, 7)}  # for the interpreter


def make(shape, dtype, device="cpu", channels_last=False, *, offset=0.0):
    """input, residual, gradient of the result; weight, bias, running mean and variance."""
    g = cases.generator(len(shape))
    big = [torch.randn(shape, generator=g) for _ in range(3)]
    big[0] += offset
    format = memory_format(channels_last)
    big = [x.to(device, dtype).contiguous(memory_format=format) for x in big]
    wide = torch.promote_types(dtype, torch.float32)
    small = [torch.randn(shape[1], generator=g).to(device, wide) for _ in range(3)]
    return *big, *small, torch.rand(shape[1], generator=g).to(device, wide) + 0.5


def torch_layers(x, mean, var, weight, bias, residual, training, activation):
    """The layers one by one."""
    y = F.batch_norm(x, mean, var, weight, bias, training, 0.3, 1e-3)
    return activate(y if residual is None else y + residual, activation)


def check(backend, shape, dtype, training, activation, with_residual, channels_last, offset=0.0):
    tensors = make(shape, dtype, backend.device, channels_last, offset=offset)
    results = []
    for ours, copies in ((True, tensors), (False, [t.double().clone() for t in tensors])):
        x, residual, grad, weight, bias, mean, var = copies
        inputs = [x, weight, bias] + [residual] * with_residual
        inputs = [t.detach().requires_grad_() for t in inputs]
        args = (inputs[0], mean, var, inputs[1], inputs[2])
        residual = inputs[3] if with_residual else None
        if ours:
            y = ops.batch_norm_relu(
                *args, training, 0.3, 1e-3,
                residual=residual, activation=activation, backend=backend.name,
            )  # fmt: skip
            assert y.dtype == dtype
            assert y.stride() == x.stride() or x.numel() == 0
        else:
            y = torch_layers(*args, residual, training, activation)
        results.append((y.detach(), torch.autograd.grad(y, inputs, grad), (mean, var)))
    (y, grads, running), (y_exact, exact, running_exact) = results
    assert_matches(y, y_exact, scale=4)
    for a, b in zip(running, running_exact, strict=True):
        assert_matches(a, b)
    for a, b in zip(grads, exact, strict=True):
        assert a.dtype == (dtype if a.dim() > 1 else torch.promote_types(dtype, torch.float32))
        assert_matches(a, b, scale=32)


@LAYOUTS
@pytest.mark.parametrize("training", [False, True], ids=["eval", "training"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.only(lambda shape, channels_last: not channels_last or len(shape) == 4)
def test_shapes(backend, shape, training, channels_last):
    shape = SMALL.get(shape, shape) if backend.interpreted else shape
    for activation, with_residual in (("relu", False), ("relu", True), ("silu", True)):
        check(backend, shape, torch.float64, training, activation, with_residual, channels_last)


@LAYOUTS
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_dtypes_and_activations(backend, activation, dtype, channels_last):
    for with_residual in (False, True):
        check(backend, (2, 7, 5, 6), dtype, True, activation, with_residual, channels_last)


@LAYOUTS
def test_statistics_do_not_cancel(backend, channels_last):
    """A mean of 300 standard deviations costs accuracy of the input only."""
    shape = (2, 3, 16, 24)
    check(backend, shape, torch.float32, True, "none", False, channels_last, offset=300.0)


def test_gradients_at_the_edges(backend):
    """Where a piece of an activation ends the gradient is torch's."""
    edges = torch.tensor([-3.0, 0.0, 3.0, 6.0, -0.0, float("inf"), -float("inf"), float("nan")])
    x = edges.view(1, 1, -1).to(backend.device)
    zero, one = x.new_zeros(1), x.new_ones(1)
    for activation in ("none", "relu", "relu6", "leaky_relu", "hardswish"):
        for residual in (None, torch.zeros_like(x)):
            ours, theirs = (x.clone().requires_grad_() for _ in range(2))
            y = ops.batch_norm_relu(
                ours, zero, one, eps=0.0,
                residual=residual, activation=activation, backend=backend.name,
            )  # fmt: skip
            expected = activate(theirs, activation)
            assert_matches(y, expected)
            y.sum().backward()
            expected.sum().backward()
            finite = edges.isfinite().to(backend.device)
            assert_matches(ours.grad[..., finite], theirs.grad[..., finite])


@pytest.mark.parametrize("training", [False, True], ids=["eval", "training"])
@pytest.mark.parametrize("activation", ["relu", "leaky_relu", "silu"])
def test_derivatives(activation, training):
    x, residual, _, weight, bias, mean, var = make((2, 3, 2, 3), torch.float64)
    inputs = [t.requires_grad_() for t in (x, weight, bias, residual)]

    def run(x, weight, bias, residual):
        return ops.batch_norm_relu(
            x, mean.clone(), var.clone(), weight, bias, training,
            residual=residual, activation=activation,
        )  # fmt: skip

    assert gradcheck(run, inputs, check_forward_ad=True, check_batched_grad=False)
    assert gradgradcheck(run, inputs)
    assert gradgradcheck(lambda x, w, b: run(x, w, b, None), inputs[:3])


def test_functional_transforms(backend):
    x, residual, _, weight, bias, mean, var = make((2, 3, 2, 3), torch.float64, backend.device)

    def loss(x, weight):
        y = ops.batch_norm_relu(
            x, None, None, weight, bias, True, residual=residual, backend=backend.name
        )
        return y.square().sum()

    expected = torch.autograd.functional.jacobian(loss, (x, weight))
    actual = torch.func.grad(loss, (0, 1))(x, weight)
    for a, b in zip(actual, expected, strict=True):
        assert_matches(a, b)
    per_image = torch.func.vmap(
        lambda x: ops.batch_norm_relu(x[None], mean, var, backend=backend.name)[0]
    )
    assert_matches(per_image(x), ops.batch_norm_relu(x, mean, var, backend=backend.name))


@pytest.mark.parametrize("training", [False, True], ids=["eval", "training"])
def test_only_what_is_wanted_gets_a_gradient(backend, training):
    x, residual, grad, weight, bias, mean, var = make((2, 3, 4, 5), torch.float64, backend.device)
    for activation in ("relu", "silu"):
        for wanted in (1, 2, 4, 8, 6, 9, 14, 15) if backend.interpreted else range(1, 16):
            inputs = [
                t.detach().requires_grad_(bool(wanted >> i & 1))
                for i, t in enumerate((x, weight, bias, residual))
            ]
            leaves = [t for t in inputs if t.requires_grad]
            args = (inputs[0], mean.clone(), var.clone(), inputs[1], inputs[2])
            y = ops.batch_norm_relu(
                *args, training, 0.3, 1e-3,
                residual=inputs[3], activation=activation, backend=backend.name,
            )  # fmt: skip
            exact = torch_layers(*args, inputs[3], training, activation)
            found = torch.autograd.grad(y, leaves, grad)
            expected = torch.autograd.grad(exact, leaves, grad)
            for a, b in zip(found, expected, strict=True):
                assert_matches(a, b, scale=4)


def test_formats_may_differ(backend):
    """Residual and gradient in another memory format than the input; an input that is a view."""
    x, residual, grad, weight, bias, mean, var = make((2, 4, 5, 6), torch.float64, backend.device)
    x = x.mT.contiguous().mT
    residual = residual.contiguous(memory_format=torch.channels_last)
    results = []
    for run in (ops.batch_norm_relu, torch_layers):
        inputs = [t.detach().requires_grad_() for t in (x, weight, bias, residual)]
        args = (inputs[0], mean.clone(), var.clone(), inputs[1], inputs[2])
        if run is torch_layers:
            y = run(*args, inputs[3], True, "relu")
        else:
            y = run(*args, True, 0.3, 1e-3, residual=inputs[3], backend=backend.name)
        grads = torch.autograd.grad(y, inputs, grad.contiguous(memory_format=torch.channels_last))
        results.append((y, *grads))
    for a, b in zip(*results, strict=True):
        assert_matches(a, b, scale=4)


def test_low_precision_parameters(backend):
    """A module moved to bfloat16 as a whole: its parameters, running statistics and gradients."""
    bn = torch.nn.BatchNorm2d(3, device=backend.device).bfloat16()
    x, _, grad, *_ = make((2, 3, 4, 5), torch.bfloat16, backend.device)
    mean, var = bn.running_mean.clone(), bn.running_var.clone()
    y = ops.batch_norm_relu(x, mean, var, bn.weight, bn.bias, True, backend=backend.name)
    bn.double()(x.double())
    assert y.dtype == torch.bfloat16
    assert_matches(mean, bn.running_mean)
    assert_matches(var, bn.running_var)
    bn.bfloat16()
    y = ops.batch_norm_relu(x, mean, var, bn.weight, bn.bias, True, backend=backend.name)
    y.backward(grad)
    assert bn.weight.grad.dtype == torch.bfloat16


@needs_library
def test_same_result_with_any_number_of_threads():
    def run(channels_last):
        tensors = make((3, 24, 41, 53), torch.float32, channels_last=channels_last)
        x, residual, grad, weight, bias, mean, var = tensors
        inputs = [t.requires_grad_() for t in (x, weight, bias, residual)]
        y = ops.batch_norm_relu(x, mean, var, weight, bias, True, residual=residual)
        return y, mean, var, *torch.autograd.grad(y, inputs, grad)

    for channels_last in (False, True):
        same_for_threads(functools.partial(run, channels_last))


def test_written_statistics_are_noticed(backend):
    """A backward must not use running statistics that have changed since its forward."""
    x, _, _, weight, bias, mean, var = make((2, 3, 4, 5), torch.float32, backend.device)
    before = mean._version
    y = ops.batch_norm_relu(x, mean, var, weight.requires_grad_(), bias, backend=backend.name)
    ops.batch_norm_relu(x, mean, var, weight, bias, True, backend=backend.name)
    assert mean._version > before
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


@pytest.mark.parametrize("training", [False, True], ids=["eval", "training"])
def test_compile(backend, training):
    tensors = make((2, 3, 4, 5), torch.float32, backend.device, channels_last=True)
    x, residual, grad, weight, bias, mean, var = tensors
    results = []

    def run(x, mean, var, weight, bias, residual):
        return ops.batch_norm_relu(
            x, mean, var, weight, bias, training, residual=residual, backend=backend.name
        )

    torch.compiler.reset()
    for function in (run, torch.compile(run, fullgraph=True, backend="aot_eager")):
        inputs = [t.detach().requires_grad_() for t in (x, weight, bias, residual)]
        running = (mean.clone(), var.clone())
        y = function(inputs[0], *running, *inputs[1:])
        results.append([y, *running, *torch.autograd.grad(y, inputs, grad)])
        if training:
            assert running[0]._version > 0
    for a, b in zip(*results, strict=True):
        assert a.stride() == b.stride()
        assert_matches(a, b)


# the reference is plain PyTorch, with no op of its own
@pytest.mark.only(lambda backend: backend.name != "reference")
def test_opcheck(backend):
    tensors = make((2, 3, 4, 5), torch.float32, backend.device, channels_last=True)
    x, residual, grad, weight, bias, mean, var = tensors
    suffix = "_triton" if backend.name == "triton" else ""
    affine = (mean, var, weight, bias)
    sums = torch.stack([weight, bias])
    end, smooth = (1e-5, 1, 0.0), (1e-5, 4, 0.0)  # eps, activation, slope
    for name, args in (
        ("batch_norm_relu_statistics", (x, mean, var, 0.1)),
        ("batch_norm_relu_statistics", (x, None, None, 0.1)),
        ("batch_norm_relu", (x, *affine, residual, *end)),
        ("batch_norm_relu_training", (x, *affine, residual, 0.1, *end)),
        ("batch_norm_relu_training", (x, None, None, None, None, None, 0.1, *end)),
        ("batch_norm_relu_sums", (grad, x, *affine, None, None, *end)),
        ("batch_norm_relu_sums", (grad, x, *affine, residual, None, *smooth)),
        ("batch_norm_relu_sums", (grad, x, *affine, None, residual, *end)),
        ("batch_norm_relu_backward", (grad, x, *affine, sums, 40, *end)),
        ("batch_norm_relu_backward", (grad, x, mean, var, None, None, None, 1, *end)),
        ("batch_norm_relu_gradients", (grad, x, *affine, None, None, True, *end)),
        ("batch_norm_relu_gradients", (grad, x, *affine, residual, None, False, *smooth)),
    ):
        opcheck(getattr(torch.ops.fastvision, name + suffix).default, args)


def test_autocast():
    x, residual, _, weight, bias, mean, var = make((2, 3, 4, 5), torch.bfloat16)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = ops.batch_norm_relu(x, mean, var, weight, bias, True, residual=residual.float())
    assert y.dtype == torch.bfloat16


def test_bad_input():
    x, residual, _, weight, bias, mean, var = make((2, 3, 4, 5), torch.float32)

    def refused(error, words, *args, **options):
        with pytest.raises(error, match=words):
            ops.batch_norm_relu(*args, **options)

    refused(TypeError, "input must be a Tensor, got list", [1], mean, var)
    refused(TypeError, "input must be float16, .* got torch.int64", x.long(), mean, var)
    refused(ValueError, r"input must have shape \[N, C, ...\], got \[3\]", mean, mean, var)
    refused(ValueError, r"running_mean must have shape \[3\], got \[2\]", x, mean[:2], var)
    refused(TypeError, "weight must be a Tensor, got float", x, mean, var, 1.0)
    refused(TypeError, "bias must be float16, .* got torch.int64", x, mean, var, bias=bias.long())
    refused(ValueError, "running_mean and running_var must be given", x, None, None)
    refused(ValueError, r"residual must have the shape .* got \[2, 3, 4\]", x, mean, var,
            residual=residual[..., 0])  # fmt: skip
    refused(ValueError, "residual must be torch.float32 .* got torch.float64", x, mean, var,
            residual=residual.double())  # fmt: skip
    refused(ValueError, "activation must be one of .* got 'tanh'", x, mean, var, activation="tanh")
    refused(ValueError, "backend='cuda' cannot run", x, mean, var, backend="cuda")
    refused(ValueError, "Expected more than 1 value per channel when training", x[:1, :, :1, :1],
            mean, var, training=True)  # fmt: skip
    weight.requires_grad_()
    refused(ValueError, "must have shape", x[0, 0, 0], mean, var, weight, training=True)
    nothing = torch.zeros(0, requires_grad=True)
    y = ops.batch_norm_relu(x[:, :0], nothing.detach(), nothing.detach(), nothing, None, True)
    assert y.shape == (x.shape[0], 0, *x.shape[2:])


def test_refused_training_leaves_the_statistics():
    x, residual, _, weight, bias, mean, var = make((2, 3, 4, 5), torch.float32)
    before = mean.clone(), var.clone()
    for gradient in (False, True):
        x.requires_grad_(gradient)
        w, b = (t.clone().requires_grad_(gradient) for t in (weight, bias))
        for args, options in (
            ((mean, var[:2], w, b), {}),
            ((mean, var, w[:2], b), {}),
            ((mean, var, w, b.long()), {}),
            ((mean, var, w, 1.0), {}),
            ((mean, var, w, b), {"residual": residual[..., 0]}),
            ((mean, var, w, b), {"residual": residual.double()}),
            ((mean, var, w, b), {"activation": "tanh"}),
        ):
            with pytest.raises((TypeError, ValueError), match="must"):
                ops.batch_norm_relu(x, *args, True, **options)
            assert torch.equal(mean, before[0]) and torch.equal(var, before[1])


@needs_library
@LAYOUTS
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_layer_alone(channels_last, dtype):
    """Input, weight and bias need a gradient: ops of their own, with the bits of the others."""
    x, _, grad, weight, bias, *statistics = make((4, 19, 5, 6), dtype, channels_last=channels_last)
    for activation in ACTIVATIONS:
        results = []
        for residual in (None, torch.zeros_like(x)):
            inputs = [t.detach().requires_grad_() for t in (x, weight, bias)]
            mean, var = (t.clone() for t in statistics)
            y = ops.batch_norm_relu(
                inputs[0], mean, var, *inputs[1:], True, 0.3, residual=residual,
                activation=activation, negative_slope=0.2,
            )  # fmt: skip
            name = type(y.grad_fn).__name__
            assert name == ("_LayerBackward" if residual is None else "BatchNormReLUBackward")
            results.append((y, mean, var, *torch.autograd.grad(y, inputs, grad)))
        for alone, other in zip(*results, strict=True):
            assert alone.dtype == other.dtype and alone.stride() == other.stride()
            assert_matches(alone, other)


def test_layer_without_statistics_or_with_parameters_of_another_type():
    x, _, grad, weight, bias, mean, var = make((4, 3, 5, 6), torch.float32)
    for statistics in ((None, None), (mean.half(), var.half())):
        for parameters in ((weight, bias), (weight.double(), bias.bfloat16())):
            inputs = [t.detach().clone().requires_grad_() for t in (x, *parameters)]
            y = ops.batch_norm_relu(inputs[0], *statistics, *inputs[1:], True)
            found = torch.autograd.grad(y, inputs, grad)
            exact = [t.detach().double().requires_grad_() for t in inputs]
            y = F.batch_norm(exact[0], None, None, *exact[1:], True, eps=1e-5).relu()
            expected = torch.autograd.grad(y, exact, grad.double())
            for a, b, t in zip(found, expected, inputs, strict=True):
                assert a.dtype == t.dtype
                # computed in float32, whatever the parameters' type
                assert_matches(a.float() if a.dtype == torch.float64 else a, b, scale=16)


@needs_library
def test_layer_ops_refuse_numbers_that_are_none():
    x, _, grad, weight, bias, mean, var = make((4, 3, 5, 6), torch.float32)
    run = torch.ops.fastvision
    for numbers in ([0.1, 1e-5, 1.0], [0.1, 1e-5, 99.0, 0.0], [0.1, 1e-5, float("nan"), 0.0]):
        numbers = torch.tensor(numbers, dtype=torch.float64)
        with pytest.raises(RuntimeError, match=r"numbers must be|unknown activation"):
            run.batch_norm_relu_layer(x, mean, var, weight, bias, numbers)
        with pytest.raises(RuntimeError, match=r"numbers must be|unknown activation"):
            run.batch_norm_relu_layer_gradients(grad, x, mean, var, weight, bias, numbers)
