"""Small models, fused and compared with themselves."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

import fastvision
from fastvision.testing import cases, models
from fastvision.testing.models import randomize, tensors_of

# of the largest value: folding moves roundings, and a deep model adds them up
BUDGETS = {torch.float32: 5e-5, torch.bfloat16: 5e-2, torch.float64: 1e-12}


def randomized(model: nn.Module, seed: int = 0) -> nn.Module:
    """``model`` in eval mode, with statistics and affine parameters that show in the results."""
    return randomize(model, seed, frozen=True).eval()


def assert_same(actual: Any, expected: Any, computed_in: torch.dtype = torch.float64) -> None:
    """Within the budget of each result's dtype, in whatever memory format.

    ``computed_in``: the dtype of the arithmetic, if less precise than the results' dtype.
    """
    actual, expected = tensors_of(actual), tensors_of(expected)
    assert len(actual) == len(expected) > 0
    for a, e in zip(actual, expected, strict=True):
        models.assert_same(a, e, max(BUDGETS[e.dtype], BUDGETS[computed_in]), strides=False)


def image(*size: int, seed: int = 0) -> Tensor:
    return cases.feature_map(*(size or (2, 3, 12, 14)), seed=seed)


@torch.no_grad()
def check(model: nn.Module, *inputs: Any, **options: Any) -> nn.Module:
    """Fuses ``model``, compares results and that the model is as it was; returns the copy."""
    randomized(model)
    inputs = inputs or (image(),)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    clones = copy.deepcopy(inputs)
    expected = model(*clones)
    fused = fastvision.fuse(model, **options)
    actual = fused(*copy.deepcopy(inputs))
    dtype = next((p.dtype for p in model.parameters()), torch.float64)
    assert_same(actual, expected, dtype)
    for a, e in zip(tensors_of(actual), tensors_of(expected), strict=True):
        assert a.stride() == e.stride(), "the memory format of results is the model's"
    again = fused(*copy.deepcopy(inputs))  # knows by now which values are used twice
    assert_same(again, expected, dtype)
    after = model.state_dict()
    assert before.keys() == after.keys() == fused.state_dict().keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    for name, module in model.named_modules():
        ours = fused.get_submodule(name)
        assert isinstance(ours, type(module))
        assert vars(module).keys() <= vars(ours).keys()
    return fused


def kinds(fused: Any) -> dict[str, int]:
    return fused.fastvision_report.counts()


def reasons(fused: Any) -> dict[str, str]:
    return dict(fused.fastvision_report.skipped)


def net(forward: Callable[..., Any], **layers: nn.Module) -> nn.Module:
    """A module of a class of its own, with ``forward(self, ...)``."""
    module = type("Net", (nn.Module,), {"forward": forward})()
    for name, layer in layers.items():
        setattr(module, name, layer)
    return module


def conv(inputs: int = 3, outputs: int = 6, size: int = 3, **options: Any) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, size, **{"padding": size // 2, **options})


SIDE: dict[str, Callable[[], nn.Module]] = {
    "conv": lambda: conv(3, 3),
    "norm": lambda: nn.BatchNorm2d(3),
    "act": nn.ReLU,
}


BN = "Conv2d + BatchNorm2d"


class Scaled(nn.Conv2d):
    def forward(self, x: Tensor) -> Tensor:
        return 2 * super().forward(x)


def adversary(forward: Callable[..., Any]) -> nn.Module:
    """A model whose ``forward`` has layers, a module with a hook, a buffer and a list at hand."""
    model: Any = net(forward, **{name: build() for name, build in SIDE.items()})
    model.hooked = nn.Sequential(nn.ReLU(inplace=True))
    model.hooked.register_forward_hook(lambda module, inputs, output: None)
    model.register_buffer("count", torch.zeros(()))
    model.held = [torch.zeros(())]
    return model


def norm(channels: int = 6, kind: type[nn.Module] = nn.BatchNorm2d) -> Any:
    layer: Any = kind(channels)
    with torch.no_grad():
        layer.running_mean.normal_()
        layer.running_var.uniform_(0.5, 2)
    return layer


def assert_alike(actual: Tensor, expected: Tensor) -> None:
    """A plain tensor, in the other's memory format, of almost the same values."""
    assert type(actual) is Tensor
    assert actual.stride() == expected.stride()
    scale = expected.abs().max().item() + 1e-6
    torch.testing.assert_close(actual, expected, rtol=0, atol=2e-5 * scale)


@torch.no_grad()
def check_as_is(model: nn.Module, *inputs: Any) -> nn.Module:
    """As :func:`check`, with the model's own parameters and one tensor as its result."""
    model.eval()
    fused = fastvision.fuse(model)
    for _ in range(2):
        assert_alike(fused(*copy.deepcopy(inputs)), model(*copy.deepcopy(inputs)))
    return fused
