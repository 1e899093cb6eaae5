"""Checks of the parts that detectors are made of."""

from __future__ import annotations

from typing import Any


def check_class(name: str, value: Any, expected: type) -> None:
    if not isinstance(value, (expected, type(None))):
        raise TypeError(
            f"{name} should be of type {expected.__name__} or None instead of {type(value)}"
        )


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
