"""The ops under torch.jit: the operators that tracing records, the error that scripting gives."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NoReturn

import torch


def traced_op(name: str, schema: str, run: Callable[..., Any]) -> Callable[..., Any]:
    """Defines an op that calls ``run``, derivatives included, for torch.jit.trace to record.

    A graph that contains an autograd.Function cannot be saved, and the other ops have no
    derivatives. torch.jit.trace records nothing while an op runs, so ``run`` may be the public
    function.
    """
    name = f"{name}_traced"
    torch.library.define(f"fastvision::{name}", schema)
    torch.library.impl(f"fastvision::{name}", "CompositeImplicitAutograd", run)
    op: Callable[..., Any] = getattr(torch.ops.fastvision, name).default
    return op


def refuse_scripting(public: Any) -> None:
    """Makes torch.jit.script of ``public``, a function or module class, raise a helpful error.

    torch.jit.script calls ``__prepare_scriptable__`` before it looks at any code.
    """
    name = public.__name__

    def refuse(*_: Any) -> NoReturn:
        raise RuntimeError(
            f"torch.jit.script cannot compile fastvision.ops.{name}: use torch.jit.trace, or "
            "torchvision's own functions and modules after fastvision.enable()"
        )

    public.__prepare_scriptable__ = refuse
