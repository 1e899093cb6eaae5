"""Runs that are broken off and resumed are, bit by bit, the runs without a break."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from fastvision import training
from fastvision.training import _logs
from fastvision.training._checkpoint import load_checkpoint
from fastvision.training._logs import read_table
from fastvision.training._processes import Processes
from fastvision.training._run import Run

pytestmark = pytest.mark.usefixtures("no_pictures")

VARIANTS = {
    "dropout": ("sorting", {}),
    "averaged, clipped, in parts": ("sorting", {"ema": 0.9, "accumulate": 2, "clip": 0.5}),
    "bfloat16": ("sorting", {"amp": "bf16"}),
    "float16, scaled": ("sorting", {"amp": "fp16"}),
    "augmented": ("digits", {}),
    "augmented in workers": ("digits", {"workers": 2}),
    "detection": ("scenes", {"ema": 0.9, "accumulate": 2, "clip": 0.5}),
    "detection, bfloat16": ("scenes", {"amp": "bf16", "workers": 1}),
    "detection, random proposals": ("scenes", {"model.name": "small_faster_rcnn"}),
}


@pytest.fixture
def stop_after():
    """``with stop_after(step):`` runs are interrupted after this step, as by Ctrl-C."""

    @contextlib.contextmanager
    def stopping(step: int) -> Iterator[None]:
        original = _logs.Logs.step

        def stop(self, *figures: float) -> None:
            original(self, *figures)
            if self._run.step == step - 1:  # which is noted, and the next step is the last
                signal.raise_signal(signal.SIGINT)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(_logs.Logs, "step", stop)
            yield

    return stopping


def losses(folder: Path) -> list[tuple[float, ...]]:
    columns = ("step", "loss", "learning_rate", "gradient_norm")
    return [tuple(row[name] for name in columns) for row in read_table(folder / "training.csv")]


def contents(state: object) -> list[object]:
    """All numbers and texts in nested containers, to compare bit by bit."""
    leaves = tree_leaves(state)
    return [leaf.tolist() if isinstance(leaf, Tensor) else leaf for leaf in leaves]


@pytest.mark.parametrize("variant", VARIANTS)
def test_losses_and_weights_are_those_without_a_break(
    small, stop_after, tmp_path, variant: str
) -> None:
    name, values = VARIANTS[variant]
    recipe = small(name, values)
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    expected = training.train(recipe, whole, device="cpu")

    interrupted = pytest.raises(training.Interrupted, match="stopped after step 4 by SIGINT")
    with stop_after(4), interrupted:  # within an epoch
        training.train(recipe, broken, device="cpu")
    assert load_checkpoint(broken / "last.pt")["step"] == 4
    torch.manual_seed(99)  # the state of another process
    resumed = training.train(recipe, broken, resume=True, device="cpu")

    assert losses(broken) == losses(whole)
    assert resumed.losses == expected.losses[4:]
    assert resumed.metrics == expected.metrics and resumed.best == expected.best
    states = [load_checkpoint(folder / "last.pt") for folder in (whole, broken)]
    for part in ("model", "average", "optimizer", "schedule", "scaler", "random"):
        assert contents(states[0][part]) == contents(states[1][part]), part


def test_every_part_of_the_state_matters(small, tmp_path) -> None:
    """So that the test above would notice if one was lost."""
    recipe = small("sorting", {"ema": 0.9})
    training.train(recipe, tmp_path, device="cpu")
    state = load_checkpoint(tmp_path / "last.pt")
    run = Run(recipe, Processes("cpu"))
    fresh = run.state()
    for part in ("step", "metrics", "model", "average", "optimizer", "schedule", "random"):
        assert contents(state[part]) != contents(fresh[part]), part


def test_workers_change_nothing(small, tmp_path) -> None:
    outcomes = [
        training.train(small("digits", {"workers": workers}), tmp_path / str(workers), device="cpu")
        for workers in (0, 2)
    ]
    assert outcomes[0].losses == outcomes[1].losses


def test_seeds_give_runs(small, tmp_path) -> None:
    runs = [
        training.train(small("sorting", {"seed": seed}), tmp_path / str(i), device="cpu").losses
        for i, seed in enumerate((0, 0, 1))
    ]
    assert runs[0] == runs[1] != runs[2]


def test_accumulation_is_a_batch_in_parts(small, tmp_path) -> None:
    runs = [
        training.train(small("digits", {"accumulate": parts}), tmp_path / str(parts), device="cpu")
        for parts in (1, 4)
    ]
    assert runs[0].losses == pytest.approx(runs[1].losses, rel=1e-4)


def test_a_finished_run_stays_as_it_is(small, tmp_path) -> None:
    recipe = small("sorting")
    first = training.train(recipe, tmp_path, device="cpu")
    before = losses(tmp_path)
    again = training.train(recipe, tmp_path, resume=True, device="cpu")
    assert again.losses == [] and again.metrics == first.metrics and losses(tmp_path) == before
    longer = training.train(recipe.replaced({"steps": 14}), tmp_path, resume=True, device="cpu")
    assert longer.step == 14 and len(longer.losses) == 2


def test_runs_are_not_mixed_up(small, tmp_path) -> None:
    recipe = small("sorting")
    with pytest.raises(FileNotFoundError, match="has no last.pt to resume"):
        training.train(recipe, tmp_path, resume=True)
    training.train(recipe, tmp_path, device="cpu")
    with pytest.raises(ValueError, match="has a run already"):
        training.train(recipe, tmp_path)
    with pytest.raises(ValueError, match="has a run of the recipe sorting, got digits"):
        training.train(small("digits"), tmp_path, resume=True)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("optimizer.lr", 0.5, r"optimizer\.lr = 0\.01, which cannot become 0\.5"),
        ("optimizer.eps", 1e-6, r"optimizer\.eps = None, which cannot become 1e-06"),
        ("data.train.length", 48, r"data\.train\.length = 40, which cannot become 48"),
        ("batch_size", 4, r"batch_size = 8, which cannot become 4"),
        ("ema", 0.9, r"ema = None, which cannot become 0\.9"),
        ("bar", {"metric": "accuracy", "value": 1}, r"bar = None, which cannot become \{"),
    ],
)
def test_what_steps_depend_on_stays(small, tmp_path, key: str, value: object, message: str) -> None:
    recipe = small("sorting", {"steps": 1})
    training.train(recipe, tmp_path, device="cpu")
    with pytest.raises(ValueError, match=f"has a run with {message}"):
        training.train(recipe.replaced({key: value}), tmp_path, resume=True, device="cpu")


def test_the_rest_may_change(small, tmp_path) -> None:
    recipe = small("sorting", {"steps": 1, "bar": {"metric": "accuracy", "value": 1}})
    training.train(recipe, tmp_path, device="cpu")
    values = {"epochs": 1, "log.steps": 2, "checkpoint.steps": 3, "workers": 1, "bar.value": 0.5}
    assert training.train(recipe.replaced(values), tmp_path, resume=True, device="cpu").step == 5


def test_the_process_is_left_as_it_was(small, tmp_path) -> None:
    before = torch.get_rng_state(), signal.getsignal(signal.SIGINT)
    training.train(small("sorting"), tmp_path, device="cpu")
    assert torch.equal(before[0], torch.get_rng_state())
    assert signal.getsignal(signal.SIGINT) is before[1]
    assert not torch.are_deterministic_algorithms_enabled()
