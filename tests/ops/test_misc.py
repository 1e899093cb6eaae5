"""The layers of a convolution, a normalization and an activation, against torchvision's."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from fastvision import ops
from fastvision.testing.numerics import assert_matches

NORMS = {"batch": nn.BatchNorm2d, "frozen": ops.FrozenBatchNorm2d, "none": None}
ACTIVATIONS = (None, nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.SiLU, nn.Hardswish, nn.Sigmoid, nn.GELU)


def images(dtype=torch.float32):
    return torch.randn(3, 4, 9, 8, generator=torch.Generator().manual_seed(0)).to(dtype)


def randomize(module):
    g = torch.Generator().manual_seed(1)
    for name, t in module.state_dict().items():
        if "num_batches" not in name:
            t.copy_(torch.rand(t.shape, generator=g) + (0.1 if t.dim() == 1 else -0.5))
    return module


def count_calls(monkeypatch):
    """How often the module's ops run."""
    calls = []
    for name in ("conv_bn_relu", "batch_norm_relu"):
        function = getattr(ops, name)

        def counted(*args, function=function, **kwargs):
            calls.append(function)
            return function(*args, **kwargs)

        monkeypatch.setattr(f"fastvision.ops.chain.{name}", counted)
    return calls


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("norm", NORMS)
def test_conv2d_norm_activation(torchvision, norm, activation):
    options = {"norm_layer": NORMS[norm], "activation_layer": activation, "stride": 2}
    if activation in (nn.Sigmoid, nn.GELU):
        options["inplace"] = None
    ours = randomize(ops.Conv2dNormActivation(4, 6, 5, groups=2, dilation=2, **options).double())
    theirs = torchvision.ops.Conv2dNormActivation(4, 6, 5, groups=2, dilation=2, **options).double()
    assert list(ours.state_dict()) == list(theirs.state_dict())
    theirs.load_state_dict(ours.state_dict())
    assert repr(ours) == repr(theirs)
    for training in (True, False):
        ours.train(training), theirs.train(training)
        results = []
        for module in (ours, theirs):
            module.zero_grad()
            x = images(torch.float64).requires_grad_()
            y = module(x)
            y.square().sum().backward()
            results.append([y, x.grad, *(p.grad for p in module.parameters())])
        for a, b in zip(*results, strict=True):
            assert_matches(a, b, scale=100)
    for a, b in zip(ours.state_dict().values(), theirs.state_dict().values(), strict=True):
        assert_matches(a.double(), b.double())


@pytest.mark.parametrize(
    "arguments",
    [{}, {"kernel_size": (3, 5), "dilation": (1, 2)}, {"padding": "same"}, {"bias": True}],
    ids=str,
)
def test_constructor_is_torchvisions(torchvision, arguments):
    ours = ops.Conv2dNormActivation(4, 6, **arguments)
    theirs = torchvision.ops.Conv2dNormActivation(4, 6, **arguments)
    assert repr(ours) == repr(theirs)
    assert ours.out_channels == theirs.out_channels == 6
    assert list(ours.state_dict()) == list(theirs.state_dict())


def test_torchvisions_frozen_batch_norm_is_fused(torchvision, monkeypatch):
    calls = count_calls(monkeypatch)
    norm = torchvision.ops.FrozenBatchNorm2d
    module = randomize(ops.Conv2dNormActivation(4, 6, norm_layer=norm))
    expected = nn.Sequential.forward(module, images())
    assert not calls
    assert_matches(module(images()), expected, scale=4)
    assert calls == [ops.conv_bn_relu]


def test_frozen_batch_norm(torchvision):
    ours, theirs = randomize(ops.FrozenBatchNorm2d(4)), torchvision.ops.FrozenBatchNorm2d(4)
    theirs.load_state_dict(ours.state_dict())
    assert repr(ours) == repr(theirs)
    assert_matches(ours(images()), theirs(images()))
    ours.load_state_dict(nn.BatchNorm2d(4).state_dict())  # has num_batches_tracked


@pytest.mark.parametrize("shape", [(3, 4, 9, 8), (4, 9, 8), (4, 4), (2, 3, 4, 5, 6)], ids=str)
@pytest.mark.parametrize("of_module", [torch.float16, torch.float32, torch.float64])
@pytest.mark.parametrize(
    "of_input", [torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.int64]
)
def test_frozen_batch_norm_promotes_as_torchvisions(torchvision, of_input, of_module, shape):
    ours = randomize(ops.FrozenBatchNorm2d(4)).to(of_module)
    theirs = torchvision.ops.FrozenBatchNorm2d(4).to(of_module)
    theirs.load_state_dict(ours.state_dict())
    x = (4 * torch.rand(shape, generator=torch.Generator().manual_seed(2))).to(of_input)
    actual, expected = ours(x), theirs(x)
    assert actual.dtype == expected.dtype and actual.shape == expected.shape
    assert_matches(actual, theirs.double()(x.double()), scale=2)


@pytest.mark.parametrize("size", [6, 160], ids=["few elements", "many elements"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_frozen_batch_norm_in_training(torchvision, memory_format, dtype, size):
    ours = randomize(ops.FrozenBatchNorm2d(4)).to(dtype)
    theirs = torchvision.ops.FrozenBatchNorm2d(4).double()
    theirs.load_state_dict(ours.state_dict())
    g = torch.Generator().manual_seed(2)
    x, grad = (torch.randn(2, 4, size, size, generator=g).to(dtype) for _ in range(2))
    results = []
    for module, kind in ((ours, dtype), (theirs, torch.float64)):
        leaf = x.to(kind, memory_format=memory_format, copy=True).requires_grad_()
        y = module(leaf)
        (dx,) = torch.autograd.grad(y, leaf, grad.to(kind), create_graph=True)
        assert y.stride() == leaf.stride()
        results.append((y, dx))
    for actual, expected in zip(*results, strict=True):
        assert_matches(actual, expected, scale=2)


def test_frozen_batch_norm_saves_no_map():
    saved = []
    norm = ops.FrozenBatchNorm2d(4)
    x = torch.randn(2, 4, 160, 160, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        norm(x)
    assert sum(t.numel() for t in saved) == 8


@pytest.mark.parametrize("least", [0, 1000], ids=["op", "torch's operations"])
def test_frozen_batch_norm_is_differentiable(monkeypatch, least):
    monkeypatch.setattr("fastvision.ops.misc._MIN_FROZEN", least)
    norm = randomize(ops.FrozenBatchNorm2d(4)).double()
    x = torch.randn(2, 4, 3, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(
        norm, x, check_forward_ad=True, check_batched_grad=True, check_batched_forward_grad=False
    )
    assert torch.autograd.gradgradcheck(norm, x)


def test_frozen_batch_norm_under_autocast(torchvision):
    with torch.autocast("cpu", torch.bfloat16):
        x = nn.functional.conv2d(images(), torch.rand(4, 4, 1, 1))
        results = [library.FrozenBatchNorm2d(4)(x) for library in (ops, torchvision.ops)]
    assert results[0].dtype == results[1].dtype
    assert_matches(*results)


def test_frozen_batch_norm_in_a_graph(torchvision):
    norm = randomize(ops.FrozenBatchNorm2d(4))
    graph = torch.fx.symbolic_trace(nn.Sequential(norm, nn.ReLU()))
    assert torch.equal(graph(images()), norm(images()).relu())
    half = images(torch.float16)
    assert torch.equal(graph(half), norm(half).relu())


def test_feature_extractor_of_frozen_batch_norms(torchvision):
    extraction = pytest.importorskip("torchvision.models.feature_extraction")
    torch.manual_seed(0)
    model = torchvision.models.resnet18(norm_layer=ops.FrozenBatchNorm2d).eval()
    features = extraction.create_feature_extractor(model, {"layer1": "map", "fc": "scores"})
    x = torch.rand(1, 3, 32, 32)
    with torch.no_grad():
        assert torch.equal(features(x)["scores"], model(x))
        assert features(x)["map"].shape == (1, 64, 8, 8)


@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
@pytest.mark.parametrize(
    "make",
    [
        lambda: ops.Conv2dNormActivation(4, 6, norm_layer=None),
        lambda: ops.Conv2dNormActivation(4, 6),
        lambda: ops.ConvTranspose2dNormActivation(4, 6, stride=2),
        lambda: ops.ConvBNReLU2d(4, 6, 3, padding=1),
    ],
    ids=["no norm", "Conv2dNormActivation", "ConvTranspose2dNormActivation", "ConvBNReLU2d"],
)
def test_one_image_without_a_batch(make, training):
    module = randomize(make()).train(training)
    for _ in range(2):
        x = images()[0].requires_grad_(training)
        y = module(x)
        batched = module(x.unsqueeze(0)).squeeze(0)
        assert y.dim() == 3
        assert_matches(y, batched)
    if not training:
        z = ops.Conv2dNormActivation(4, 6, norm_layer=None)
        assert_matches(z(x), nn.Sequential.forward(z, x))


def test_residual_of_one_image_without_a_batch():
    module = randomize(ops.ConvBNReLU2d(4, 4, 3, padding=1)).eval()
    x = images()[0]
    assert_matches(module(x, x), module(x[None], x[None])[0])
    with pytest.raises(ValueError, match="residual must have the result's shape"):
        module(x, x[:, 1:])


@pytest.mark.parametrize("momentum", [0.1, 1.0, None])
@pytest.mark.parametrize("tracked", [True, False])
def test_running_statistics_are_batch_norms(momentum, tracked):
    def norm(channels):
        return nn.BatchNorm2d(channels, momentum=momentum, track_running_stats=tracked)

    module = randomize(ops.Conv2dNormActivation(4, 6, norm_layer=norm))
    layers = randomize(ops.Conv2dNormActivation(4, 6, norm_layer=norm))
    for step in range(4):
        module.train(step < 3), layers.train(step < 3)
        x = images() + step
        assert_matches(module(x), nn.Sequential.forward(layers, x), scale=8)
    for a, b in zip(module.state_dict().values(), layers.state_dict().values(), strict=True):
        assert_matches(a.float(), b.float())


def test_hooks_are_respected(monkeypatch):
    calls = count_calls(monkeypatch)
    module = randomize(ops.Conv2dNormActivation(4, 6)).eval()
    expected = module(images())
    assert len(calls) == 1
    for layer in module:
        seen = []
        handle = layer.register_forward_hook(lambda *_, seen=seen: seen.append(1))
        assert_matches(module(images()), expected, scale=4)
        assert seen == [1] and len(calls) == 1
        handle.remove()
    handle = nn.modules.module.register_module_forward_hook(lambda *_: seen.append(2))
    module(images())
    handle.remove()
    assert seen.count(2) == 4 and len(calls) == 1
    module(images())
    assert len(calls) == 2


def test_other_layers_run_one_by_one(monkeypatch):
    for norm in (nn.InstanceNorm2d, lambda n: nn.GroupNorm(2, n)):
        module = ops.Conv2dNormActivation(4, 6, norm_layer=norm)
        torch.testing.assert_close(module(images()), nn.Sequential.forward(module, images()))
    calls = count_calls(monkeypatch)
    module = ops.ConvBNReLU2d(4, 6, 3, padding=1, padding_mode="reflect").eval()
    torch.testing.assert_close(module(images()), module.bn(module.conv(images())).relu())
    assert not calls


def test_torch_fx_sees_the_layers():
    traced = torch.fx.symbolic_trace(ops.Conv2dNormActivation(4, 6).eval())
    assert [node.op for node in traced.graph.nodes].count("call_module") == 3


@pytest.mark.parametrize("activation", ["relu", "leaky_relu", "silu"])
def test_conv_bn_relu_module(activation):
    module = randomize(
        ops.ConvBNReLU2d(
            4, 6, 3, 2, 1, bias=True, eps=1e-3, momentum=0.2, activation=activation,
            negative_slope=0.3, dtype=torch.float64,
        )
    )  # fmt: skip
    bn = module.state_dict().keys() - {"conv.weight", "conv.bias"}
    assert bn == {f"bn.{name}" for name in nn.BatchNorm2d(6).state_dict()}
    assert f"activation={activation}" in repr(module)
    layers = nn.Sequential(nn.Conv2d(4, 6, 3, 2, 1), nn.BatchNorm2d(6, 1e-3, 0.2)).double()
    layers.load_state_dict(
        dict(zip(layers.state_dict(), module.state_dict().values(), strict=True))
    )
    function = {"relu": nn.ReLU(), "leaky_relu": nn.LeakyReLU(0.3), "silu": nn.SiLU()}[activation]
    x = images(torch.float64)
    residual = torch.ones(3, 6, 5, 4, dtype=torch.float64) / 3
    for training in (True, False):
        module.train(training), layers.train(training)
        assert_matches(module(x), function(layers(x)), scale=8)
        assert_matches(module(x, residual), function(layers(x) + residual), scale=8)
    assert_matches(module.bn.running_var, layers[1].running_var)


def test_module_compiles():
    module = randomize(ops.Conv2dNormActivation(4, 6))
    torch.compiler.reset()
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
    for training in (True, False):
        module.train(training)
        gradients = []
        for run in (module, compiled):
            module.zero_grad()
            run(images()).square().sum().backward()
            gradients.append([p.grad for p in module.parameters()])
        for a, b in zip(*gradients, strict=True):
            assert_matches(a, b, scale=32)
    assert module[1].num_batches_tracked == 2


WORKER = """
import sys
import torch
from torch import distributed, nn
from fastvision import ops

torch.set_num_threads(1)
store, rank, path = sys.argv[1], int(sys.argv[2]), sys.argv[3]
distributed.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
data = torch.load(path + "/data.pt")
net = nn.Sequential(
    ops.Conv2dNormActivation(4, 6), ops.ConvBNReLU2d(6, 5, 3, activation="silu")
).double()
net.load_state_dict(data["state"])
net = nn.SyncBatchNorm.convert_sync_batchnorm(net)
mine = slice(0, 3) if rank == 0 else slice(3, 8)
x = data["x"][mine].requires_grad_()
y = net(x)
y.backward(data["grad"][mine])
gradients = [p.grad for p in net.parameters()]
for g in gradients:
    distributed.all_reduce(g)
result = {"y": y.detach(), "x": x.grad, "parameters": gradients, "state": net.state_dict()}
net.eval()
result["eval"] = net(x).detach()
torch.save(result, f"{path}/{rank}.pt")
distributed.destroy_process_group()
"""


def test_sync_batch_norm_is_the_whole_batch(tmp_path: Path):
    """Two processes with 3 and 5 images against one with all 8."""
    net = nn.Sequential(
        ops.Conv2dNormActivation(4, 6), ops.ConvBNReLU2d(6, 5, 3, activation="silu")
    ).double()
    randomize(net)
    g = torch.Generator().manual_seed(2)
    x = torch.randn(8, 4, 7, 6, generator=g, dtype=torch.float64)
    grad = torch.randn(8, 5, 5, 4, generator=g, dtype=torch.float64)
    torch.save({"state": net.state_dict(), "x": x, "grad": grad}, tmp_path / "data.pt")
    workers = [
        subprocess.Popen(
            [sys.executable, "-c", WORKER, str(tmp_path / "store"), str(rank), str(tmp_path)],
            stderr=subprocess.PIPE, text=True,
        )
        for rank in range(2)
    ]  # fmt: skip
    for worker in workers:
        _, errors = worker.communicate(timeout=120)
        assert worker.returncode == 0, errors
    first, second = (torch.load(tmp_path / f"{rank}.pt") for rank in range(2))

    y = net(x.requires_grad_())
    y.backward(grad)
    assert_matches(torch.cat([first["y"], second["y"]]), y, scale=8)
    assert_matches(torch.cat([first["x"], second["x"]]), x.grad, scale=100)
    for a, p in zip(first["parameters"], net.parameters(), strict=True):
        assert_matches(a, p.grad, scale=100)
    for name, value in net.state_dict().items():
        assert_matches(first["state"][name].double(), value.double(), scale=8)
        assert torch.equal(first["state"][name], second["state"][name])
    assert_matches(torch.cat([first["eval"], second["eval"]]), net.eval()(x), scale=8)


def test_permute(torchvision):
    x = torch.rand(2, 3, 4)
    y = ops.Permute([2, 0, 1])(x)
    assert torch.equal(y, torchvision.ops.Permute([2, 0, 1])(x)) and y._base is x
    assert repr(ops.Permute([1, 0])) == repr(torchvision.ops.Permute([1, 0]))


@pytest.mark.parametrize("volume", [6, 64], ids=["small", "large"])
@pytest.mark.parametrize("options", [{}, {"stride": 2, "activation_layer": nn.Sigmoid}], ids=str)
def test_conv3d_norm_activation(torchvision, options, volume):
    options = options | ({"inplace": None} if options else {})
    ours = randomize(ops.Conv3dNormActivation(2, 4, (1, 3, 3), **options)).double()
    theirs = torchvision.ops.Conv3dNormActivation(2, 4, (1, 3, 3), **options).double()
    assert repr(ours) == repr(theirs)
    theirs.load_state_dict(ours.state_dict())
    x = torch.randn(2, 2, volume // 2, volume, volume, dtype=torch.float64)
    for training in (True, False):
        results = []
        for module in (ours, theirs):
            module.train(training).zero_grad()
            y = module(x)
            y.square().mean().backward()
            results.append([y, *(p.grad for p in module.parameters())])
        for a, b in zip(*results, strict=True):
            assert_matches(a, b, scale=100)
    for a, b in zip(ours.state_dict().values(), theirs.state_dict().values(), strict=True):
        assert_matches(a.double(), b.double())


def test_conv_norm_activation_of_any_dimension(recwarn):
    layer = ops.misc.ConvNormActivation(
        2, 3, (5,), dilation=2, norm_layer=nn.BatchNorm1d, conv_layer=nn.Conv1d
    )
    assert layer(torch.rand(2, 2, 9)).shape == (2, 3, 9) and layer[0].padding == (4,)
    assert not recwarn


@pytest.mark.parametrize("training", [False, True], ids=["inference", "gradient"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_frozen_batch_norm_in_programs(dtype, training):
    """One op, except small maps with a gradient."""
    torch.compiler.reset()
    norm = randomize(ops.FrozenBatchNorm2d(4)).to(dtype)
    x = images().to(dtype).requires_grad_(training)
    programs = {
        "compile": torch.compile(norm, fullgraph=True, backend="aot_eager"),
        "export": torch.export.export(norm, (x,)).module(),
        "fx": torch.fx.symbolic_trace(norm),
    }
    with torch.set_grad_enabled(training):
        expected = norm(x)
        for name, program in programs.items():
            assert_matches(program(x), expected, scale=2)
            nodes = [n.op for n in program.graph.nodes] if name == "fx" else []
            assert nodes.count("call_function") == (name == "fx")
