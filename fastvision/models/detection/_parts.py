"""Checks of the parts that detectors are made of."""

from __future__ import annotations

from typing import Any

from ...ops._checks import integer, number


def check_class(name: str, value: Any, expected: type) -> None:
    if not isinstance(value, (expected, type(None))):
        raise TypeError(
            f"{name} should be of type {expected.__name__} or None instead of {type(value)}"
        )


def check_numbers(**options: Any) -> None:
    """Of options by their names.

    Raises:
        TypeError: one is no number.
        ValueError: one is NaN, which no score is above or below.
    """
    for name, value in options.items():
        converted = number(value, name)
        if converted != converted:
            raise ValueError(f"{name} must be a number, got {value!r}")


def check_counts(least: int = 0, /, **options: Any) -> None:
    """Of options by their names.

    Raises:
        TypeError: one is no integer.
        ValueError: one is below ``least``.
    """
    for name, value in options.items():
        if integer(value, f"{name} must be an integer") < least:
            raise ValueError(f"{name} must be at least {least}, got {value!r}")


def check_positive(**options: Any) -> None:
    """Of options by their names.

    Raises:
        TypeError: one is no number.
        ValueError: one is not positive.
    """
    for name, value in options.items():
        if not number(value, name) > 0:
            raise ValueError(f"{name} must be positive, got {value!r}")


def channels_of(backbone: Any) -> int:
    """Channels of the backbone's maps.

    Raises:
        ValueError: it has no attribute of them.
    """
    channels: int | None = getattr(backbone, "out_channels", None)
    if channels is None:
        raise ValueError(
            "backbone should contain an attribute out_channels specifying the number of output "
            "channels (assumed to be the same for all the levels)"
        )
    return channels
