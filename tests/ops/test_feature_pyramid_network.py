"""Feature pyramids against torchvision's."""

from __future__ import annotations

import re
from collections import OrderedDict

import pytest
import torch
from torch import nn

from fastvision import ops
from fastvision.ops import feature_pyramid_network as ours
from fastvision.testing.numerics import assert_matches

CHANNELS = [4, 8, 16]
EXTRA = {
    "none": lambda module: None,
    "pool": lambda module: module.LastLevelMaxPool(),
    "p6p7": lambda module: module.LastLevelP6P7(16, 6),
    "p6p7 of the pyramid": lambda module: module.LastLevelP6P7(6, 6),
}
NORMS = {"none": None, "batch": nn.BatchNorm2d, "group": lambda n: nn.GroupNorm(2, n)}


@pytest.fixture(autouse=True)
def _small_maps_like_large_ones(monkeypatch):
    monkeypatch.setattr(ours, "_LEAST_WORK", 0)


@pytest.fixture(scope="session")
def theirs(torchvision):
    return torchvision.ops.feature_pyramid_network


def maps(dtype=torch.float64, memory_format=torch.contiguous_format, gradient=True):
    g = torch.Generator().manual_seed(0)
    sizes = [(13, 18), (7, 9), (4, 5)]
    return OrderedDict(
        (name, torch.randn(2, c, *size, generator=g).to(dtype, memory_format=memory_format)
         .requires_grad_(gradient))
        for name, c, size in zip("abc", CHANNELS, sizes, strict=True)
    )  # fmt: skip


def pair(theirs, extra="none", norm="none"):
    made = []
    for module in (ours, theirs):
        torch.manual_seed(0)
        blocks = EXTRA[extra](module)
        made.append(module.FeaturePyramidNetwork(CHANNELS, 6, blocks, NORMS[norm]))
    return made


@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last], ids=str)
@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("extra", EXTRA)
def test_same_as_torchvisions(theirs, extra, norm, memory_format, training):
    a, b = pair(theirs, extra, norm)
    assert repr(a) == repr(b)
    assert list(a.state_dict()) == list(b.state_dict())
    for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True):
        assert torch.equal(x, y)  # the same random numbers
    results = []
    for module in (a.double(), b.double()):
        module.to(memory_format=memory_format).train(training)
        x = maps(memory_format=memory_format)
        pyramid = module(x)
        grads = torch.autograd.grad(
            sum(y.square().sum() for y in pyramid.values()), [*x.values(), *module.parameters()]
        )
        results.append((list(pyramid), list(pyramid.values()), grads))
    assert results[0][0] == results[1][0]
    for actual, expected in zip(results[0][1], results[1][1], strict=True):
        assert_matches(actual, expected, scale=100)
        assert actual.stride() == expected.stride()
    for actual, expected in zip(results[0][2], results[1][2], strict=True):
        assert_matches(actual, expected, scale=1000)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last], ids=str)
def test_without_gradients(theirs, memory_format, dtype):
    a, b = pair(theirs, "p6p7", "batch")
    a.to(dtype).eval(), b.double().eval()
    x = maps(dtype, memory_format, gradient=False)
    with torch.no_grad():
        b.load_state_dict(a.state_dict())
        pyramid = a(x)
        expected = b(OrderedDict((name, m.double()) for name, m in x.items()))
    for name, result in pyramid.items():
        assert result.dtype == dtype
        assert result.is_contiguous(memory_format=memory_format)
        assert_matches(result, expected[name], scale=30)


def test_one_op_per_convolution(monkeypatch):
    """Also of NCHW maps, which are converted meanwhile."""
    calls = []
    conv = ops.conv_bn_relu

    def counted(input, *args, **kwargs):
        calls.append((input.is_contiguous(), kwargs["residual"] is not None))
        return conv(input, *args, **kwargs)

    monkeypatch.setattr("fastvision.ops.chain.conv_bn_relu", counted)
    pyramid = ours.FeaturePyramidNetwork(CHANNELS, 6).eval()
    with torch.no_grad():
        results = pyramid(maps(torch.float32, gradient=False))
        assert sorted(calls) == [(False, False)] * 4 + [(False, True)] * 2
        calls.clear()
        monkeypatch.setattr(ours, "_LEAST_WORK", 1 << 19)  # small maps stay as they are
        expected = pyramid(maps(torch.float32, gradient=False))
        assert not calls
        for name, result in results.items():
            assert_matches(result, expected[name], scale=30)


def test_old_keys(theirs):
    """Of a checkpoint in which the blocks were convolutions, and of one in today's form."""
    expected, stock = pair(theirs, "p6p7")
    old = {
        re.sub(r"^(\w+_blocks\.\d)\.0\.", r"\1.", name): value
        for name, value in expected.state_dict().items()
    }
    assert "inner_blocks.0.weight" in old and "extra_blocks.p6.weight" in old
    for state in (old, expected.state_dict()):
        pyramid = ours.FeaturePyramidNetwork(CHANNELS, 6, ours.LastLevelP6P7(16, 6))
        pyramid.load_state_dict(dict(state))
        stock.load_state_dict(dict(state))
        for x, y in zip(pyramid.state_dict().values(), expected.state_dict().values(), strict=True):
            assert torch.equal(x, y)


def test_hooks_and_other_blocks(theirs):
    a, b = pair(theirs)
    x = maps(torch.float32, gradient=False)
    seen = []
    a.inner_blocks[0].register_forward_hook(lambda *_: seen.append("block"))
    a.layer_blocks[1][0].register_forward_hook(lambda *_: seen.append("layer"))
    a.inner_blocks[1] = nn.Sequential(a.inner_blocks[1][0])
    for name, result in a(x).items():
        assert_matches(result, b(x)[name], scale=30)
    assert sorted(seen) == ["block", "layer"]


class Doubled(nn.Module):
    """A layer around another, without its attributes."""

    def __init__(self, layer):
        super().__init__()
        self.layer = layer

    def forward(self, x):
        return 2 * self.layer(x)


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last], ids=str)
def test_other_layers_in_blocks(theirs, memory_format):
    results = []
    for module in pair(theirs, "p6p7"):
        for blocks in (module.inner_blocks, module.layer_blocks):
            blocks[0][0] = Doubled(blocks[0][0])
            blocks[1][0] = nn.Sequential(blocks[1][0])
        module.extra_blocks.p6 = Doubled(module.extra_blocks.p6)
        del module.layer_blocks[2][0]  # an empty block
        with torch.no_grad():
            results.append(module(maps(torch.float32, memory_format, gradient=False)))
    for name, result in results[0].items():
        assert_matches(result, results[1][name], scale=100)


@pytest.mark.parametrize("name", ["inner", "layer"])
def test_overridden_calls_of_blocks(theirs, name):
    method = f"get_result_from_{name}_blocks"
    results = []
    for module in pair(theirs):
        cls = type(module)

        def scaled(self, x, idx, cls=cls):
            return getattr(cls, method)(self, x, idx) * 3

        module.__class__ = type("Scaled", (cls,), {method: scaled})
        results.append(module(maps(torch.float32, gradient=False)))
    for level, result in results[0].items():
        assert_matches(result, results[1][level], scale=100)


def test_takes_torchvisions_blocks(theirs):
    a = ours.FeaturePyramidNetwork(CHANNELS, 6, theirs.LastLevelMaxPool())
    assert list(a(maps(torch.float32))) == ["a", "b", "c", "pool"]


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last], ids=str)
@pytest.mark.parametrize("size", [(1, 1), (4, 5), (7, 8)], ids=str)
def test_last_level_max_pool(theirs, size, memory_format):
    x = torch.randn(2, 3, *size).to(memory_format=memory_format)
    x[0, 0, 0, 0] = float("nan")
    results = [m.LastLevelMaxPool()([x], [], ["0"]) for m in (ours, theirs)]
    assert results[0][1] == results[1][1] == ["0", "pool"]
    torch.testing.assert_close(results[0][0], results[1][0], equal_nan=True, rtol=0, atol=0)
    assert results[0][0][1].is_contiguous(memory_format=memory_format)


def test_errors():
    with pytest.raises(ValueError, match="in_channels=0 is currently not supported"):
        ours.FeaturePyramidNetwork([4, 0], 6)
    with pytest.raises(TypeError, match="extra_blocks should be of type ExtraFPNBlock not"):
        ours.FeaturePyramidNetwork([4], 6, nn.ReLU())
    pyramid = ours.FeaturePyramidNetwork(CHANNELS, 6)
    for wrong in ({}, {"a": torch.rand(1, 4, 2, 2)}):
        with pytest.raises(ValueError, match=f"x must have 3 maps, got {len(wrong)}"):
            pyramid(wrong)
    with pytest.raises(NotImplementedError, match="ExtraFPNBlock has no forward"):
        ours.ExtraFPNBlock()([], [], [])


@pytest.mark.parametrize("gradient", [False, True])
def test_compiles(gradient):
    torch.compiler.reset()
    module = ours.FeaturePyramidNetwork(CHANNELS, 6, ours.LastLevelP6P7(16, 6))
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
    x = maps(torch.float32, gradient=False)
    with torch.set_grad_enabled(gradient):
        for name, result in compiled(x).items():
            assert_matches(result, module(x)[name], scale=30)


def test_exports():
    module = ours.FeaturePyramidNetwork(CHANNELS, 6, ours.LastLevelMaxPool()).eval()
    x = dict(maps(torch.float32, gradient=False))
    with torch.no_grad():
        program = torch.export.export(module, (x,))
        results = program.module()(x)
        for name, result in module(x).items():
            assert_matches(result, results[name], scale=30)


def test_autocast(theirs):
    a, b = pair(theirs)
    x = maps(torch.float32, gradient=False)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        results, expected = a(x), b(x)
    wide = b.double()(OrderedDict((n, m.double()) for n, m in x.items()))
    for name, result in results.items():
        assert result.dtype == expected[name].dtype == torch.bfloat16
        assert_matches(result, wide[name], scale=30)
