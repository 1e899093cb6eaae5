"""What is wrong with an installation of torchvision, torch and fastvision, and what repairs it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch

from . import _device, _extension
from ._info import installed
from .integrations.torchvision import devices

# in a process of its own: what is wrong may end it
_PROBE = """
import importlib.util, json, pathlib
facts = {}
spec = importlib.util.find_spec("torchvision")
if spec is not None:
    facts["origin"] = spec.origin
if spec is not None and spec.origin is not None:
    import torch
    libraries = sorted(pathlib.Path(spec.origin).parent.glob("_C*.so"))
    facts["libraries"] = [path.name for path in libraries]
    for path in libraries:
        try:
            torch.ops.load_library(str(path))
        except OSError as error:
            facts["load_error"] = str(error)
    try:
        import torchvision
        from torchvision.extension import _has_ops
        facts["has_ops"] = bool(_has_ops())
    except BaseException as error:
        facts["error"] = f"{type(error).__name__}: {error}"
    if hasattr(torch.ops.torchvision, "_cuda_version"):
        facts["cuda"] = torch.ops.torchvision._cuda_version()
print("\\n" + json.dumps(facts))
"""
_SECONDS = 300

_OK, _NOTE, _BROKEN = "ok", "note", "broken"
_ENABLE_FIRST = "import fastvision; fastvision.enable()  # before the first import of torchvision"
_ENABLE = "import fastvision; fastvision.enable()"
_REPAIRED = "nms, batched_nms, roi_align, roi_pool and the modules and detectors made of them"
_BUILD = "pip install --no-build-isolation . in fastvision's source, with a C++ compiler"


class Finding(NamedTuple):
    state: str  # "ok", "note" or "broken"
    what: str
    repair: tuple[str, ...] = ()  # lines


def findings() -> list[Finding]:
    """The state of each part, from torch up."""
    return [*_torch(), *_library(), *_triton(), *_torchvision()]


def report(found: list[Finding]) -> Iterator[str]:
    """Lines for a person."""
    for state, what, repair in found:
        yield f"{state:8}{what}"
        for line in repair:
            yield f"{'':8}  {line}"
    broken = sum(f.state == _BROKEN for f in found)
    yield "\nall is well" if not broken else f"\n{broken} of {len(found)} parts broken"


def is_broken(found: list[Finding]) -> bool:
    return any(f.state == _BROKEN for f in found)


def _gpus() -> int:
    return torch.cuda.device_count()


def _torch() -> Iterator[Finding]:
    cuda = f"CUDA {torch.version.cuda}" if torch.version.cuda else "without CUDA"
    gpus = f"{_gpus()} GPUs" if _gpus() else "no GPU that it can use"
    yield Finding(_OK, f"torch {torch.__version__}, {cuda}, {gpus}")


def _library() -> Iterator[Finding]:
    """fastvision's own."""
    if _extension.missing is not None:
        what = f"fastvision: {_extension.missing}; every op runs its slow reference"
        yield Finding(_BROKEN, what, (_BUILD,))
        return
    level = _extension.cpu_level()
    architectures = _extension.cuda_architectures()
    if not _gpus() or architectures:
        kernels = f"CUDA kernels for {', '.join(architectures)}" if architectures else "no CUDA"
        yield Finding(_OK, f"fastvision's compiled library: CPU kernels at {level}, {kernels}")
    elif _device.triton_missing() is None:
        what = "fastvision's compiled library has no CUDA kernels; GPUs run the Triton kernels"
        yield Finding(_NOTE, what, (f"{_BUILD} and nvcc, compiles them",))
    else:
        what = "fastvision's compiled library has no CUDA kernels, and Triton is missing: on a GPU "
        yield Finding(_BROKEN, what + "every op runs its slow reference", (f"{_BUILD} and nvcc",))
    for index in range(_gpus() if architectures else 0):
        if (reason := _device.cuda_kernels_missing(index)) is not None:
            state = _NOTE if _device.triton_missing() is None else _BROKEN
            yield Finding(state, f"fastvision has no CUDA kernels for cuda:{index}: {reason}")


def _triton() -> Iterator[Finding]:
    reason = _device.triton_missing()
    if reason is None:
        yield Finding(_OK, f"triton {installed('triton')}")
    elif not _gpus():
        yield Finding(_OK, f"Triton: {reason}; without a GPU nothing needs it")
    else:
        what = f"Triton: {reason}; ops without a CUDA kernel run their slow reference on a GPU"
        yield Finding(_NOTE, what, ("pip install triton",))


def _probe() -> dict[str, Any]:
    """Facts about torchvision; ``crash`` instead if it ends the process."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    try:
        done = subprocess.run(
            [sys.executable, "-c", _PROBE], env=environment, capture_output=True, text=True,
            timeout=_SECONDS,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        return {"crash": f"it takes longer than {_SECONDS} s"}
    try:
        facts: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
        return facts
    except (IndexError, ValueError):
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        return {"crash": f"it ends the process with code {done.returncode}: {last}"}


def _torchvision() -> Iterator[Finding]:
    facts = _probe()
    version = installed("torchvision") or "of unknown version"
    name = f"torchvision {version}"
    reinstall = f"pip install --force-reinstall --no-deps torchvision{_index()}"
    if "crash" in facts:
        yield Finding(
            _BROKEN, f"{name} cannot be imported: {facts['crash']}",
            (reinstall, "fastvision.ops works without it"),
        )  # fmt: skip
    elif "origin" not in facts:
        yield Finding(
            _NOTE,
            "torchvision is not installed: fastvision.ops needs none, fastvision.enable() does",
            (f"pip install torchvision{_index()}",),
        )
    elif facts["origin"] is None:
        yield Finding(
            _BROKEN, "torchvision is a folder without a package, which hides an installed one",
            ("rename the folder, or run from another one",),
        )  # fmt: skip
    elif "different CUDA major versions" in facts.get("error", ""):
        yield Finding(
            _BROKEN,
            f"{name} was compiled for another major version of CUDA than torch, "
            f"{torch.version.cuda}, and refuses to be imported",
            (reinstall, "fastvision.enable() does not repair it; fastvision.ops works without it"),
        )
    elif _is_without_library(facts):
        error = facts.get("error")
        yield Finding(
            _BROKEN,
            f"{name} {'cannot be imported' if error else 'has no operators'}: its compiled library "
            + _cause(facts)
            + (f". It says: {error}" if error else ""),
            (f"repaired for {_REPAIRED}: {_ENABLE_FIRST}", f"for all of it: {reinstall}"),
        )
    elif "error" in facts:
        yield Finding(
            _BROKEN, f"{name} cannot be imported: {facts['error']}",
            (reinstall, "fastvision.enable() does not repair it; fastvision.ops works without it"),
        )  # fmt: skip
    elif torch.version.cuda is not None and facts.get("cuda") == -1:
        yield from _without_cuda(name, reinstall)
    else:
        yield Finding(_OK, name)


def _is_without_library(facts: dict[str, Any]) -> bool:
    """Whether that is all that is wrong with torchvision."""
    if facts.get("has_ops") or "cuda" in facts:
        return False
    error = facts.get("error")
    return error is None or "does not exist" in error or "Couldn't load custom C++ ops" in error


def _cause(facts: dict[str, Any]) -> str:
    if not facts["libraries"]:
        return "is missing"
    if "load_error" in facts:
        reason = facts["load_error"].splitlines()[0]
        return f"does not fit torch {torch.__version__} ({reason})"
    return f"{', '.join(facts['libraries'])} defines none"


def _without_cuda(name: str, reinstall: str) -> Iterator[Finding]:
    what = f"{name} was compiled without CUDA, torch with CUDA {torch.version.cuda}"
    if not _gpus():
        yield Finding(_NOTE, f"{what}: it would fail on a GPU", (reinstall,))
        return
    repair: tuple[str, ...] = (f"for all of it: {reinstall}",)
    if devices.has_kernels("cuda"):
        repair = (f"repaired for {_REPAIRED}: {_ENABLE}", *repair)
    yield Finding(_BROKEN, f"{what}: its operators cannot run on the GPU", repair)


def _index() -> str:
    """Option of pip for wheels that fit this torch; empty if they are on PyPI."""
    local = torch.__version__.partition("+")[2]
    return f" --index-url https://download.pytorch.org/whl/{local}" if local else ""
