"""The command ``fastvision``, also ``python -m fastvision``."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Sequence
from typing import Any

from . import _doctor
from ._info import info
from ._malloc import keep_freed_memory
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


def _add_training(commands: Any) -> None:
    command = commands.add_parser("train", help="train a model by a recipe")
    command.add_argument("recipe", nargs="?", help="name of a recipe, or a .toml file")
    command.add_argument("--list", action="store_true", help="list the recipes")
    command.add_argument(
        "--set",
        nargs="+",
        action="extend",
        default=[],
        metavar="KEY=VALUE",
        help="replace values of the recipe, such as optimizer.lr=0.1",
    )
    command.add_argument("--output", metavar="DIR", help="folder of the run (runs/RECIPE)")
    kind = command.add_mutually_exclusive_group()
    kind.add_argument("--resume", metavar="DIR", help="go on with the run in this folder")
    kind.add_argument(
        "--short", action="store_true", help="a few steps; exit code 1 unless the loss falls"
    )
    command.add_argument("--device", help="cpu or cuda; a GPU if there is one")
    command.add_argument("--quiet", action="store_true", help="no progress bar")

    command = commands.add_parser("evaluate", help="test a trained model")
    command.add_argument("path", help="folder of a run, or a checkpoint")
    command.add_argument("--device", help="cpu or cuda; a GPU if there is one")
    command.add_argument("--samples", metavar="PNG", help="draw samples and answers here")


def _add_inference(commands: Any) -> None:
    tasks = {
        "detect": "find objects in pictures and videos",
        "segment": "find the class of every pixel of pictures and videos",
        "classify": "find the classes of pictures and videos",
    }
    for name, text in tasks.items():
        command = commands.add_parser(name, help=text)
        command.add_argument(
            "images",
            nargs="*",
            metavar="IMAGE",
            help="picture, video, folder, pattern, or camera:0",
        )
        command.add_argument(
            "--model", metavar="NAME", help="model, unless WEIGHTS is a checkpoint"
        )
        command.add_argument(
            "--weights",
            metavar="FILE|NAME",
            help="checkpoint or run of fastvision train, state dict, or name such as DEFAULT",
        )
        command.add_argument(
            "--set",
            nargs="+",
            action="extend",
            default=[],
            metavar="KEY=VALUE",
            help="options of the model, such as num_classes=5",
        )
        command.add_argument(
            "--classes",
            metavar="FILE",
            help="names of the labels, one a line, or COCO's annotations in .json",
        )
        command.add_argument(
            "--out",
            metavar="DIR",
            default=f"runs/{name}",
            help="folder of the results (%(default)s)",
        )
        if name == "classify":
            command.add_argument("--top", type=int, help="number of classes to give (5)")
        else:
            command.add_argument("--score", type=float, help="least score, from 0 to 1")
        if name == "detect":
            command.add_argument("--nms", type=float, help="threshold of NMS (the model's)")
            command.add_argument(
                "--demo", action="store_true", help="find digits in a picture made for it"
            )
        command.add_argument("--batch-size", type=int, default=1, help="of pictures of one size")
        command.add_argument("--bf16", action="store_true", help="compute in bfloat16")
        command.add_argument("--device", help="cpu or cuda; a GPU if there is one")
        command.add_argument("--frames", type=int, help="largest number of frames of a video")
        command.add_argument("--no-pictures", action="store_true", help="write no drawn copies")
        command.add_argument("--quiet", action="store_true", help="no progress bar")


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="fastvision", description="Vision kernels for PyTorch.")
    commands = parser.add_subparsers(dest="command", required=True)
    command = commands.add_parser("info", help="versions, hardware, backends")
    command.add_argument("--json", action="store_true", help="print fastvision.info() as JSON")
    commands.add_parser(
        "doctor", help="what is wrong with this installation; exit code 1 if something is broken"
    )
    _add_training(commands)
    _add_inference(commands)
    options = parser.parse_args(arguments)

    if options.command == "doctor":
        found = _doctor.findings()
        print("\n".join(_doctor.report(found)))
        return int(_doctor.is_broken(found))
    if options.command in ("detect", "segment", "classify"):
        from .inference import command as inference  # it needs packages that the ops do not

        keep_freed_memory()
        return inference.execute(options)
    if options.command != "info":
        from .training import command as training  # it needs packages that the ops do not

        keep_freed_memory()
        return training.run(options)
    facts = info()
    print(json.dumps(facts, indent=2) if options.json else "\n".join(_report(facts)))
    return 0
