"""Training and evaluation of models by recipes."""

from ._interruption import Interrupted
from .evaluation import evaluate
from .loop import NonFiniteError, Outcome, train
from .recipe import Bar, Checkpoints, Log, Recipe, Short, Start, list_recipes, load_recipe

__all__ = [
    "Bar",
    "Checkpoints",
    "Interrupted",
    "Log",
    "NonFiniteError",
    "Outcome",
    "Recipe",
    "Short",
    "Start",
    "evaluate",
    "list_recipes",
    "load_recipe",
    "train",
]
