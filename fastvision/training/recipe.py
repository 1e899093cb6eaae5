"""Recipes: everything that a training run depends on, as data."""

from __future__ import annotations

import dataclasses
import importlib.resources
import inspect
import sys
import types
import typing
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

Section = dict[str, Any]  # the "name" of something to call, and its options

_NUMBERS = {float: (int, float)}  # TOML writes 1 for 1.0


@dataclasses.dataclass
class Checkpoints:
    """When to write one, whichever comes first."""

    steps: int = 1000
    seconds: float = 15.0


@dataclasses.dataclass
class Log:
    steps: int = 10  # a line every so many
    tensorboard: bool = True


@dataclasses.dataclass
class Start:
    """Layers to take from another run."""

    run: str  # its folder, or a checkpoint
    layers: dict[str, str]  # from the names there to the names here


@dataclasses.dataclass
class Bar:
    """What the trained model should reach on the test data."""

    metric: str
    value: float
    minutes: float | None = None  # on two cores, if not said otherwise in the recipe


@dataclasses.dataclass
class Short:
    """A run of a few steps, in which the loss has to fall."""

    steps: int
    factor: float
    set: dict[str, Any] = dataclasses.field(default_factory=dict)  # what else differs


@dataclasses.dataclass
class Recipe:
    """A training run as data; :func:`load_recipe` reads one from TOML.

    ``model``, ``data``, ``augmentation``, ``preparation``, ``optimizer`` and ``schedule`` are
    tables of a "name" and the options of what it names.

    Args:
        name: of the recipe.
        task: "classification", "segmentation", "localization", "detection",
            "instance_segmentation", "detection_3d" or "sequence".
        description: one line.
        batch_size: samples per step, over all processes and parts.
        model: of :func:`fastvision.models.get_model`.
        data: a data set of ``fastvision.data`` or a task of sequences; the tables "train" and
            "test" in it hold options of one split, and ``rgb = true`` makes grey images RGB.
        optimizer: a class of ``torch.optim``.
        schedule: of the learning rate: "constant", "cosine", "poly" or "step", each with "warmup".
        augmentation: a function of ``fastvision.data`` that makes transforms, for training.
        preparation: the same for testing, and for training without ``augmentation``.
        epochs: passes over the training data; alternatively
        steps: of the optimizer.
        seed: of weights, order and augmentation.
        accumulate: parts that a step's batch is processed in, to save memory.
        clip: largest norm of the gradient; None for no limit.
        ema: decay per step of the averaged weights that are evaluated; None for no average.
        amp: "off", "bf16" or "fp16", the type that autocast computes in.
        sync_batch_norm: whether normalization is over all processes.
        deterministic: whether torch prefers deterministic algorithms.
        workers: processes that read data, for each training process.
        evaluate_epochs: epochs between evaluations; the end is always evaluated.
        start: layers that begin with the best weights of another run, by their names there:
            ``run`` is its folder or a checkpoint, ``layers`` maps names there to names here.
        checkpoint, log: how often.
        bar: what to reach.
        short: the run of ``--short``.
    """

    name: str
    task: str
    description: str
    batch_size: int
    model: Section
    data: Section
    optimizer: Section
    schedule: Section = dataclasses.field(default_factory=lambda: {"name": "constant"})
    augmentation: Section | None = None
    preparation: Section | None = None
    epochs: int | None = None
    steps: int | None = None
    seed: int = 0
    accumulate: int = 1
    clip: float | None = None
    ema: float | None = None
    amp: str = "off"
    sync_batch_norm: bool = True
    deterministic: bool = True
    workers: int = 0
    evaluate_epochs: int = 1
    start: Start | None = None
    checkpoint: Checkpoints = dataclasses.field(default_factory=Checkpoints)
    log: Log = dataclasses.field(default_factory=Log)
    bar: Bar | None = None
    short: Short | None = None

    def __post_init__(self) -> None:
        if (self.epochs is None) == (self.steps is None):
            raise ValueError(
                f"{self.name}: one of epochs and steps must be given, "
                f"got epochs = {self.epochs} and steps = {self.steps}"
            )
        for key in ("batch_size", "accumulate", "evaluate_epochs", "epochs", "steps"):
            value = getattr(self, key)
            if value is not None and value < 1:
                raise ValueError(f"{self.name}: {key} must be at least 1, got {value}")
        if self.log.steps < 1 or self.checkpoint.steps < 1:
            raise ValueError(f"{self.name}: log.steps and checkpoint.steps must be at least 1")
        if self.clip is not None and not self.clip > 0:
            raise ValueError(f"{self.name}: clip must be positive, got {self.clip}")
        if self.ema is not None and not 0 < self.ema < 1:
            raise ValueError(f"{self.name}: ema must be between 0 and 1, got {self.ema}")
        if self.amp not in ("off", "bf16", "fp16"):
            raise ValueError(f"{self.name}: amp must be off, bf16 or fp16, got {self.amp!r}")
        if self.batch_size % self.accumulate:
            raise ValueError(
                f"{self.name}: batch_size must be a multiple of accumulate, "
                f"got {self.batch_size} and {self.accumulate}"
            )

    def as_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    def replaced(self, values: Mapping[str, Any]) -> Recipe:
        """A copy with other values, whose keys may be dotted: ``{"optimizer.lr": 0.1}``.

        Raises:
            ValueError: a key is unknown or a value has the wrong type.
        """
        tables = self.as_dict()
        for key, value in values.items():
            _assign(tables, key, value)
        if "epochs" in values and "steps" not in values:
            tables["steps"] = None
        if "steps" in values and "epochs" not in values:
            tables["epochs"] = None
        return recipe_of(tables)

    def shortened(self) -> Recipe:
        """The run of ``--short``, which does not wait for the run that it would start from.

        Raises:
            ValueError: the recipe has none.
        """
        if self.short is None:
            raise ValueError(f"the recipe {self.name} has no short run")
        return self.replaced({"steps": self.short.steps, "start": None, **self.short.set})


def recipe_of(tables: Mapping[str, Any]) -> Recipe:
    """The recipe in nested dictionaries, as :meth:`Recipe.as_dict` gives them.

    Raises:
        ValueError: a key is unknown or missing, or a value has the wrong type.
    """
    recipe: Recipe = _construct(Recipe, tables, "")
    return recipe


def list_recipes() -> list[str]:
    """Names of the recipes that come with the package, sorted."""
    return sorted(
        entry.name.removesuffix(".toml")
        for entry in _folder().iterdir()
        if entry.name.endswith(".toml")
    )


def load_recipe(name: str | Path, values: Mapping[str, Any] | None = None) -> Recipe:
    """Reads a recipe.

    Args:
        name: of a recipe of the package, or a path that ends in .toml.
        values: what to replace in it, see :meth:`Recipe.replaced`.

    Raises:
        ValueError: there is no recipe of this name, or it is damaged.
        FileNotFoundError: there is no such file.
    """
    if str(name).endswith(".toml"):
        text, name = Path(name).read_text(encoding="utf-8"), Path(name).stem
    elif name in list_recipes():
        text = (_folder() / f"{name}.toml").read_text(encoding="utf-8")
    else:
        raise ValueError(f"unknown recipe {name!r}; known: {', '.join(list_recipes())}")
    try:
        tables = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ValueError(f"the recipe {name} is not TOML: {error}") from error
    return recipe_of({"name": str(name), **tables}).replaced(values or {})


def parse_assignments(texts: Iterable[str]) -> dict[str, Any]:
    """Keys and values of texts such as ``optimizer.lr=0.1``.

    A value is written as in TOML, and may be "none"; anything else is a string, except for
    "False" and the like.

    Raises:
        ValueError: there is no equals sign, or a value is Python's True, False or None.
    """
    values = {}
    for text in texts:
        key, equals, value = text.partition("=")
        if not equals or not key:
            raise ValueError(f"expected key=value, got {text!r}")
        values[key.strip()] = _value(value.strip(), text)
    return values


def call(function: Callable[..., Any], where: str, section: Mapping[str, Any], **given: Any) -> Any:
    """``function`` with the options of ``section``, whose "name" has named it.

    Raises:
        ValueError: it has no such option, or refuses the value. The error begins with ``where``.
    """
    options = {key: value for key, value in section.items() if key != "name"}
    parameters = inspect.signature(function).parameters.values()
    names = [p.name for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
    if not any(p.kind is p.VAR_KEYWORD for p in parameters):
        _check_known(options, set(names) - given.keys(), where)
    try:
        return function(**given, **options)
    except (TypeError, ValueError) as error:
        name = section["name"]
        start = where if where == name else f"{where}: {name}"
        raise ValueError(f"{start}: {error}") from error


def named(table: Mapping[str, Any], where: str, section: Mapping[str, Any]) -> Any:
    """The entry of ``table`` that ``section`` names.

    Raises:
        ValueError: there is none.
    """
    name = section.get("name")
    if not isinstance(name, str) or name not in table:
        raise ValueError(f"{where}.name must be one of {', '.join(table)}, got {name!r}")
    return table[name]


def _folder() -> Any:
    return importlib.resources.files(__package__) / "recipes"


def _value(text: str, assignment: str) -> Any:
    if text == "none":
        return None
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        if text.lower() in ("true", "false", "none"):  # the string "False" would count as true
            raise ValueError(f"write true, false or none, got {assignment!r}") from None
        return text


def _check_known(values: Iterable[str], known: Iterable[str], where: str) -> None:
    unknown = sorted(set(values) - set(known))
    if unknown:
        prefix = f"{where}." if where else ""
        raise ValueError(
            f"unknown key {prefix}{unknown[0]}; known: "
            + ", ".join(f"{prefix}{name}" for name in sorted(known))
        )


def _assign(tables: dict[str, Any], key: str, value: Any) -> None:
    *path, last = key.split(".")
    table = tables
    for i, name in enumerate(path):
        inner = table.setdefault(name, {})
        if inner is None:  # a section that the recipe leaves out
            inner = table[name] = {}
        if not isinstance(inner, dict):
            raise ValueError(f"{'.'.join(path[: i + 1])} is a value, but the key {key} is given")
        table = inner
    table[last] = value


def _construct(cls: Any, values: Mapping[str, Any], where: str) -> Any:
    """An instance of a dataclass, of values that are checked against its types."""
    prefix = f"{where}." if where else ""
    hints = typing.get_type_hints(cls)
    _check_known(values, hints, where)
    arguments = {}
    for field in dataclasses.fields(cls):
        if field.name in values:
            key = f"{prefix}{field.name}"
            arguments[field.name] = _converted(values[field.name], hints[field.name], key)
        elif field.default is field.default_factory is dataclasses.MISSING:
            raise ValueError(f"the key {prefix}{field.name} is missing")
    return cls(**arguments)


def _converted(value: Any, hint: Any, key: str) -> Any:
    """``value`` if it is what ``hint`` asks for; a table as the dataclass that it asks for."""
    union = typing.get_origin(hint) in (types.UnionType, typing.Union)
    choices = typing.get_args(hint) if union else (hint,)
    if value is None and type(None) in choices:
        return None
    kind = next(choice for choice in choices if choice is not type(None))
    if dataclasses.is_dataclass(kind) and isinstance(value, Mapping):
        return _construct(kind, value, key)
    plain = typing.get_origin(kind) or kind
    wanted = _NUMBERS.get(plain, (plain,))
    if not isinstance(value, wanted) or (isinstance(value, bool) and plain is not bool):
        name = "table" if plain is dict or dataclasses.is_dataclass(plain) else plain.__name__
        raise ValueError(f"{key} must be a {name}, got {value!r}")
    if isinstance(value, dict) and kind == dict[str, str]:
        for name, text in value.items():
            if not isinstance(text, str):
                raise ValueError(
                    f"{key}.{name} must be a str, got {text!r}; where names have dots, replace the "
                    f'whole table: {key}={{"a.b" = "c.d"}}'
                )
    return float(value) if plain is float else value
