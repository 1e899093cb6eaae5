"""Classes made at run time: a module becomes an instance of a subclass of its own class."""

from __future__ import annotations

import copyreg
import functools
from typing import Any

from torch import nn


class Mixed(nn.Module):
    """Mixin for modules that get a class of their own."""

    def __init_subclass__(cls, **options: Any) -> None:
        """Skips the hook of the model's classes, which may register their subclasses."""

    @classmethod
    def body_for(cls, base: type) -> dict[str, Any]:
        """Additional attributes of the class made for modules of class ``base``."""
        return {}

    def __reduce_ex__(self, protocol: Any) -> Any:
        """Pickles the two bases, since the class itself cannot be imported by name."""
        function, args, *rest = super().__reduce_ex__(protocol)  # type: ignore[str-unpack]
        mixin, base = type(self)._fused_from  # type: ignore[attr-defined]
        if function is copyreg.__newobj__:  # type: ignore[attr-defined]
            return (_new, (mixin, base, *args[1:]), *rest)
        if function is copyreg._reconstructor:  # type: ignore[attr-defined]
            return (_new, (mixin, base), *rest)
        return (function, args, *rest)


class Fused(Mixed):
    """Mixin of all modules that fuse() changes for inference."""

    def train(self, mode: bool = True) -> Any:
        return super().train(False)  # for inference only


@functools.lru_cache(maxsize=4096)
def fused_class(mixin: type[Mixed], base: type) -> type:
    """A subclass of ``mixin`` and ``base`` with the name of ``base``."""
    body: dict[str, Any] = {
        "__module__": base.__module__,
        "__qualname__": base.__qualname__,
        "__doc__": base.__doc__,
        "_fused_from": (mixin, base),
        **mixin.body_for(base),
    }
    return type(base)(base.__name__, (mixin, base), body)


def become(module: nn.Module, mixin: type[Mixed]) -> None:
    """Changes the class of ``module`` to its fused subclass."""
    object.__setattr__(module, "__class__", fused_class(mixin, type(module)))  # type: ignore[arg-type]


def _new(mixin: type[Mixed], base: type, *args: Any) -> Any:
    cls = fused_class(mixin, base)  # type: ignore[arg-type]
    return cls.__new__(cls, *args)
