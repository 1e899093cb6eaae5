"""The ops under torch.jit: what its tracer records, and what its compiler says."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NoReturn

import torch


def traced_op(name: str, schema: str, run: Callable[..., Any]) -> Callable[..., Any]:
    """An op that does ``run``, derivatives included, for torch.jit.trace to record.

    A graph with an autograd.Function in it cannot be saved, and the other ops have no derivatives.
    torch.jit.trace records nothing while an op runs, so ``run`` may be the public function.
    """
    name = f"{name}_traced"
    torch.library.define(f"fastvision::{name}", schema)
    torch.library.impl(f"fastvision::{name}", "CompositeImplicitAutograd", run)
    op: Callable[..., Any] = getattr(torch.ops.fastvision, name).default
    return op


def refuse_scripting(public: Any) -> None:
    """Makes torch.jit.script of a function, or of a module of that class, say what to do instead.

    It asks ``__prepare_scriptable__`` for a stand-in before it looks at any code.
    """
    name = public.__name__

    def refuse(*_: Any) -> NoReturn:
        raise RuntimeError(
            f"torch.jit.script cannot compile fastvision.ops.{name}: use torch.jit.trace, or "
            "torchvision's own functions and modules after fastvision.enable()"
        )

    public.__prepare_scriptable__ = refuse
