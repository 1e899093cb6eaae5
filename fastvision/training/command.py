"""The commands ``fastvision train`` and ``fastvision evaluate``."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from pathlib import Path

from ._checkpoint import LAST, load_checkpoint
from ._interruption import Interrupted
from ._processes import Processes
from .evaluation import evaluate
from .loop import NonFiniteError, Outcome, train
from .recipe import Recipe, list_recipes, load_recipe, parse_assignments, recipe_of


def run(options: argparse.Namespace) -> int:
    """Runs the command that has been parsed into ``options``; returns its exit code."""
    is_first = Processes("cpu").is_first
    try:
        if options.command == "evaluate":
            metrics = evaluate(options.path, device=options.device, samples=options.samples)
            if is_first:
                print(json.dumps(metrics, indent=2))
            return 0
        if options.list:
            print("\n".join(_table()))
            return 0
        return _train(options, is_first)
    except (ValueError, OSError, ModuleNotFoundError, NonFiniteError) as error:
        if isinstance(error, OSError) and error.strerror:
            error = OSError(error.strerror if error.filename is None else error)
        print(f"fastvision {options.command}: error: {error}", file=sys.stderr)
        return 1


def _train(options: argparse.Namespace, is_first: bool) -> int:
    recipe, folder = _chosen(options)
    try:
        outcome = train(
            recipe,
            folder,
            resume=options.resume is not None,
            device=options.device,
            progress=is_first and not options.quiet,
        )
    except Interrupted as stop:
        if is_first:
            print(f"{stop}; go on with: fastvision train {recipe.name} --resume {folder}")
        return 128 + stop.signal
    if is_first:
        print("\n".join(_report(recipe, folder, outcome)))
    if not options.short or recipe.short is None:
        return 0
    fall, wanted = outcome.fall(), recipe.short.factor
    if is_first:
        print(f"the loss fell {fall:.2f} times, {wanted:g} times are wanted")
    return 0 if fall >= wanted else 1


def _chosen(options: argparse.Namespace) -> tuple[Recipe, Path]:
    """The recipe with what the options change in it, and the folder of the run."""
    if options.recipe is None:
        raise ValueError("a recipe is missing, see fastvision train --list")
    values = parse_assignments(options.set)
    if options.resume is not None:
        if options.output is not None:
            raise ValueError(
                f"--output {options.output} is for a new run, --resume {options.resume} goes on "
                "in its folder"
            )
        folder = Path(options.resume)
        recipe = recipe_of(load_checkpoint(folder / LAST)["recipe"])
        name = Path(options.recipe).name.removesuffix(".toml")
        if recipe.name != name:
            raise ValueError(f"{folder} has a run of the recipe {recipe.name}, got {name}")
        return recipe.replaced(values), folder
    recipe = load_recipe(options.recipe, values)
    if options.short:
        recipe = recipe.shortened().replaced(values)  # which precede those of the short run
    folder = Path(options.output or Path("runs") / recipe.name)
    if folder.exists() and not folder.is_dir():
        raise NotADirectoryError(f"--output must be a folder, but {folder} is a file")
    return recipe, folder


def _table() -> Iterator[str]:
    for name in list_recipes():
        recipe = load_recipe(name)
        bar = recipe.bar
        goal = "" if bar is None else f"{bar.metric} {bar.value:g}"
        yield f"{name:22} {recipe.task:21} {goal:15} {recipe.description}"


def _report(recipe: Recipe, folder: Path, outcome: Outcome) -> Iterator[str]:
    figures = ", ".join(f"{name} {value:.4g}" for name, value in outcome.metrics.items())
    yield f"{outcome.step} steps in {outcome.seconds:.0f} s: {figures}"
    if recipe.bar is not None:
        verdict = "reached" if outcome.reached else "not reached"
        goal = f"{recipe.bar.metric} {recipe.bar.value:g}"
        yield f"best {recipe.bar.metric} {outcome.best:.4g}; the bar of {goal} is {verdict}"
    yield f"checkpoints, logs and pictures are in {folder}"
