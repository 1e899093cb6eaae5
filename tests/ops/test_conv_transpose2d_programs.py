"""Transposed convolution as a module and under torch's machinery."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from fastvision import ops
from fastvision.testing import cases
from fastvision.testing.conv_transpose2d import batch_norm, make
from fastvision.testing.marks import LAYOUTS
from fastvision.testing.numerics import assert_matches
from fastvision.testing.tensors import dtype_id, leaf

pytestmark = pytest.mark.usefixtures("poisoned_memory")


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
# the reference is plain PyTorch, with no op of its own
@pytest.mark.only(lambda backend: backend.name != "reference")
def test_opcheck(backend, channels_last, shape):
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


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=dtype_id)
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


def test_meta(cpu_level):
    x, weight, bias, options = (t.to("meta") if hasattr(t, "to") else t for t in make("k2s2"))
    assert ops.conv_transpose2d(x, weight, bias, **options).shape == (2, 5, 10, 14)
