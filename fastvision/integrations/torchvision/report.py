"""What enable() replaces, and what runs instead."""

from __future__ import annotations

from typing import NamedTuple

import torch

from ...ops import _backend
from ...ops._library import PUBLIC
from . import devices, operators, switch


class EnabledName(NamedTuple):
    """A name of torchvision that runs on fastvision.

    Attributes:
        name: ``torch.ops.torchvision.x`` of an operator, otherwise where Python has it, such as
            ``torchvision.ops.misc.FrozenBatchNorm2d.forward``.
        backends: what runs, fastest first and at most one per kind of device: "cpp", "cuda",
            "triton" or "reference". Empty for names that only decide, without arithmetic.
    """

    name: str
    backends: tuple[str, ...]


def enabled_names() -> list[EnabledName]:
    """What :func:`enable` has replaced in torchvision, in order of the names.

    Returns:
        Names and backends; an empty list unless enabled.
    """
    if not devices.active or switch._installed is None:
        return []
    found: dict[str, str | None] = {
        f"torch.ops.torchvision.{o.name}": o.public for o in operators.OPERATORS
    }
    for replaced in switch._installed.names:
        found[f"{replaced.modules[0]}.{replaced.name}"] = replaced.op
    return [EnabledName(name, _backends(op)) for name, op in sorted(found.items())]


def _backends(op: str | None) -> tuple[str, ...]:
    if op is None:
        return ()
    operator = PUBLIC.get(op)
    if operator is None:  # of torch's operations
        return ("reference",)
    requested = _backend.requested_by_environment
    chosen: dict[str, None] = {}
    for device in devices.active:
        if device == "cuda" and torch.cuda.device_count() == 0:
            continue  # it has kernels, but this machine no GPU
        order: tuple[str, ...] = (requested,) if requested else _backend.ORDER[device]
        runs = [b for b in order if operator.unsupported(b, device, 0) is None]
        chosen.update(dict.fromkeys(runs[:1]))
    return tuple(chosen)
