"""What the fused copy can do: be copied, saved, exported, compiled, differentiated, reported."""

from __future__ import annotations

import copy
import io
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import fastvision
from fastvision.fusion.convolutions import FusedConv2d
from fastvision.fusion.linear import FusedLinear
from fastvision.testing.fusion import (
    BUDGETS,
    Scaled,
    assert_same,
    check,
    conv,
    image,
    randomized,
)

pytestmark = pytest.mark.usefixtures("one_thread", "small_weights_are_packed")


class Small(nn.Module):
    """Both kinds of surgery: layers replaced, and a block that becomes a graph."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(conv(), nn.BatchNorm2d(6), nn.ReLU())
        self.block = Block()
        self.fc = nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.block(self.stem(x)).mean((2, 3)))


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = conv(6, 6), nn.BatchNorm2d(6)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.norm(self.conv(x)) + x)


@pytest.fixture(params=[Small, lambda: nn.Sequential(Block())[0]], ids=["model", "graph"])
def small(request: pytest.FixtureRequest) -> tuple[nn.Module, nn.Module, Tensor]:
    model = randomized(request.param())
    x = image() if isinstance(model, Small) else image(2, 6, 9, 8)
    return model, fastvision.fuse(model), x


@torch.no_grad()
def test_deepcopy(small) -> None:
    model, fused, x = small
    fused(x)
    again = copy.deepcopy(fused)
    assert_same(again(x), model(x))
    assert str(again.fastvision_report) == str(fused.fastvision_report)
    next(again.parameters()).zero_()
    assert_same(fused(x), model(x))


@torch.no_grad()
def test_pickle(small) -> None:
    model, fused, x = small
    fused(x)  # packed weights must not be part of it
    file = io.BytesIO()
    torch.save(fused, file)
    file.seek(0)
    again = torch.load(file, weights_only=False)
    assert_same(again(x), model(x))
    assert str(again.fastvision_report) == str(fused.fastvision_report)
    weights = sum(p.numel() for p in fused.parameters())
    assert file.tell() < 4 * weights + 40_000


@torch.no_grad()
def test_state_dict(small) -> None:
    model, fused, x = small
    other = fastvision.fuse(randomized(copy.deepcopy(model), seed=5))
    assert (other(x) - model(x)).abs().max() > 1e-2
    other.load_state_dict(fused.state_dict())
    assert_same(other(x), model(x))


@torch.no_grad()
def test_export(small) -> None:
    model, fused, x = small
    dynamic = {"x": {0: torch.export.Dim("batch", min=1, max=64)}}
    program = torch.export.export(fused, (x,), dynamic_shapes=dynamic)
    targets = {str(node.target) for node in program.graph.nodes}
    assert "fastvision.conv_bn_relu.default" in targets
    file = io.BytesIO()
    torch.export.save(program, file)
    file.seek(0)
    loaded = torch.export.load(file).module()
    for batch in (x, torch.cat([x, x, x])):
        assert_same(loaded(batch), model(batch))


@torch.no_grad()
@pytest.mark.parametrize("backend", ["aot_eager"])
def test_compile(small, backend: str) -> None:
    model, fused, x = small
    compiled = torch.compile(fused, fullgraph=True, backend=backend)
    for size in (x, x[..., :7], torch.cat([x, x])):
        assert_same(compiled(size), model(size))


@torch.no_grad()
def test_bfloat16(small) -> None:
    model, fused, x = small
    expected = model(x).bfloat16()
    assert_same(fastvision.fuse(model, dtype=torch.bfloat16)(x.bfloat16()), expected)
    assert_same(fused.to(torch.bfloat16)(x.bfloat16()), expected)


@torch.no_grad()
def test_float64(small) -> None:
    model, _, x = small
    model, x = model.double(), x.double()
    assert_same(fastvision.fuse(model)(x), model(x))


@torch.no_grad()
def test_autocast(small) -> None:
    model, fused, x = small
    with torch.autocast("cpu", torch.bfloat16):
        actual = fused(x).float()
    expected = model(x)
    assert (actual - expected).abs().max() <= BUDGETS[torch.bfloat16] * expected.abs().max()


def test_gradient_of_the_input(small) -> None:
    model, fused, x = small
    mine, theirs = x.clone().requires_grad_(), x.clone().requires_grad_()
    fused(mine).square().sum().backward()
    model(theirs).square().sum().backward()
    assert_same(mine.grad, theirs.grad)
    assert all(p.grad is None for p in fused.parameters())


def test_function_transforms(small) -> None:
    model, fused, x = small
    ours, theirs = (torch.func.jvp(m, (x,), (torch.cos(x),)) for m in (fused, model))
    assert_same(ours, theirs)
    ours, theirs = (torch.func.grad(lambda x, m=m: m(x).square().sum())(x) for m in (fused, model))
    assert_same(ours, theirs)
    batch = torch.stack([x, 2 * x])
    assert_same(torch.vmap(fused)(batch), torch.vmap(model)(batch))


@torch.no_grad()
def test_fused_twice_and_back_in_training_mode(small) -> None:
    model, fused, x = small
    assert_same(fastvision.fuse(fused)(x), model(x))
    assert_same(fused.train()(x), model(x))


@torch.no_grad()
def test_training_model():
    model = randomized(nn.Sequential(conv(), nn.BatchNorm2d(6), nn.Dropout(), nn.ReLU())).train()
    fused = fastvision.fuse(model)
    assert model.training
    assert not fused.training
    assert_same(fused(image()), model.eval()(image()))


def test_new_weights_are_used(small) -> None:
    """Packed forms of weights follow the weights."""
    _, fused, x = small
    with torch.no_grad():
        before = fused(x)
        for module in fused.modules():
            if isinstance(module, (FusedConv2d, FusedLinear)):
                module.weight.mul_(2)
        changed = fused(x)
        fresh = copy.deepcopy(fused)(x)
    assert not torch.equal(before, changed)
    assert_same(changed, fresh)


def test_lone_modules():
    assert isinstance(check(conv()), FusedConv2d)
    assert isinstance(check(nn.Linear(14, 3)), FusedLinear)
    check(nn.BatchNorm2d(3))


def test_report():
    fused = check(nn.Sequential(conv(), nn.BatchNorm2d(6), nn.ReLU(), Scaled(6, 2, 1)))
    report = fused.fastvision_report
    assert [fusion.name for fusion in report.fused] == ["0"]
    text = str(report)
    assert "1 chains fused" in text
    assert "1 x Conv2d + BatchNorm2d + relu" in text
    assert "Scaled computes something else than Conv2d: 3" in text
    waiting = str(fastvision.fuse(conv()).fastvision_report)
    assert "1 of them have not run yet" in waiting


@pytest.mark.parametrize(
    "arguments, options, error",
    [
        ((torch.relu,), {}, TypeError),
        ((nn.ReLU(),), {"channels_last": 1}, TypeError),
        ((nn.ReLU(),), {"dtype": "bfloat16"}, TypeError),
        ((nn.ReLU(),), {"dtype": torch.int32}, ValueError),
    ],
)
def test_bad_arguments(arguments: Any, options: dict[str, Any], error: type[Exception]) -> None:
    with pytest.raises(error, match="must be"):
        fastvision.fuse(*arguments, **options)
