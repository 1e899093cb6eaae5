"""Darknet's .cfg files: the layers of a network, one section each."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

# other names that Darknet gives them
_ALIASES = {
    "network": "net",
    "conv": "convolutional",
    "max": "maxpool",
    "avg": "avgpool",
    "conn": "connected",
    "soft": "softmax",
}
HEADS = ("detection", "region", "yolo")
# what decides about the result of a layer
OPTIONS = {
    "convolutional": "batch_normalize filters size stride pad padding groups activation",
    "maxpool": "size stride padding",
    "avgpool": "",
    "route": "layers groups group_id",
    "shortcut": "from activation",
    "upsample": "stride",
    "reorg": "stride",
    "connected": "output batch_normalize activation",
    "local": "filters size stride pad activation",
    "dropout": "probability",
    "softmax": "groups",
    "cost": "type scale",
}
# what only Darknet's own training and drawing know
_IGNORED = {
    "learning_rate",
    "dontload",
    "dontloadscales",
    "stopbackward",
    "type",
    "scale",
    "smooth",
}
_MAX = 1 << 24  # of numbers: what is larger is a mistake, and would ask for all memory
_SHAPE = ("width", "height", "channels")
# what changes the function of a head if it is not this value
_FIXED = {"scale_x_y": 1.0, "new_coords": 0, "background": 0, "coords": 4}


class ConfigError(ValueError):
    """A .cfg file that does not describe a network; the message names file, line and section."""


@dataclasses.dataclass(frozen=True)
class Section:
    """``[kind]`` and its ``name=value`` lines.

    Args:
        kind: such as "convolutional".
        options: values as in the file.
        lines: line numbers of the options, and under "" the section's own.
        source: name of the file, for errors.
    """

    kind: str
    options: Mapping[str, str]
    lines: Mapping[str, int] = dataclasses.field(default_factory=dict)
    source: str = "configuration"

    def error(self, message: str, option: str = "") -> NoReturn:
        line = self.lines.get(option, self.lines.get(""))
        place = self.source if line is None else f"{self.source}, line {line}"
        raise ConfigError(f"{place}: [{self.kind}] {message}")

    def text(self, name: str, default: str | None = None) -> str:
        value = self.options.get(name, default)
        if value is None:
            self.error(f"has no {name}")
        return value

    def integer(self, name: str, default: int | None = None, least: int = 0) -> int:
        value = self.text(name, None if default is None else str(default))
        try:
            number = int(value)
        except ValueError:
            self.error(f"{name} must be an integer, got {value!r}", name)
        if number < least:
            self.error(f"{name} must be {least} or more, got {number}", name)
        if number > _MAX:
            self.error(f"{name} must be {_MAX:,} or less, got {number:,}", name)
        return number

    def number(self, name: str, default: float | None = None) -> float:
        return self._float(name, self.text(name, None if default is None else str(default)))

    def numbers(self, name: str) -> list[float]:
        return [self._float(name, value) for value in self.text(name).split(",") if value.strip()]

    def _float(self, name: str, value: str) -> float:
        try:
            number = float(value)
        except ValueError:
            self.error(f"{name} must be a number, got {value!r}", name)
        if not abs(number) <= _MAX:
            self.error(f"{name} must be between -{_MAX:,} and {_MAX:,}, got {value}", name)
        return number

    def integers(self, name: str) -> list[int]:
        numbers = self.numbers(name)
        if any(number != int(number) for number in numbers):
            self.error(f"{name} must be integers, got {self.text(name)!r}", name)
        return [int(number) for number in numbers]


def section(kind: str, **options: Any) -> Section:
    """A section of Python values; sequences are joined by commas, ``from_`` is "from"."""
    texts = {}
    for name, value in options.items():
        is_list = isinstance(value, Sequence) and not isinstance(value, str)
        items = value if is_list else [value]
        texts[name.rstrip("_")] = ",".join(map(str, items))
    return Section(kind, texts)


def read_config(path: str | os.PathLike[str]) -> list[Section]:
    """The sections of a .cfg file; see :func:`parse_config`.

    Raises:
        FileNotFoundError: there is no such file.
        ConfigError: it is not a Darknet configuration.
    """
    file = Path(path).expanduser()
    if not file.is_file():
        raise FileNotFoundError(f"there is no file {file}")
    try:
        text = file.read_text("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ConfigError(f"{file} is not a text file: {error}") from error
    return parse_config(text, str(file))


def parse_config(text: str, source: str = "configuration") -> list[Section]:
    """The sections of a configuration, the first of which is [net].

    Args:
        text: as in a .cfg file.
        source: what errors call it.

    Raises:
        ConfigError: a line that is no section, option or comment; an unknown section or option; a
            file without [net] at its beginning.
    """
    sections: list[Section] = []
    for number, whole in enumerate(text.splitlines(), 1):
        line = whole.split("#")[0].split(";")[0].strip()
        if not line:
            continue
        if line.startswith("[") and line.endswith("]"):
            kind = line[1:-1].strip()
            sections.append(Section(_ALIASES.get(kind, kind), {}, {"": number}, source))
            continue
        name, equals, value = (part.strip() for part in line.partition("="))
        if not sections or not equals or not name:
            raise ConfigError(
                f"{source}, line {number}: expected [section] or name=value, got {line!r}"
            )
        last = sections[-1]
        if name in last.options:
            if last.kind == "net" and name not in _SHAPE:
                continue  # Darknet's own files have batch=1 for tests and another for training
            last.error(f"{name} is given twice", name)
        sections[-1] = dataclasses.replace(
            last, options={**last.options, name: value}, lines={**last.lines, name: number}
        )
    if not sections or sections[0].kind != "net":
        raise ConfigError(f"{source}: a configuration begins with [net]")
    for part in sections[1:]:
        _check(part)
    return sections


def _check(part: Section) -> None:
    """An option that is not understood could change what a layer computes."""
    if part.kind in HEADS:
        for name, value in _FIXED.items():
            if name in part.options and part.number(name) != value:
                part.error(f"{name} must be {value}, got {part.text(name)}", name)
        if "tree" in part.options:
            part.error("a tree of classes is not supported", "tree")
        return
    if part.kind not in OPTIONS:
        part.error(f"is not one of the sections net, {', '.join((*OPTIONS, *HEADS))}")
    known = OPTIONS[part.kind].split()
    for name in part.options:
        if name not in known and name not in _IGNORED:
            part.error(f"has an unknown option {name}; known are {', '.join(known)}", name)


def format_config(sections: Iterable[Section]) -> str:
    """The text of a .cfg file."""
    texts = []
    for part in sections:
        lines = [f"[{part.kind}]", *(f"{name}={value}" for name, value in part.options.items())]
        texts.append("\n".join(lines) + "\n")
    return "\n".join(texts)
