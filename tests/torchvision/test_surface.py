"""Every public name, module and signature of torchvision.ops is in fastvision.ops."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import pkgutil
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import pytest
from torch import nn

from fastvision import ops
from fastvision.ops import feature_pyramid_network as pyramids

pytest.importorskip("torchvision.ops")
from torchvision import ops as stock  # noqa: E402
from torchvision.models import feature_extraction  # noqa: E402

# by which torchvision compiles an eager form of roi_align, and registers symbols of ONNX
_NOT_PUBLIC = {
    "roi_align.lazy_compile",
    "roi_align.maybe_cast",
    "_box_convert",
    "_register_onnx_ops",
}
MODULES = {m.name for m in pkgutil.iter_modules(stock.__path__)} - _NOT_PUBLIC


def own_names(module: ModuleType) -> Iterator[str]:
    """Public names of classes and functions that a module of torchvision defines."""
    for name, value in vars(module).items():
        if not name.startswith("_") and getattr(value, "__module__", None) == module.__name__:
            yield name


def find(name: str, package: ModuleType) -> Any:
    """A name of a package's modules; for the name of a module, the module."""
    module, _, inside = name.rpartition(".")
    if module or name not in package.__all__:
        path = f"{package.__name__}.{module or name}"
        found = importlib.import_module(path)
        return getattr(found, inside) if module else found
    return getattr(package, name)


def exists(name: str) -> bool:
    try:
        find(name, ops)
    except (ImportError, AttributeError):
        return False
    # torchvision has functions named as their modules: both must be there
    both = name in MODULES and name in stock.__all__
    return not both or importlib.util.find_spec(f"fastvision.ops.{name}") is not None


NAMES = sorted(
    {*stock.__all__, *MODULES}
    | {
        f"{module}.{name}"
        for module in MODULES
        for name in own_names(importlib.import_module(f"torchvision.ops.{module}"))
        if f"{module}.{name}" not in _NOT_PUBLIC
    }
)


@pytest.mark.parametrize("name", NAMES)
def test_name_exists(name: str) -> None:
    assert exists(name)


def parameters(function: Any) -> list[tuple[Any, ...]]:
    return [(p.name, p.kind, p.default) for p in inspect.signature(function).parameters.values()]


def assert_same_signature(ours: Any, theirs: Any) -> None:
    expected, actual = parameters(theirs), parameters(ours)
    assert [p for p in actual if p in expected] == expected
    for name, kind, default in actual:
        if (name, kind, default) not in expected:
            assert kind is inspect.Parameter.KEYWORD_ONLY
            assert default is not inspect.Parameter.empty


@pytest.mark.parametrize("name", [n for n in NAMES if n not in MODULES])
def test_signature(name: str) -> None:
    ours, theirs = find(name, ops), find(name, stock)
    assert inspect.isclass(ours) == inspect.isclass(theirs)
    assert_same_signature(ours, theirs)
    if inspect.isclass(theirs):
        for method, function in vars(theirs).items():
            if inspect.isfunction(function) and not method.startswith("_"):
                assert_same_signature(getattr(ours, method), function)


@pytest.mark.parametrize("name", sorted(MODULES))
def test_module_has_what_it_defines(name: str) -> None:
    ours = importlib.import_module(f"fastvision.ops.{name}")
    theirs = importlib.import_module(f"torchvision.ops.{name}")
    for inside in own_names(theirs):
        dotted = f"{name}.{inside}"
        if dotted not in _NOT_PUBLIC and inside in stock.__all__:
            assert getattr(ours, inside) is getattr(ops, inside)
    assert ops.misc.interpolate is stock.misc.interpolate


LEAVES: dict[str, tuple[nn.Module, int]] = {  # with the number of inputs
    "DropBlock2d": (ops.DropBlock2d(0.1, 3), 1),
    "DropBlock3d": (ops.DropBlock3d(0.1, 3), 1),
    "FeaturePyramidNetwork": (ops.FeaturePyramidNetwork([4], 4, pyramids.LastLevelMaxPool()), 1),
    "FrozenBatchNorm2d": (ops.FrozenBatchNorm2d(4), 1),
    "MLP": (ops.MLP(4, [4]), 1),
    "MultiScaleRoIAlign": (ops.MultiScaleRoIAlign(["0"], 2, 2), 3),
    "Permute": (ops.Permute([1, 0]), 1),
    "RoIAlign": (ops.RoIAlign(2, 1.0, 2), 2),
    "RoIPool": (ops.RoIPool(2, 1.0), 2),
    "SqueezeExcitation": (ops.SqueezeExcitation(4, 2), 1),
    "StochasticDepth": (ops.StochasticDepth(0.1, "row"), 1),
}


class Around(nn.Module):
    def __init__(self, layer: nn.Module, inputs: int) -> None:
        super().__init__()
        self.layer = layer
        self.inputs = inputs

    def forward(self, a: Any, b: Any = None, c: Any = None) -> Any:
        return self.layer(*(a, b, c)[: self.inputs])


@pytest.mark.parametrize("name", LEAVES)
def test_is_a_leaf_of_torchvisions_tracer(name: str) -> None:
    layer, inputs = LEAVES[name]
    for names in feature_extraction.get_graph_node_names(Around(layer, inputs)):
        assert names == ["a", "b", "c", "layer"]
