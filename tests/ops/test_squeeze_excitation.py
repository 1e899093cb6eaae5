"""squeeze_excitation: every backend against torch's layers in float64."""

from __future__ import annotations

import copy
import importlib
import pickle

import pytest
import torch
from torch import nn
from torch.autograd import gradcheck, gradgradcheck
from torch.library import opcheck
from torch.nn import functional as F

from fastvision import ops
from fastvision.testing import cases
from fastvision.testing.numerics import DTYPES, assert_matches
from fastvision.testing.tensors import dtype_id, in_format, leaf
from fastvision.testing.threads import same_for_threads

pytestmark = pytest.mark.usefixtures("poisoned_memory")
# one pixel, less than a vector of channels, ends of vectors, several blocks of pixels, no image
SHAPES = (
    ((1, 16, 1, 1), 8),
    ((2, 3, 1, 5), 1),
    ((3, 5, 7, 9), 2),
    ((2, 33, 5, 4), 9),
    ((2, 72, 6, 7), 24),
    ((1, 20, 41, 53), 5),
    ((1, 150, 13, 12), 40),
    ((0, 4, 3, 3), 2),
    ((2, 4, 0, 3), 2),
)
FORMATS = pytest.mark.parametrize("channels_last", [False, True], ids=["nchw", "nhwc"])
GATES = {"sigmoid": nn.Sigmoid, "hardsigmoid": nn.Hardsigmoid}
ACTIVATIONS = {"relu": nn.ReLU, "silu": nn.SiLU}


def make(shape, squeeze, dtype=torch.float64, device="cpu", channels_last=False):
    g = cases.generator(len(shape))
    C = shape[1]
    tensors = [
        torch.randn(shape, generator=g) + 0.3,
        torch.randn(squeeze, C, generator=g) / C**0.5,
        torch.randn(squeeze, generator=g),
        torch.randn(C, squeeze, generator=g) * 2,
        torch.randn(C, generator=g),
    ]
    tensors = [t.to(device, dtype) for t in tensors]
    return [in_format(tensors[0], channels_last), *tensors[1:]]


def torch_layers(x, weight1, bias1, weight2, bias2, activation, gate):
    z = F.conv2d(x.mean((2, 3), keepdim=True), weight1.view(*weight1.shape[:2], 1, 1), bias1)
    z = F.conv2d(getattr(F, activation)(z), weight2.view(*weight2.shape[:2], 1, 1), bias2)
    return getattr(F, gate)(z) * x


def check(backend, tensors, activation, gate):
    y = ops.squeeze_excitation(*tensors, activation, gate, backend=backend.name)
    exact = [None if t is None else t.double() for t in tensors]
    assert y.dtype == tensors[0].dtype
    assert y.stride() == tensors[0].stride() or y.numel() == 0
    assert_matches(y, torch_layers(*exact, activation, gate))


@FORMATS
@pytest.mark.parametrize(("shape", "squeeze"), SHAPES, ids=str)
def test_shapes(backend, shape, squeeze, channels_last):
    for dtype in (torch.float64, torch.float32):
        tensors = make(shape, squeeze, dtype, backend.device, channels_last)
        check(backend, tensors, "relu", "hardsigmoid")


@FORMATS
@pytest.mark.parametrize("dtype", DTYPES, ids=dtype_id)
@pytest.mark.parametrize("gate", GATES)
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_dtypes_and_activations(backend, activation, gate, dtype, channels_last):
    tensors = make((2, 21, 5, 6), 7, dtype, backend.device, channels_last)
    check(backend, tensors, activation, gate)
    tensors[2] = tensors[4] = None
    check(backend, tensors, activation, gate)


def test_strides(backend):
    """Slices, transposed weights and weights of convolutions are taken as they are."""
    x, weight1, bias1, weight2, bias2 = make((2, 12, 6, 5), 5, device=backend.device)
    expected = torch_layers(x[:, :, 1:, ::2], weight1, bias1, weight2, bias2, "relu", "sigmoid")
    weights = (weight1.t().contiguous().t(), bias1, weight2[..., None, None], bias2)
    y = ops.squeeze_excitation(x[:, :, 1:, ::2], *weights, backend=backend.name)
    assert_matches(y, expected)


@FORMATS
def test_nan_and_infinity(backend, channels_last):
    """NaN in one channel reaches the image that it is in, through its gate, and no other."""
    x, *weights = make((3, 6, 4, 4), 3, device=backend.device)
    x[1, 2, 0, 0] = float("nan")
    x[2, 1, 3, 3] = float("inf")
    x = in_format(x, channels_last)
    y = ops.squeeze_excitation(x, *weights, "silu", "sigmoid", backend=backend.name)
    expected = torch_layers(x, *weights, "silu", "sigmoid")
    assert torch.equal(y.isnan(), expected.isnan())
    assert_matches(y[0], expected[0])


@FORMATS
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=dtype_id)
def test_same_for_any_number_of_threads(cpu_level, dtype, channels_last):
    tensors = make((3, 150, 41, 13), 40, dtype, channels_last=channels_last)
    same_for_threads(lambda: ops.squeeze_excitation(*tensors, backend="cpp"), (1, 2, 5))


@pytest.mark.parametrize("gate", GATES)
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_derivatives(activation, gate):
    inputs = [t.requires_grad_() for t in make((2, 3, 2, 3), 4)]

    def run(*tensors):
        return ops.squeeze_excitation(*tensors, activation, gate)

    assert gradcheck(run, inputs, check_forward_ad=True)
    if activation == "silu" and gate == "sigmoid":
        assert gradgradcheck(run, inputs)


def test_opcheck():
    for channels_last in (False, True):
        tensors = make((2, 6, 4, 4), 3, torch.float32, channels_last=channels_last)
        opcheck(torch.ops.fastvision.squeeze_excitation.default, (*tensors, 1, True))


def test_compile_and_trace():
    tensors = make((2, 6, 4, 4), 3)
    expected = ops.squeeze_excitation(*tensors)
    compiled = torch.compile(ops.squeeze_excitation, fullgraph=True, backend="aot_eager")
    assert_matches(compiled(*tensors), expected)
    layer = ops.SqueezeExcitation(6, 3).double().eval()
    traced = torch.jit.trace(layer, tensors[0])
    x = tensors[0] * 2
    assert_matches(traced(x), layer(x))


WRONG = {
    "dimensions": (ValueError, "input", lambda t: [t[0][0], *t[1:]]),
    "integers": (TypeError, "input", lambda t: [t[0].int(), *t[1:]]),
    "shape": (ValueError, "weight2", lambda t: [*t[:3], t[3].t(), t[4]]),
    "no outputs": (ValueError, "weight1", lambda t: [t[0], t[1][:0], *t[2:]]),
    "kernel of 3x3": (
        ValueError,
        "weight1",
        lambda t: [t[0], t[1][..., None, None].expand(-1, -1, 3, 3), *t[2:]],
    ),
    "dtype": (ValueError, "bias1", lambda t: [*t[:2], t[2].float(), *t[3:]]),
    "no tensor": (TypeError, "weight1", lambda t: [t[0], None, *t[2:]]),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_arguments(case):
    error, name, change = WRONG[case]
    with pytest.raises(error, match=name):
        ops.squeeze_excitation(*change(make((2, 6, 4, 4), 3)))


def test_wrong_activations():
    tensors = make((2, 6, 4, 4), 3)
    with pytest.raises(ValueError, match="activation"):
        ops.squeeze_excitation(*tensors, "tanh")
    with pytest.raises(ValueError, match="scale_activation"):
        ops.squeeze_excitation(*tensors, "relu", "relu")
    with pytest.raises(ValueError, match="cuda"):
        ops.squeeze_excitation(*tensors, backend="cuda")


@pytest.fixture
def calls(monkeypatch):
    """How often a module runs the op."""
    found = []
    real = ops.squeeze_excitation

    def counted(*args):
        found.append(args)
        return real(*args)

    module = importlib.import_module("fastvision.ops.squeeze_excitation")
    monkeypatch.setattr(module, "squeeze_excitation", counted)
    return found


@pytest.mark.parametrize("gate", [nn.Sigmoid, nn.Hardsigmoid, nn.Tanh])
@pytest.mark.parametrize("activation", [nn.ReLU, nn.SiLU, nn.GELU])
def test_module(torchvision, calls, activation, gate):
    torch.manual_seed(0)
    theirs = torchvision.ops.SqueezeExcitation(12, 4, activation, gate).double()
    torch.manual_seed(0)
    ours = ops.SqueezeExcitation(12, 4, activation, gate).double()
    assert isinstance(ours, torchvision.ops.SqueezeExcitation)
    assert repr(ours) == repr(theirs)
    assert list(ours.state_dict()) == list(theirs.state_dict())
    assert all(torch.equal(a, b) for a, b in zip(ours.parameters(), theirs.parameters(), strict=1))
    x = make((2, 12, 5, 6), 4)[0]
    results = []
    for module in (ours, theirs):
        inputs = [leaf(x), *module.parameters()]
        y = module(inputs[0])
        results.append([y, *torch.autograd.grad(y.square().sum(), inputs)])
    for a, b in zip(*results, strict=True):
        assert_matches(a, b)
    assert len(calls) == (activation is not nn.GELU and gate is not nn.Tanh)
    for twin in (copy.deepcopy(ours), pickle.loads(pickle.dumps(ours))):
        assert_matches(twin(x), results[1][0])
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        assert_matches(ours.float()(x.bfloat16()), results[1][0])


def test_overridden_scale(torchvision, calls):
    """Of a subclass and of an instance."""

    class Half(ops.SqueezeExcitation):
        def _scale(self, input):
            return super()._scale(input) / 2

    x = make((2, 12, 5, 6), 4, torch.float32)[0]
    modules = []
    for cls in (torchvision.ops.SqueezeExcitation, ops.SqueezeExcitation, Half):
        torch.manual_seed(0)
        modules.append(cls(12, 4))
    theirs, ours, half = modules
    with torch.no_grad():
        assert_matches(ours._scale(x), theirs._scale(x))
        assert_matches(half(x), theirs(x) / 2)
        assert not calls
        ours(x)
        assert len(calls) == 1
        ours._scale = torch.ones_like
        assert torch.equal(ours(x), x)


def test_module_with_hooks(calls):
    module = ops.SqueezeExcitation(12, 4).double().eval()
    x = make((2, 12, 5, 6), 4)[0]
    with torch.no_grad():
        expected = module(x)
        assert len(calls) == 1
        seen = []
        module.fc1.register_forward_hook(lambda *args: seen.append(args))
        assert_matches(module(x), expected)
    assert len(calls) == len(seen) == 1
