"""Classes made on the fly: a module becomes an instance of a sub-class of its own class."""

from __future__ import annotations

import copyreg
import functools
from typing import Any

from torch import nn


class Mixed(nn.Module):
    """Mixed into the class of a module; the class made of the two keeps the module's name."""

    def __init_subclass__(cls, **options: Any) -> None:
        """Classes made here are not announced to the model's own, which may list theirs."""

    @classmethod
    def body_for(cls, base: type) -> dict[str, Any]:
        """What the class of a module of class ``base`` has besides."""
        return {}

    def __reduce_ex__(self, protocol: Any) -> Any:
        """With the parts of the class, which is nowhere to be found by its name."""
        function, args, *rest = super().__reduce_ex__(protocol)  # type: ignore[str-unpack]
        mixin, base = type(self)._fused_from  # type: ignore[attr-defined]
        if function is copyreg.__newobj__:  # type: ignore[attr-defined]
            return (_new, (mixin, base, *args[1:]), *rest)
        if function is copyreg._reconstructor:  # type: ignore[attr-defined]
            return (_new, (mixin, base), *rest)
        return (function, args, *rest)


class Fused(Mixed):
    """Mixed into the class of each module of a fused model that is treated in some way."""

    def train(self, mode: bool = True) -> Any:
        return super().train(False)  # for inference only


@functools.lru_cache(maxsize=4096)
def fused_class(mixin: type[Mixed], base: type) -> type:
    """A sub-class of ``base`` under its name, with ``mixin`` before it."""
    body: dict[str, Any] = {
        "__module__": base.__module__,
        "__qualname__": base.__qualname__,
        "__doc__": base.__doc__,
        "_fused_from": (mixin, base),
        **mixin.body_for(base),
    }
    return type(base)(base.__name__, (mixin, base), body)


def become(module: nn.Module, mixin: type[Mixed]) -> None:
    """Gives ``module`` the sub-class of its class."""
    object.__setattr__(module, "__class__", fused_class(mixin, type(module)))  # type: ignore[arg-type]


def _new(mixin: type[Mixed], base: type, *args: Any) -> Any:
    cls = fused_class(mixin, base)  # type: ignore[arg-type]
    return cls.__new__(cls, *args)
