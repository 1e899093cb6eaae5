"""Programs recorded by TorchScript, tracers, torch.export and torch.compile, while we are on."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch

from ..._version import __version__
from . import devices

_TAG = f"fastvision-{__version__}"


def is_exporting() -> bool:
    """Exported programs hold torchvision's operators alone, so that they run without fastvision."""
    return torch._C._get_tracing_state() is not None or torch.compiler.is_exporting()


def keeping_torchscript(stock: Callable[..., Any]) -> Callable[[Any], Any]:
    """Decorates a replacement of ``stock``: torch.jit.script compiles ``stock`` in its place."""

    def decorate(replacement: Callable[..., Any]) -> Callable[..., Any]:
        # without stock's attributes: by them torch.compile would find stock
        replacement = functools.update_wrapper(replacement, stock, updated=())
        replacement.__prepare_scriptable__ = lambda: stock  # type: ignore[attr-defined]
        return replacement

    return decorate


def tag_compiled() -> None:
    """Keeps programs compiled now and programs compiled without us apart in the caches on disk.

    They have the same operators, but other assumptions about their results (see the fakes). The tag
    belongs to one thread, so the fakes set it as well: a thread that compiles runs them before it
    asks a cache. What a user adds to it stays.
    """
    from torch.compiler import config

    tag = config.cache_key_tag
    if devices.active and not tag.endswith(_TAG):
        config.cache_key_tag = tag + _TAG
    elif not devices.active and tag.endswith(_TAG):
        config.cache_key_tag = tag.removesuffix(_TAG)
