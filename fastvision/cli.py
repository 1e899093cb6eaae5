"""The command ``fastvision``, also ``python -m fastvision``."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Sequence
from typing import Any

from ._info import info
from .ops._backend import BACKENDS

_VERSIONS = ("fastvision", "python", "platform", "torch", "torch_cuda", "torchvision", "triton")


def _text(value: object) -> str:
    if isinstance(value, list):
        return ", ".join(value)
    return "none" if value is None else str(value)


def _report(facts: dict[str, Any]) -> Iterator[str]:
    """Lines for a person, from the dictionary of :func:`fastvision.info`."""
    for name in _VERSIONS:
        yield f"{name:22} {_text(facts[name])}"

    library = facts["library"]
    yield "\ncompiled library"
    if library["missing"] is not None:
        yield f"  {library['missing']}"
    else:
        for name, value in library.items():
            if name != "missing":
                yield f"  {name:20} {_text(value) or 'none'}"

    yield "\nGPUs"
    for gpu in facts["gpus"]:
        yield f"  {gpu['device']:20} {gpu['name']}, compute capability {gpu['capability']}"
    if not facts["gpus"]:
        yield "  none that torch can use"

    for device in ("cpu", *(gpu["device"] for gpu in facts["gpus"])):
        tables = {op: by_device[device] for op, by_device in facts["ops"].items()}
        yield f"\nbackends on {device:10} " + "".join(f"{backend:11}" for backend in BACKENDS)
        for op, table in tables.items():
            marks = ("-" if table[backend] else "yes" for backend in BACKENDS)
            yield f"  {op:20} " + "".join(f"{mark:11}" for mark in marks).rstrip()
        for backend in BACKENDS:
            for reason in {table[backend]: None for table in tables.values() if table[backend]}:
                yield f"  no {backend}: {reason}"


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="fastvision", description="Vision kernels for PyTorch.")
    commands = parser.add_subparsers(dest="command", required=True)
    command = commands.add_parser("info", help="versions, hardware, backends")
    command.add_argument("--json", action="store_true", help="print fastvision.info() as JSON")
    options = parser.parse_args(arguments)

    facts = info()
    print(json.dumps(facts, indent=2) if options.json else "\n".join(_report(facts)))
    return 0
