"""Classes made on the fly: a module becomes an instance of a sub-class of its own class."""

from __future__ import annotations

import copyreg
import functools
from typing import Any

from torch import nn

from . import layers, modules


@functools.lru_cache(maxsize=4096)
def fused_class(mixin: type, base: type) -> type:
    """A sub-class of ``base`` under its name, with ``mixin`` before it."""
    body: dict[str, Any] = {
        "__module__": base.__module__,
        "__qualname__": base.__qualname__,
        "__doc__": base.__doc__,
        "_fused_from": (mixin, base),
    }
    if mixin is modules.FusedModule:
        body["forward"] = modules.forward_of(base)
    return type(base)(base.__name__, (mixin, base), body)


def become(module: nn.Module, mixin: type) -> None:
    """Gives ``module`` the sub-class of its class."""
    object.__setattr__(module, "__class__", fused_class(mixin, type(module)))


def parts_of(module: nn.Module) -> tuple[type, type] | None:
    """The mixin and the model's own class, of a module of a class made here."""
    return getattr(type(module), "_fused_from", None)


def _new(name: str, base: type, *args: Any) -> Any:
    mixin = getattr(modules, name, None) or getattr(layers, name)
    cls = fused_class(mixin, base)
    return cls.__new__(cls, *args)


def rebuild(module: nn.Module, reduction: Any) -> Any:
    """The reduction of ``module`` with the parts of its class instead of the class."""
    mixin, base = parts_of(module)  # type: ignore[misc]
    function, args, *rest = reduction
    if function in (copyreg.__newobj__, copyreg._reconstructor):  # type: ignore[attr-defined]
        more = args[1:] if function is copyreg.__newobj__ else ()
        return (_new, (mixin.__name__, base, *more), *rest)
    return reduction
