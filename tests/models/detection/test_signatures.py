"""Builders and building classes have the signatures of torchvision's."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from enum import Enum
from typing import Any

import pytest
from torch import nn

from fastvision.models import detection
from fastvision.models.detection import faster_rcnn

theirs = pytest.importorskip("torchvision.models.detection")

STOCK = {
    name: value
    for module in pkgutil.iter_modules(theirs.__path__)
    for name, value in vars(importlib.import_module(f"{theirs.__name__}.{module.name}")).items()
    if not name.startswith("_") and callable(value) and value.__module__.startswith(theirs.__name__)
}
SHARED = sorted(STOCK.keys() & set(detection.__all__))


def default(value: Any) -> Any:
    """Weights by their name, and classes that both packages have by theirs."""
    if isinstance(value, Enum):
        return value.name
    return value.__name__ if inspect.isclass(value) else value


def parameters(function: Any) -> list[tuple[Any, ...]]:
    """Name, kind and default of each; the name of ``**kwargs`` is of no consequence."""
    return [
        ("**" if p.kind is p.VAR_KEYWORD else p.name, p.kind, default(p.default))
        for p in inspect.signature(function).parameters.values()
    ]


@pytest.mark.parametrize("name", SHARED)
def test_signature(name: str) -> None:
    expected, actual = parameters(STOCK[name]), parameters(getattr(detection, name))
    if name == "GeneralizedRCNNTransform":
        assert expected.pop()[0] == "**"  # arguments that it ignores
    assert [p for p in actual if p in expected] == expected
    for _, kind, value in (p for p in actual if p not in expected):
        assert kind is inspect.Parameter.KEYWORD_ONLY
        assert value is not inspect.Parameter.empty


def test_builders_are_complete() -> None:
    assert {name for name in theirs.__dict__ if name.islower() and name in STOCK} <= set(SHARED)
    assert len(SHARED) > 40


@pytest.mark.parametrize("kind", [detection.MaskRCNN, detection.KeypointRCNN])
def test_arguments_reach_faster_rcnn(kind: type[nn.Module], monkeypatch) -> None:
    class Passed(Exception):
        """Instead of a model."""

    def init(self: Any, *args: Any, **kwargs: Any) -> None:
        raise Passed(signature.bind(self, *args, **kwargs).arguments)

    signature = inspect.signature(faster_rcnn.FasterRCNN.__init__)
    names = list(signature.parameters)[2:-1]  # after self and backbone, before kwargs
    options: dict[str, Any] = {name: object() for name in names} | {"num_classes": 3}
    monkeypatch.setattr(faster_rcnn.FasterRCNN, "__init__", init)
    backbone = nn.Conv2d(3, 8, 1)
    with pytest.raises(Passed) as passed:
        kind(backbone, **options, size_divisible=16)
    arguments = passed.value.args[0]
    del arguments["self"]
    assert arguments == {"backbone": backbone, **options, "kwargs": {"size_divisible": 16}}
