"""Runs that begin with layers of another run."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch

from fastvision import training
from fastvision.models import get_model
from fastvision.ops import Conv2dNormActivation
from fastvision.testing.models import randomize
from fastvision.training._checkpoint import BEST, LAST, load_checkpoint, save_checkpoint
from fastvision.training._run import model_of
from fastvision.training._start import start_from
from fastvision.training.recipe import Start

pytestmark = pytest.mark.usefixtures("no_pictures")

LAYERS = {"features": "features", "classifier.0": "classifier.0"}
STARTS = [name for name in training.list_recipes() if training.load_recipe(name).start is not None]


@pytest.fixture
def earlier(small, tmp_path: Path) -> Path:
    folder = tmp_path / "earlier"
    training.train(small("digits", {"steps": 2}), folder, device="cpu")
    return folder


def changed(before: dict[str, torch.Tensor], after: dict[str, torch.Tensor]) -> set[str]:
    return {name for name, tensor in before.items() if not torch.equal(tensor, after[name])}


@pytest.mark.parametrize("path", ["", BEST])
def test_named_layers_are_taken_and_no_others(earlier: Path, path: str) -> None:
    model = get_model("lenet5")
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    start_from(model, Start(str(earlier / path), {"features": "features"}))
    after, theirs = model.state_dict(), load_checkpoint(earlier / BEST)["model"]
    assert changed(before, after) == {name for name in before if name.startswith("features.")}
    assert not [n for n in changed(theirs, after) if n.startswith("features.")]


def test_averaged_weights_are_taken(small, tmp_path: Path) -> None:
    training.train(small("digits", {"steps": 2, "ema": 0.9}), tmp_path, device="cpu")
    model = get_model("lenet5")
    start_from(model, Start(str(tmp_path / LAST), LAYERS))
    best, after = load_checkpoint(tmp_path / BEST)["model"], model.state_dict()
    assert not [n for n in changed(best, after) if n.startswith(tuple(LAYERS))]


def test_a_run_starts_there_and_resumes_without_it(small, earlier: Path, tmp_path: Path) -> None:
    values = {"steps": 1, "optimizer.lr": 0.0, "start.run": str(earlier), "start.layers": LAYERS}
    folder = tmp_path / "later"
    training.train(small("digits", values), folder, device="cpu")
    theirs, ours = (load_checkpoint(f / BEST)["model"] for f in (earlier, folder))
    assert not [n for n in changed(theirs, ours) if n.startswith(tuple(LAYERS))]
    shutil.rmtree(earlier)
    recipe = small("digits", values | {"steps": 2})
    assert training.train(recipe, folder, resume=True, device="cpu").step == 2


def test_start_can_be_left_out() -> None:
    recipe = training.load_recipe("vgg13_digits", {"start": None})
    assert recipe.start is None


@pytest.mark.parametrize("name", STARTS)
def test_recipes_take_layers_that_the_earlier_run_has(name: str, tmp_path: Path) -> None:
    recipe = training.load_recipe(name)
    assert recipe.start is not None
    earlier = randomize(model_of(training.load_recipe(Path(recipe.start.run).name)))
    save_checkpoint(tmp_path / BEST, {"model": earlier.state_dict()})
    model = model_of(recipe)
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    start_from(model, Start(str(tmp_path), recipe.start.layers))
    taken = changed(before, model.state_dict())
    missing = [
        layer
        for layer in recipe.start.layers.values()
        if not any(key.startswith(f"{layer}.") for key in taken)
    ]
    assert not missing


def test_yolov1_takes_over_all_convolutions_of_extraction() -> None:
    earlier, recipe = (training.load_recipe(f"{name}_scenes") for name in ("extraction", "yolov1"))
    assert recipe.start is not None and len(recipe.start.layers) == 20
    layers = model_of(earlier).get_submodule("backbone.layers").named_children()
    assert recipe.start.layers == {
        f"backbone.layers.{i}": f"network.layers.{i}"
        for i, layer in layers
        if isinstance(layer, Conv2dNormActivation)
    }


@pytest.mark.parametrize(
    "names", [("vgg11_digits", "vgg13_digits"), ("vgg13_digits", "vgg16_digits")]
)
def test_vgg_takes_over_all_layers_of_the_shallower_network(names, tmp_path: Path) -> None:
    shallow, deep = (training.load_recipe(name) for name in names)
    theirs, model = model_of(shallow), model_of(deep)
    save_checkpoint(tmp_path / BEST, {"model": theirs.state_dict()})
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    start_from(model, Start(str(tmp_path), deep.start.layers))
    taken = changed(before, model.state_dict())
    assert len(taken) == len(theirs.state_dict()), "each tensor has a place of its own"
    fresh = [
        layer
        for i, layer in enumerate(model.features)
        if isinstance(layer, torch.nn.Conv2d) and f"features.{i}.weight" not in taken
    ]
    assert fresh and all(layer.in_channels == layer.out_channels for layer in fresh), (
        "new layers end their stages"
    )


@pytest.mark.parametrize(
    ("layers", "message"),
    [
        ({"features.9": "features.0"}, r"start\.layers: .* has no layer 'features\.9'"),
        ({"features.0": "feature.0"}, r"start\.layers: the model has no layer 'feature\.0'"),
        ({"features": "classifier"}, r"'features' has the tensors .*, but 'classifier' has "),
        ({"features.0": "features.3"}, r"features\.0\.weight has the shape \[6, 1, 5, 5\], but fe"),
    ],
)
def test_layers_that_do_not_fit(earlier: Path, layers: dict[str, str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        start_from(get_model("lenet5"), Start(str(earlier), layers))


def test_an_earlier_run_that_is_not_there(small, tmp_path: Path) -> None:
    recipe = small("digits", {"start.run": str(tmp_path / "no"), "start.layers": LAYERS})
    with pytest.raises(FileNotFoundError, match=r"no; train it first, .* --set start=none"):
        training.train(recipe, tmp_path / "later", device="cpu")
