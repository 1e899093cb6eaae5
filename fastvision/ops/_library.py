"""The declaration of an operator: torch.library, the choice of a backend, its errors and info() all
read this one object."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from .. import _extension
from ..reference.activations import ACTIVATIONS
from . import _backend

_PACKAGE = __name__.split(".")[0]


class Operator:
    """One operator of ``torch.ops.fastvision`` with its implementations.

    Attributes:
        run: the implementation by backend, called with the operator's arguments.
        lacks: the backends that it has no kernel of, with the reason.
        automatic: on CUDA tensors it chooses among kernels itself.
    """

    def __init__(self, lacks: Mapping[str, str], automatic: bool) -> None:
        self.run: dict[str, Callable[..., Any]] = {}
        self.lacks = lacks
        self.automatic = automatic

    def choose(self, tensor: Tensor, requested: str | None) -> str:
        """The backend for ``tensor``: the fastest that can run, or the one asked for.

        Raises:
            ValueError: ``requested`` (or FASTVISION_BACKEND) names one that cannot run.
        """
        if requested is None:
            requested = _backend.requested_by_environment
        if tensor.is_meta:  # the fake implementations answer
            return "cpp"
        if requested is None and tensor.is_cpu:  # asking tensor.device for its type is slow
            return "cpp" if _extension.missing is None else "reference"
        device = tensor.device
        if requested is not None:
            reason = self.unsupported(requested, device.type, device.index)
            if reason is None:
                return requested
            source = "backend"
            if requested is _backend.requested_by_environment:
                source = "FASTVISION_BACKEND"
            raise ValueError(f"{source}={requested!r} cannot run on {device}: {reason}")
        if self.automatic and tensor.is_cuda:
            return "cuda"
        for backend in _backend.ORDER.get(device.type, ()):
            if self.unsupported(backend, device.type, device.index) is None:
                return backend
        return "reference"

    def unsupported(self, backend: str, device_type: str, device_index: int | None) -> str | None:
        """Why ``backend`` cannot run there, or None."""
        return _backend.unsupported(backend, device_type, device_index) or self.lacks.get(backend)


# by the name of the public function, for info()
PUBLIC: dict[str, Operator] = {}


def declare(
    name: str,
    schema: str,
    *,
    fake: Callable[..., Any],
    triton: str | None = None,
    reference: Callable[..., Any] | None = None,
    cpu: Callable[..., Any] | None = None,
    cuda: str | Callable[..., Any] | None = None,
    lacks: Mapping[str, str] | None = None,
    serves: Sequence[str] = (),
) -> Operator:
    """Defines ``fastvision::name``, and ``fastvision::name_triton`` where there is one.

    Args:
        name: of the operator; C++ implements it under this name.
        schema: its arguments and results, in torch.library's language.
        fake: shapes, dtypes and formats of the results, for tracers.
        triton: path below this package of the function that launches Triton's kernels; imported on
            its first call, since Triton may be missing and takes time to import.
        reference: the operator in PyTorch, with the same arguments.
        cpu: what runs on CPU tensors, where that is Python.
        cuda: what runs on CUDA tensors, where that is Python, or its path as ``triton``: it chooses
            among kernels itself.
        lacks: the backends without a kernel, and why.
        serves: the public functions that are made of it.
    """
    operator = Operator(lacks or {}, automatic=cuda is not None)
    default = _define(name, schema, fake)
    operator.run = {"cpp": default, "cuda": default}
    for key, function in (("CPU", cpu), ("CUDA", cuda)):
        if function is not None:
            run = _imported(function) if isinstance(function, str) else function
            torch.library.impl(f"{_PACKAGE}::{name}", key, run)
    if triton is not None:
        stem, mutates = name.removesuffix("_"), name.endswith("_")
        by_triton = f"{stem}_triton_" if mutates else f"{stem}_triton"
        operator.run["triton"] = _define(by_triton, schema, fake)
        torch.library.impl(f"{_PACKAGE}::{by_triton}", ("CPU", "CUDA"), _imported(triton))
    if reference is not None:
        operator.run["reference"] = reference
    PUBLIC.update(dict.fromkeys(serves, operator))
    return operator


def by_activation_name(function: Callable[..., Any]) -> Callable[..., Any]:
    """A reference under the arguments of its operator, which end in the index of an activation and
    its slope."""
    return lambda *args: function(*args[:-2], ACTIVATIONS[args[-2]], args[-1])


def _define(name: str, schema: str, fake: Callable[..., Any]) -> Callable[..., Any]:
    torch.library.define(f"{_PACKAGE}::{name}", schema)
    torch.library.register_fake(f"{_PACKAGE}::{name}", fake)
    handle: Callable[..., Any] = getattr(getattr(torch.ops, _PACKAGE), name).default
    return handle


def _imported(path: str) -> Callable[..., Any]:
    module, _, function = path.rpartition(".")

    def run(*args: Any) -> Any:
        return getattr(importlib.import_module(f"{_PACKAGE}.{module}"), function)(*args)

    return run
