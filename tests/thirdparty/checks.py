"""What has to hold for fuse() of any model: results, classes, attributes and copies."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

import fastvision

TOLERANCE = 1e-3  # of the largest value: deep models with random statistics add up roundings


def randomized(model: nn.Module, seed: int = 0) -> nn.Module:
    """``model`` in eval mode, with statistics that show in the results."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for module in model.modules():
            mean, var = (getattr(module, f"running_{name}", None) for name in ("mean", "var"))
            if isinstance(mean, Tensor) and isinstance(var, Tensor):
                mean.copy_(torch.randn(mean.shape, generator=generator) * 0.2)
                var.copy_(torch.rand(var.shape, generator=generator) + 0.5)
    return model.eval()


def tensors(value: Any) -> list[Tensor]:
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, dict):
        value = value.values()
    if isinstance(value, (str, bytes)) or not isinstance(value, Iterable):
        return []
    return [tensor for item in value for tensor in tensors(item)]


def steps(tensor: Tensor) -> list[int]:
    """The strides that matter."""
    pairs = zip(tensor.shape, tensor.stride(), strict=True)
    return [stride for size, stride in pairs if size > 1]


def assert_same(actual: Any, expected: Any, *, strides: bool = True) -> None:
    actual, expected = tensors(actual), tensors(expected)
    assert len(actual) == len(expected) > 0
    for a, e in zip(actual, expected, strict=True):
        assert type(a) is type(e)
        assert (a.shape, a.dtype) == (e.shape, e.dtype)
        assert not strides or steps(a) == steps(e)
        if not e.is_floating_point() or e.numel() == 0:
            continue
        assert torch.equal(a.isnan(), e.isnan())
        largest = e.nan_to_num(0, 0, 0).abs().max().item()
        close = torch.isclose(a, e, rtol=0, atol=TOLERANCE * largest, equal_nan=True)
        assert close.all(), f"off by {(a - e).abs().max().item()} of {largest}"


@torch.no_grad()
def check_fuse(model: nn.Module, *inputs: Any, others: Iterable[tuple[Any, ...]] = ()) -> nn.Module:
    """``others``: inputs of another size; those that the model refuses do not count."""
    randomized(model)
    expected = model(*copy.deepcopy(inputs))
    fused = fastvision.fuse(model)
    assert_same(fused(*copy.deepcopy(inputs)), expected)
    assert_same(model(*copy.deepcopy(inputs)), expected)
    for name, module in model.named_modules():
        assert isinstance(fused.get_submodule(name), type(module))
    lost = [name for name in dir(model) if not hasattr(fused, name)]
    assert not lost
    assert fused.state_dict().keys() == model.state_dict().keys()
    for again in (copy.deepcopy(fused), pickle.loads(pickle.dumps(fused))):
        assert_same(again(*copy.deepcopy(inputs)), expected)
    for other in others:
        try:
            expected = model(*copy.deepcopy(other))
        except Exception:
            continue
        assert_same(fused(*copy.deepcopy(other)), expected)
    return fused


def share_of_convolutions(fused: nn.Module) -> tuple[int, int]:
    """How many Conv2d run on fused ops, and how many there are."""
    names = {fusion.name for fusion in fused.fastvision_report.fused}
    found = [name for name, m in fused.named_modules() if isinstance(m, nn.Conv2d)]
    return len(names.intersection(found)), len(found)
