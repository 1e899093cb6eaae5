"""Models by name, and what their builders refuse."""

from __future__ import annotations

import inspect
import re
from pathlib import Path
from typing import Any

import pytest
import torch

from fastvision import models
from fastvision.models import detection
from fastvision.models._registry import register

# whose scores are of something else
OTHERS = {"point_pillars", "residual_lstm", "transformer_encoder", "wavenet"}
CLASSIFIERS = [name for name in models.list_models() if name not in OTHERS]


def test_listing() -> None:
    assert "resnet50" in models.list_models("classification", include="resnet*", exclude="*152")
    assert "resnet152" not in models.list_models(include="resnet*", exclude="*152")
    assert models.get_model_builder("resnet18") is models.resnet18
    with pytest.raises(ValueError, match="task must be one of"):
        models.list_models("painting")
    with pytest.raises(ValueError, match="name must be one of"):
        models.get_model("resnet19")
    with pytest.raises(ValueError, match="already"):
        register("classification")(models.resnet18)


def test_builders_keep_their_names_and_signatures() -> None:
    for name in models.list_models():
        builder = models.get_model_builder(name)
        assert builder.__name__ == name and builder.__doc__
        assert "weights" in inspect.signature(builder).parameters, name


@pytest.mark.parametrize("name", CLASSIFIERS)
@pytest.mark.parametrize(
    ("value", "error", "message"),
    [
        (0, ValueError, "at least 1, got 0"),
        (-1, ValueError, "at least 1, got -1"),
        (1.5, TypeError, "an int, got 1.5"),
        ("3", TypeError, "an int, got '3'"),
        (True, TypeError, "an int, got True"),
    ],
)
def test_numbers_of_classes(name: str, value: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=re.escape(f"num_classes must be {message}")):
        models.get_model(name, num_classes=value)


@pytest.mark.parametrize("name", models.list_models())
def test_unknown_options(name: str) -> None:
    """As ``pretrained=True``, which would leave a model at random if it were ignored."""
    parameters = inspect.signature(models.get_model_builder(name)).parameters
    options = {key: None for key in ("weights_backbone",) if key in parameters}
    with torch.device("meta"), pytest.raises(TypeError, match="unexpected keyword argument 'pre"):
        models.get_model(name, pretrained=True, **options)


@pytest.mark.parametrize(
    ("name", "option"),
    [
        ("fasterrcnn_resnet50_fpn", {"trainable_backbone_layers": 2, "weights_backbone": None}),
        ("ssd300_vgg16", {"size": (9, 9), "weights_backbone": None}),
    ],
)
def test_warnings_name_the_callers_line(name: str, option: dict[str, Any]) -> None:
    builder = getattr(detection, name)
    with torch.device("meta"), pytest.warns(UserWarning, match="no effect|ignoring") as caught:
        builder(**option)
    assert [Path(warning.filename).name for warning in caught] == [Path(__file__).name]


def test_no_number_of_classes() -> None:
    with pytest.raises(TypeError, match="num_classes must be an int, got None"):
        models.resnet18(num_classes=None)
    detector = models.get_model(
        "ssdlite320_mobilenet_v3_large", num_classes=None, weights_backbone=None
    )
    assert detector is not None
