"""Recipes: reading, replacing values, and errors that name the key."""

from __future__ import annotations

import pytest
import torch

from fastvision import models, training
from fastvision.training._checkpoint import save_checkpoint
from fastvision.training._data import data_set
from fastvision.training._run import model_of
from fastvision.training._tasks import TASKS
from fastvision.training.recipe import parse_assignments, recipe_of


@pytest.mark.parametrize("name", training.list_recipes())
def test_recipes_of_the_package(name: str) -> None:
    recipe = training.load_recipe(name)
    assert recipe.name == name
    assert recipe.bar is None or recipe.bar.metric in TASKS[recipe.task].metric_names
    if recipe.short is None:
        with pytest.raises(ValueError, match=f"{name} has no short run"):
            recipe.shortened()
    else:
        assert recipe.shortened().steps == recipe.short.steps
    assert recipe_of(recipe.as_dict()) == recipe
    if recipe.model["name"] not in models.list_models():
        pytest.skip(f"there is no model {recipe.model['name']} yet")
    assert sum(p.numel() for p in model_of(recipe).parameters()) > 0
    train, test = data_set(recipe, "train"), data_set(recipe, "test")
    assert len(train) >= recipe.batch_size and len(test) > 0
    task = TASKS[recipe.task](train.classes)
    inputs, targets = task.collate([train[0], train[1]])
    assert len(inputs) == 2 and len(targets) == 2


def test_values_are_replaced(small) -> None:
    recipe = small("sorting", {"optimizer.lr": 0.5, "data.train.length": 80, "seed": 3})
    assert recipe.optimizer == {"name": "AdamW", "lr": 0.5}
    assert recipe.data["train"] == {"length": 80} and recipe.seed == 3
    assert small("sorting").optimizer["lr"] == 0.01, "the original is unchanged"


def test_epochs_replace_steps_and_the_other_way_round(small) -> None:
    recipe = small("sorting", {"epochs": 2})
    assert (recipe.epochs, recipe.steps) == (2, None)
    recipe = recipe.replaced({"steps": 5})
    assert (recipe.epochs, recipe.steps) == (None, 5)


def test_assignments() -> None:
    values = parse_assignments(
        ["a=1", "b.c=0.5", "d=[1, 2]", "e=true", "f=cosine", "g=none", 'h="1"']
    )
    expected = {"a": 1, "b.c": 0.5, "d": [1, 2], "e": True, "f": "cosine", "g": None, "h": "1"}
    assert values == expected
    assert parse_assignments(['a={"b.c" = "d.e"}']) == {"a": {"b.c": "d.e"}}
    with pytest.raises(ValueError, match="expected key=value, got 'seed'"):
        parse_assignments(["seed"])
    for value in ("False", "TRUE", "None"):
        with pytest.raises(ValueError, match=f"write true, false or none, got 'a={value}'"):
            parse_assignments([f"a={value}"])


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("sed", 1, r"unknown key sed; known: .*, seed, "),
        ("checkpoint.second", 1, r"unknown key checkpoint\.second; known: checkpoint\.seconds, ch"),
        ("seed", "one", r"seed must be a int, got 'one'"),
        ("seed", True, r"seed must be a int, got True"),
        ("seed.low", 1, r"seed is a value, but the key seed\.low is given"),
        ("optimizer", 3, r"optimizer must be a table, got 3"),
        ("batch_size", 0, r"batch_size must be at least 1, got 0"),
        ("accumulate", 3, r"batch_size must be a multiple of accumulate, got 8 and 3"),
        ("amp", "fp8", r"amp must be off, bf16 or fp16, got 'fp8'"),
        ("clip", -1.0, r"clip must be positive, got -1\.0"),
        (
            "start",
            {"run": "a", "layers": {"features": {"0": "b"}}},
            r"start\.layers\.features must be a str, got .*; .* start\.layers=\{\"a\.b\" = ",
        ),
        ("ema", 1.0, r"ema must be between 0 and 1, got 1\.0"),
    ],
)
def test_bad_values_of_a_recipe(small, key: str, value: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        small("sorting", {key: value})


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("model.name", "lenet6", r"name must be one of .*, got 'lenet6'"),
        ("model.widht", 8, r"model: transformer_encoder: .*'widht'"),
        ("model.heads", 3, r"model: transformer_encoder: width must be a multiple of heads"),
        ("data.name", "MNIST", r"data\.name must be one of MNIST5k, .*, got 'MNIST'"),
        ("data.lenth", 8, r"unknown key data\.lenth; known: data\.length, data\.seed, "),
        ("optimizer.name", "sgd", r"optimizer\.name must be one of SGD, .*, got 'sgd'"),
        ("optimizer.momentum", 0.9, r"unknown key optimizer\.momentum; known: optimizer\.amsgrad"),
        ("optimizer.lr", -1.0, r"optimizer: AdamW: Invalid learning rate: -1\.0"),
        ("schedule.name", "linear", r"schedule\.name must be one of constant, .*, got 'linear'"),
        ("schedule.milestones", [1], r"unknown key schedule\.milestones; known: schedule\.floor"),
        ("task", "sort", r"task\.name must be one of classification, .*, got 'sort'"),
        ("bar", {"metric": "miou", "value": 1}, r"bar\.metric must be one of accuracy, got 'miou'"),
        ("batch_size", 64, r"batch_size 64 is more than the 40 training samples"),
    ],
)
def test_bad_options_of_what_a_recipe_names(
    small, tmp_path, key: str, value: object, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        training.train(small("sorting", {key: value}), tmp_path, device="cpu")


def test_weights_that_do_not_fit(small, tmp_path) -> None:
    torch.save(models.get_model("lenet5").state_dict(), tmp_path / "a.pth")
    values = {"model.weights": str(tmp_path / "a.pth"), "model.num_classes": 9}
    with pytest.raises(ValueError, match=r"(?s)model\.weights: .*size mismatch for classifier"):
        model_of(small("digits", values))


def test_a_checkpoint_that_does_not_fit_its_recipe(small, tmp_path) -> None:
    content = {"recipe": small("sorting").as_dict(), "model": {"weight": torch.zeros(1)}}
    save_checkpoint(tmp_path / "best.pt", content)
    message = r"best\.pt does not fit the model of its recipe, [a-z_]+: missing: "
    with pytest.raises(ValueError, match=message):
        training.evaluate(tmp_path, device="cpu")


def test_unknown_recipes(tmp_path) -> None:
    with pytest.raises(ValueError, match="unknown recipe 'lenet'; known: .*lenet5_digits"):
        training.load_recipe("lenet")
    path = tmp_path / "mine.toml"
    path.write_text("task = ")
    with pytest.raises(ValueError, match="the recipe mine is not TOML"):
        training.load_recipe(path)
    path.write_text("task = 'sequence'")
    with pytest.raises(ValueError, match="the key description is missing"):
        training.load_recipe(path)
