"""Declaration of operators. Registration, backend selection, its errors and info() read the same
object."""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch._subclasses import FakeTensor

from .. import _extension
from ..reference.activations import ACTIVATIONS
from . import _backend

_PACKAGE = __name__.split(".")[0]


class Operator:
    """One operator of ``torch.ops.fastvision`` with its implementations.

    Attributes:
        run: implementation per backend, called with the operator's arguments.
        direct: what the handle of the operator calls, for calls that no compiler sees: the handle's
            own function takes a fifth of a microsecond.
        lacks: backends without a kernel, each with the reason.
        automatic: whether it picks among kernels itself on CUDA tensors.
    """

    def __init__(self, lacks: Mapping[str, str], automatic: bool) -> None:
        self.run: dict[str, Callable[..., Any]] = {}
        self.direct: Callable[..., Any]
        self.lacks = lacks
        self.automatic = automatic

    def choose(self, tensor: Tensor, requested: str | None) -> str:
        """The backend for ``tensor``: the requested one, or the fastest that can run.

        Raises:
            ValueError: ``requested`` (or FASTVISION_BACKEND) names a backend that cannot run.
        """
        if requested is None:
            requested = _backend.requested_by_environment
        if tensor.is_meta:  # runs the fake
            return "cpp"
        if requested is None and tensor.is_cpu:  # tensor.device.type is slow
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
        """The reason why ``backend`` cannot run on the device, or None."""
        return _backend.unsupported(backend, device_type, device_index) or self.lacks.get(backend)


# by public function name, for info()
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
    """Defines ``fastvision::name`` and, with ``triton``, ``fastvision::name_triton``.

    Args:
        name: operator name, also used by the C++ registration.
        schema: arguments and results in torch.library's schema language.
        fake: shapes, dtypes and memory formats of the results, for tracers.
        triton: dotted path inside this package of the Triton launcher; imported on its first call,
            since Triton may be missing and is slow to import.
        reference: the operator in eager PyTorch, with the same arguments.
        cpu: implementation for CPU tensors, if it is written in Python.
        cuda: implementation for CUDA tensors, or its path as in ``triton``, if it is written in
            Python and picks among kernels itself.
        lacks: backends without a kernel, each with the reason.
        serves: public functions built on the operator.
    """
    operator = Operator(lacks or {}, automatic=cuda is not None)
    default = _define(name, schema, fake)
    operator.run = {"cpp": default, "cuda": default}
    operator.direct = direct(default)
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
    """Adapts a reference that takes an activation's name to its operator, which takes the index.

    The arguments end in activation and negative slope.
    """
    return lambda *args: function(*args[:-2], ACTIVATIONS[args[-2]], args[-1])


def _define(name: str, schema: str, fake: Callable[..., Any]) -> Callable[..., Any]:
    torch.library.define(f"{_PACKAGE}::{name}", schema)
    torch.library.register_fake(f"{_PACKAGE}::{name}", _of_one_device(fake))
    handle: Callable[..., Any] = getattr(getattr(torch.ops, _PACKAGE), name).default
    return handle


def _of_one_device(fake: Callable[..., Any]) -> Callable[..., Any]:
    """``fake``, which raises an error if only some tensors are on the meta device: the dispatcher
    calls it then, too, and what it makes is memory that nothing fills."""

    @functools.wraps(fake)
    def run(*args: Any, **kwargs: Any) -> Any:
        for value in (*args, *kwargs.values()):
            for t in value if isinstance(value, (list, tuple)) else (value,):
                if isinstance(t, Tensor) and not (t.is_meta or isinstance(t, FakeTensor)):
                    raise RuntimeError(f"tensors must be on one device, got meta and {t.device}")
        return fake(*args, **kwargs)

    return run


def direct(handle: Callable[..., Any]) -> Callable[..., Any]:
    """See :attr:`Operator.direct`."""
    function: Callable[..., Any] = getattr(handle, "_op", handle)
    return function


def _imported(path: str) -> Callable[..., Any]:
    module, _, function = path.rpartition(".")

    def run(*args: Any) -> Any:
        return getattr(importlib.import_module(f"{_PACKAGE}.{module}"), function)(*args)

    return run
