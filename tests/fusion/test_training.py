"""fuse(model, training=True): the same training on fused ops."""

from __future__ import annotations

import copy
import io
import pickle

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

import fastvision
from fastvision.ops import FrozenBatchNorm2d, _normalization
from fastvision.reference.activations import ACTIVATIONS
from fastvision.testing.fused_training import Uses, assert_same, images, train_once


def add_in_place(m, y, x):
    alias = y
    y += x
    z = F.relu(y)
    return z + alias


def relu_in_place(m, y, x):
    z = m.relu(y)
    return z * y


class Double(torch.autograd.Function):
    @staticmethod
    def forward(ctx, y):
        ctx.save_for_backward(y)
        return y * y

    @staticmethod
    def backward(ctx, grad):
        (y,) = ctx.saved_tensors
        return 2 * y * grad


@torch.jit.script
def scripted(y):
    return torch.tanh(y) * y


def hooked(m, y, x):
    seen = []
    y.register_hook(lambda grad: seen.append(grad) or grad * 2)
    return y.relu()


def in_place_on_half(m, y, x):
    y[:, :2] = 0
    return y + x


def no_grad_branch(m, y, x):
    with torch.no_grad():
        mask = F.relu(y)
    return mask * y


USES = {
    "relu": lambda m, y, x: F.relu(y),
    "module": lambda m, y, x: m.relu(y),
    "method": lambda m, y, x: y.relu(),
    "leaky_relu": lambda m, y, x: F.leaky_relu(y, 0.3),
    "leaky_relu_in_place": lambda m, y, x: F.leaky_relu_(y, 0.3) * y,
    "relu6": lambda m, y, x: F.relu6(y + 5 * x),
    "relu6_module": lambda m, y, x: nn.ReLU6(inplace=True)(y),
    "hardtanh": lambda m, y, x: nn.Hardtanh()(y),
    "silu": lambda m, y, x: nn.SiLU(inplace=True)(y),
    "hardswish": lambda m, y, x: nn.Hardswish()(y),
    "sigmoid": lambda m, y, x: torch.sigmoid(y) * y,
    "residual": lambda m, y, x: F.relu(y + x),
    "residual_first": lambda m, y, x: F.relu(x + y),
    "two_norms": lambda m, y, x: F.relu(m.other(x) + y),
    "same": lambda m, y, x: F.relu(y + y),
    "scaled": lambda m, y, x: F.relu(torch.add(y, x, alpha=2)),
    "number": lambda m, y, x: F.relu(y + 1),
    "broadcast": lambda m, y, x: F.relu(y + x[:, :1]),
    "two_additions": lambda m, y, x: F.relu(y + x + x),
    "add_in_place": add_in_place,
    "relu_in_place": relu_in_place,
    "used_twice": lambda m, y, x: torch.cat([F.relu(y), y, y.mean((2, 3), keepdim=True) * y]),
    "nothing": lambda m, y, x: y,
    "tuple": lambda m, y, x: {"a": [y, y + x]},
    "function": lambda m, y, x: Double.apply(y),
    "function_of_sum": lambda m, y, x: Double.apply(y + x),
    "scripted": lambda m, y, x: scripted(y),
    "scripted_sum": lambda m, y, x: scripted(y + x),
    "checkpoint": lambda m, y, x: checkpoint(
        lambda x: F.relu(m.other(m.conv(x)) + x), y + 0, use_reentrant=False
    ),
    "old_checkpoint": lambda m, y, x: checkpoint(lambda y: F.relu(y) * y, y, use_reentrant=True),
    "hook": hooked,
    "in_place_on_half": in_place_on_half,
    "no_grad": no_grad_branch,
    "detached": lambda m, y, x: y.detach() * F.relu(y),
    "convolution": lambda m, y, x: m.conv(y),
    "normalization": lambda m, y, x: m.other(y).relu(),
    "view": lambda m, y, x: y.flatten(1).relu(),
    "numbers": lambda m, y, x: y * float(y.detach().numpy().max()) * y.tolist()[0][0][0][0],
    "out": lambda m, y, x: torch.relu(y).reshape(y.size(0), -1)[:, : y.shape[1]],
}


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("use", USES)
def test_uses(use, channels_last):
    model = Uses(USES[use]).double()
    expected = copy.deepcopy(model)
    x = images()
    if channels_last:
        x = x.contiguous(memory_format=torch.channels_last)
    assert_same(train_once(fastvision.fuse(model, training=True), x), train_once(expected, x))


@pytest.mark.parametrize("norm", [FrozenBatchNorm2d, nn.SyncBatchNorm, nn.InstanceNorm2d])
def test_other_normalizations(norm):
    model = Uses(USES["residual"], norm).double()
    for name, t in model.norm.state_dict().items():
        if "num" not in name:
            t.copy_(torch.rand(4))
    expected = copy.deepcopy(model)
    trained = fastvision.fuse(model, training=True)
    if norm is nn.SyncBatchNorm:  # torch's has no CPU implementation
        expected.norm = nn.BatchNorm2d(4).double()
        expected.norm.load_state_dict(model.norm.state_dict())
    assert_same(train_once(trained, images()), train_once(expected, images()))


@pytest.mark.parametrize(
    ("use", "activation"),
    [
        ("residual", "relu"),
        ("relu6", "relu6"),
        ("relu6_module", "relu6"),
        ("hardtanh", "none"),
        ("silu", "silu"),
        ("hardswish", "hardswish"),
        ("leaky_relu", "leaky_relu"),
    ],
)
def test_runs_as_one_op(monkeypatch, use, activation):
    calls = []
    forward = _normalization.BatchNormReLU.forward

    def counted(ctx, *args):
        _, _, activation, _ = args[8]  # options
        calls.append((args[3] is not None, ACTIVATIONS[activation]))
        return forward(ctx, *args)

    monkeypatch.setattr(_normalization.BatchNormReLU, "forward", staticmethod(counted))
    fastvision.fuse(Uses(USES[use]), training=True)(images().float().requires_grad_())
    assert calls == [(use in ("residual", "relu6"), activation)]  # once, with what is added


def test_shares_parameters_and_keeps_the_model():
    model = Uses(USES["relu"])
    seen = []
    model.norm.register_forward_hook(lambda module, args, output: seen.append(output.shape))
    trained = fastvision.fuse(model, training=True)
    assert type(model.norm) is nn.BatchNorm2d and type(trained) is not type(model)
    assert isinstance(trained, Uses) and isinstance(trained.norm, nn.BatchNorm2d)
    assert [id(p) for p in trained.parameters()] == [id(p) for p in model.parameters()]
    assert [id(b) for b in trained.buffers()] == [id(b) for b in model.buffers()]
    assert list(trained.state_dict()) == list(model.state_dict())
    trained(images().float()).sum().backward()
    assert seen == [(3, 4, 6, 5)]
    assert model.norm.num_batches_tracked == 1 and model.conv.weight.grad is not None


def test_evaluation():
    model = Uses(USES["residual"]).double()
    trained = fastvision.fuse(model, training=True)
    trained(images())
    for module in (model, trained):
        module.eval()
    x = images()
    assert_same(train_once(trained, x), train_once(copy.deepcopy(model), x))
    with torch.no_grad():
        expected = model(x)
        torch.testing.assert_close(trained(x), expected)
        fused = fastvision.fuse(trained)
        assert type(fused.norm).__mro__[1].__name__ == "FusedNorm"
        torch.testing.assert_close(fused(x), expected)


def test_backward_hooks():
    results = []
    for training in (False, True):
        model = Uses(USES["residual"]).double()
        torch.manual_seed(0)
        for p in model.parameters():
            nn.init.uniform_(p)
        model = fastvision.fuse(model, training=True) if training else model
        seen = []
        model.norm.register_full_backward_hook(lambda m, gi, go, seen=seen: seen.extend([*gi, *go]))
        results.append([*train_once(model, images()), *seen])
    assert_same(*results)


def test_second_derivatives():
    model = Uses(USES["silu"]).double()
    gradients = []
    for m in (model, fastvision.fuse(model, training=True)):
        x = images().requires_grad_()
        (first,) = torch.autograd.grad(m(x).square().sum(), x, create_graph=True)
        gradients.append(torch.autograd.grad(first.square().sum(), [x, *m.conv.parameters()]))
    assert_same(*gradients)


def test_copies_and_files():
    trained = fastvision.fuse(Uses(add_in_place).double(), training=True)
    x = images()
    file = io.BytesIO()
    torch.save(trained, file)
    file.seek(0)
    copies = [
        copy.deepcopy(trained),
        pickle.loads(pickle.dumps(trained)),
        torch.load(file, weights_only=False),
    ]
    expected = train_once(trained, x)
    for other in copies:
        assert type(other.norm) is type(trained.norm)
        assert_same(train_once(other, x), expected)


def test_compiles():
    torch._dynamo.reset()
    model = Uses(USES["residual"])
    trained = fastvision.fuse(model, training=True)
    compiled = torch.compile(trained, backend="aot_eager", fullgraph=True)
    x = images().float()
    torch.testing.assert_close(compiled(x), copy.deepcopy(model)(x))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast(dtype):
    model = Uses(USES["residual"])
    x = images().float()
    results = []
    for m in (copy.deepcopy(model), fastvision.fuse(model, training=True)):
        with torch.autocast("cpu", dtype):
            y = m(x)
        y.float().sum().backward()
        results.append((y, m.norm.weight.grad, m.conv.weight.grad))
    for a, b in zip(*results, strict=True):
        assert a.dtype == b.dtype
        torch.testing.assert_close(a.float(), b.float(), rtol=0.05, atol=0.05)


def test_options_of_inference_are_refused():
    for options in ({"channels_last": True}, {"dtype": torch.half}, {"example_inputs": ()}):
        with pytest.raises(ValueError, match="training=True"):
            fastvision.fuse(nn.Conv2d(1, 1, 1), training=True, **options)


def test_seeded_steps_of_torchvisions_resnet():
    models = pytest.importorskip("torchvision").models
    torch.manual_seed(0)
    model = models.resnet18(num_classes=10).double()  # in float32 rounding alone grows to percents
    losses = []
    for m in (copy.deepcopy(model), fastvision.fuse(model, training=True)):
        optimizer = torch.optim.SGD(m.parameters(), 0.02, momentum=0.9)
        generator = torch.Generator().manual_seed(1)
        losses.append([])
        for _ in range(20):
            x = torch.randn(4, 3, 33, 33, generator=generator).double()
            y = torch.randint(10, (4,), generator=generator)
            loss = F.cross_entropy(m(x), y)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses[-1].append(loss.item())
    torch.testing.assert_close(*map(torch.tensor, losses), rtol=1e-6, atol=0)


def test_frozen_normalization_of_other_shapes_and_types():
    frozen = Uses(USES["relu"], FrozenBatchNorm2d)
    trained = fastvision.fuse(copy.deepcopy(frozen), training=True)
    x = torch.randn(4, 4, 5)  # without a batch
    assert trained(x).shape == frozen(x).shape == (1, 4, 4, 5)
    with torch.autocast("cpu", torch.bfloat16):
        y, expected = trained(images().float()), frozen(images().float())
    assert y.dtype == expected.dtype == torch.float32
    torch.testing.assert_close(y, expected)


def test_torchs_errors_stay():
    model = fastvision.fuse(nn.Sequential(nn.BatchNorm2d(4), nn.ReLU()), training=True)
    with pytest.raises(ValueError, match="4D input"):
        model(torch.randn(4, 4))
    for module in (nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4)):
        model = fastvision.fuse(nn.Sequential(module.double()), training=True)
        with pytest.raises(RuntimeError):
            model(images().float())


def test_graph_modules():
    graph = torch.fx.symbolic_trace(nn.Sequential(nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4)).double())
    expected = copy.deepcopy(graph)
    trained = fastvision.fuse(graph, training=True)
    trained.recompile()
    copied = copy.deepcopy(trained)
    theirs = train_once(expected, images())
    assert_same(train_once(copied, images()), theirs)


def test_hooks_are_the_models_own():
    class Recorder:
        n = 0

        def hook(self, module, args, output):
            self.n += 1

    recorder, model = Recorder(), Uses(USES["relu"])
    model.norm.register_forward_hook(recorder.hook)
    fastvision.fuse(model, training=True)(images().float())
    assert recorder.n == 1


def test_refuses_copies_for_inference():
    fused = fastvision.fuse(Uses(USES["relu"]))
    with pytest.raises(ValueError, match="inference"):
        fastvision.fuse(fused, training=True)
    with pytest.raises(TypeError, match="training must be True or False"):
        fastvision.fuse(nn.Conv2d(1, 1, 1), training="no")


def test_a_failed_call_is_not_counted():
    model = fastvision.ops.Sequential(nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4), nn.ReLU())
    with pytest.raises(ValueError):
        model(torch.rand(1, 5, 8, 8))
    assert model[1].num_batches_tracked == 0


def test_sequential_with_frozen_normalization():
    model = fastvision.ops.Sequential(nn.Conv2d(4, 4, 3), FrozenBatchNorm2d(4), nn.ReLU())
    x = torch.rand(4, 8, 8)
    torch.testing.assert_close(model(x), nn.Sequential.forward(model, x))
    with torch.autocast("cpu", torch.bfloat16):
        y, expected = model(x[None]), nn.Sequential.forward(model, x[None])
    assert y.dtype == expected.dtype
