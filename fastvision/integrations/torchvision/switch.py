"""enable(), disable(), enabled(): what is registered once, and the flag that all of it looks at."""

from __future__ import annotations

import contextlib
import os
import threading
import warnings
from collections.abc import Iterator
from typing import NamedTuple

import torch

from ... import _device, _extension
from . import devices, library, names, operators, recording


class _Installed(NamedTuple):
    """What stays for good once it is made."""

    kernels: torch.library.Library
    names: tuple[names.Replaced, ...]


_lock = threading.RLock()
# a fork may happen while another thread holds it
os.register_at_fork(after_in_child=lambda: globals().update(_lock=threading.RLock()))
_on = False  # by enable()
_blocks = 0  # open enabled() blocks, of all threads
_installed: _Installed | None = None


def enable() -> None:
    """Makes torchvision.ops, and all code that uses it, run on fastvision's kernels.

    Reaches nms, batched_nms, roi_align, RoIAlign, MultiScaleRoIAlign, roi_pool and RoIPool, forward
    and backward, in eager mode, torch.jit.script, torch.compile and autocast; names bound and
    models built before take part. sigmoid_focal_loss is reached as
    torchvision.ops.sigmoid_focal_loss and in torchvision's models; torch.jit.script, and names that
    others bound before, keep torchvision's.
    The answers are torchvision's, with these differences:

    - nms and roi_pool take float16 and bfloat16 on the CPU, roi_align bfloat16; features may be of
      lower precision than the boxes, and autocast leaves them so instead of converting to float32
      (except in compiled and exported programs).
    - batched_nms is exact per class. The order of equal scores is torchvision's, in eager mode and
      in TorchScript: by index up to 1000 boxes on the CPU, as its sort leaves them beyond;
      fastvision.ops.batched_nms always orders them by index.
    - roi_align and roi_pool are deterministic and can be differentiated twice and in forward mode
      (by autograd; for torch.func use fastvision.ops).
    - torch.compile handles an nms that keeps 0 or 1 boxes.
    - sigmoid_focal_loss has the limits at infinite logits, where torchvision's gives NaN, and does
      its arithmetic in float32 for 16-bit logits.

    Each device type is taken over only where a kernel can run on it; the rest, quantized tensors,
    tracing and ONNX export stay with torchvision. Programs recorded by torch.compile, torch.export
    (and what is made of them: run_decompositions, ONNX, AOTInductor) hold torchvision's operators,
    which find these kernels when they run.

    The setting is one for the whole process, and calling it again changes nothing. It may be
    switched while other threads call torchvision, each call having the answer of the one or the
    other; only the very first time should be before the threads start, since torch's dispatcher has
    no lock between registering a kernel and calling one.

    Called before ``import torchvision``, it also lets a torchvision be imported whose compiled
    library does not fit the installed torch; its detection models then run on fastvision's kernels.

    Raises:
        ModuleNotFoundError: torchvision is not installed.
    """
    with _lock:
        _switch(True, _blocks)


def disable() -> None:
    """Gives torchvision its own kernels back; inside an :func:`enabled` block, when that ends.

    Functions that torch.compile has compiled meanwhile follow, or are compiled again. What stays is
    a Python function between the dispatcher and torchvision's kernels: some microseconds per call.
    """
    with _lock:
        _switch(False, _blocks)


@contextlib.contextmanager
def enabled() -> Iterator[None]:
    """:func:`enable` for the length of a ``with`` block, for the whole process; blocks may nest."""
    with _lock:
        _switch(_on, _blocks + 1)
    try:
        yield
    finally:
        with _lock:
            _switch(_on, _blocks - 1)


def _switch(on: bool, blocks: int) -> None:
    global _on, _blocks
    before, after = bool(_on or _blocks), bool(on or blocks)
    if after != before:
        devices.active = _install() if after else ()
        if _installed is not None:
            names.swap(_installed.names, to_ours=bool(devices.active))
    _on, _blocks = on, blocks
    if _installed is not None:
        recording.tag_compiled()


def _install() -> tuple[str, ...]:
    """Does once what is done once; the types of device that can run on our kernels."""
    global _installed
    complete = library.import_torchvision()
    served = tuple(t for t in ("cpu", "cuda") if not complete or devices.has_kernels(t))
    if not served:
        warnings.warn(
            "fastvision.enable() changes nothing: there is no kernel for this machine "
            f"({_extension.missing or _device.triton_missing()})",
            stacklevel=4,
        )
    elif _installed is None:
        _installed = _Installed(operators.register(complete), names.replacements(complete))
    return served
