"""torchvision's modules and functions of several operations, which enable() makes one op."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

import fastvision
from fastvision.testing.models import randomize
from fastvision.testing.numerics import assert_matches

pytest.importorskip("torchvision.ops")
from torchvision import ops  # noqa: E402

pytestmark = [
    pytest.mark.usefixtures("needs_kernels", "one_thread"),
    pytest.mark.filterwarnings("ignore:.*torch.jit:FutureWarning"),
]


def frozen() -> nn.Module:
    return randomize(ops.FrozenBatchNorm2d(8), frozen=True)


def squeeze() -> nn.Module:
    torch.manual_seed(0)
    return ops.SqueezeExcitation(8, 4, activation=nn.SiLU)


OPS = {frozen: "fastvision::batch_norm_relu", squeeze: "fastvision::squeeze_excitation"}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("make", OPS)
def test_module(on, make, dtype, stock, our_ops):
    module = make().to(dtype)
    x = torch.randn(2, 8, 9, 11).to(dtype)
    with torch.no_grad():
        assert our_ops(module, x) == {OPS[make]}
        wide = copy.deepcopy(module).double()
        assert_matches(module(x), stock(wide, x.double()), scale=4)
    assert type(module).__module__ == "torchvision.ops.misc"


@pytest.mark.parametrize("make", OPS)
def test_gradients_of_modules(on, make, stock):
    module, x = make().double(), torch.randn(2, 8, 9, 11, dtype=torch.float64, requires_grad=True)

    def run():
        y = module(x)
        return y, *torch.autograd.grad(y.square().sum(), [x, *module.parameters()])

    for actual, expected in zip(run(), stock(run), strict=True):
        assert_matches(actual, expected, scale=100)


@pytest.mark.parametrize("make", OPS)
def test_recorded_modules_are_torchvisions(on, make, our_ops):
    module, x = make().eval(), torch.randn(2, 8, 9, 11)
    with torch.no_grad():
        expected = module(x)
        programs = {
            "script": torch.jit.script(module),
            "trace": torch.jit.trace(module, x),
            "fx": torch.fx.symbolic_trace(module),
            "export": torch.export.export(module, (x,)).module(),
            "compile": torch.compile(module, fullgraph=True, backend="aot_eager"),
        }
        for name, program in programs.items():
            program(x)
            assert our_ops(program, x) == set(), name
            assert_matches(program(x), expected, scale=4)


@pytest.mark.parametrize("make", OPS)
def test_other_inputs_stay_with_torchvision(on, make, stock):
    module, x = make(), torch.randn(8, 9, 11)
    with torch.no_grad():
        assert torch.equal(module(x), stock(module, x))
        assert module.to("meta")(x[None].to("meta")).shape == (1, 8, 9, 11)


def test_overridden_scale(on, stock, our_ops):
    class Half(ops.SqueezeExcitation):
        def _scale(self, input):
            return super()._scale(input) / 2

    module, x = Half(8, 4), torch.randn(2, 8, 9, 11)
    with torch.no_grad():
        assert torch.equal(module(x), stock(module, x))
        assert our_ops(module, x) == set()


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("inplace", [False, True])
def test_drop_block(on, dims, inplace, stock):
    name = f"drop_block{dims}d"
    x = torch.randn(2, 4, *(20,) * dims)

    def run():
        torch.manual_seed(0)
        function = getattr(ops, name)
        layer = getattr(ops, f"DropBlock{dims}d")(0.1, 5, inplace)
        return function(x.clone(), 0.1, 5, inplace=inplace), layer(x.clone())

    assert getattr(ops, name) is not stock(getattr, ops, name)
    for actual, expected in zip(run(), stock(run), strict=True):
        assert_matches(actual, expected)
        assert torch.equal(actual == 0, expected == 0)
    layer = getattr(ops, f"DropBlock{dims}d")(0.1, 5)
    graph = torch.fx.symbolic_trace(layer)  # torch.jit.script cannot compile torchvision's
    torch.manual_seed(0)
    assert torch.equal(graph(x), run()[0])
    with pytest.raises(ValueError, match="block size should be odd"):
        getattr(ops, name)(x, 0.1, 4)


def test_enabled_names():
    assert fastvision.enabled_names() == []
    with fastvision.enabled():
        names = {row.name: row.backends for row in fastvision.enabled_names()}
        assert fastvision.info()["enabled"] == {n: list(b) for n, b in names.items()}
    assert list(names) == sorted(names)
    assert names["torch.ops.torchvision.nms"][0] == "cpp"
    assert names["torchvision.ops.misc.FrozenBatchNorm2d.forward"][0] == "cpp"
    assert names["torchvision.ops.drop_block.drop_block2d"] == ("reference",)
    assert names["torchvision.ops.roi_align.is_compile_supported"] == ()
    assert fastvision.info()["enabled"] == {}
