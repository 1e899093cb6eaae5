"""Programs recorded by TorchScript, tracers, torch.export and torch.compile while enabled."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch

from ..._version import __version__
from . import devices

_TAG = f"fastvision-{__version__}"


def is_exporting() -> bool:
    """Whether a program is exported. It gets torchvision's operators only, to run without us."""
    return torch._C._get_tracing_state() is not None or torch.compiler.is_exporting()


def keeping_torchscript(stock: Callable[..., Any]) -> Callable[[Any], Any]:
    """Decorator for replacements of ``stock``: torch.jit.script compiles ``stock`` instead."""

    def decorate(replacement: Callable[..., Any]) -> Callable[..., Any]:
        # without stock's attributes, which would lead torch.compile to stock
        replacement = functools.update_wrapper(replacement, stock, updated=())
        replacement.__prepare_scriptable__ = lambda: stock  # type: ignore[attr-defined]
        return replacement

    return decorate


def tag_compiled() -> None:
    """Separates programs compiled while enabled from others in torch.compile's disk caches.

    They have the same operators, but different assumptions about the results (see the fakes). The
    tag is thread-local, so the fakes set it as well: a compiling thread runs them before it looks
    into a cache. Additions by users are kept.
    """
    from torch.compiler import config

    tag = config.cache_key_tag
    if devices.active and not tag.endswith(_TAG):
        config.cache_key_tag = tag + _TAG
    elif not devices.active and tag.endswith(_TAG):
        config.cache_key_tag = tag.removesuffix(_TAG)
