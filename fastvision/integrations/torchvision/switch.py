"""enable(), disable(), enabled(): registers the replacements once and sets the active devices."""

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
    """Registrations, made once and kept."""

    kernels: torch.library.Library
    names: tuple[names.Replaced, ...]


_lock = threading.RLock()
# another thread may hold it during a fork
os.register_at_fork(after_in_child=lambda: globals().update(_lock=threading.RLock()))
_on = False  # by enable()
_blocks = 0  # open enabled() blocks, of all threads
_installed: _Installed | None = None


def enable() -> None:
    """Runs torchvision.ops, and all code that uses it, on fastvision's kernels.

    Covers nms, batched_nms, roi_align, RoIAlign, MultiScaleRoIAlign, roi_pool, RoIPool,
    ps_roi_align, PSRoIAlign, ps_roi_pool, PSRoIPool, deform_conv2d and DeformConv2d, forward and
    backward, in eager mode, torch.jit.script, torch.compile and autocast, including names bound and
    models built before the call. sigmoid_focal_loss, box_iou, generalized_box_iou,
    distance_box_iou, complete_box_iou, the losses of the last three, masks_to_boxes, drop_block2d
    and drop_block3d are covered as attributes of torchvision.ops and in torchvision's models and
    modules, but not in torch.jit.script or under names bound elsewhere before. In eager mode the
    modules FrozenBatchNorm2d and, without gradients, SqueezeExcitation run as one op.
    :func:`enabled_names` lists what is replaced. Results are torchvision's, with these differences:

    - nms and roi_pool support float16 and bfloat16 on the CPU, the other RoI ops and deform_conv2d
      bfloat16. Features may have lower precision than the boxes, and autocast does not convert them
      to float32, except in compiled and exported programs.
    - batched_nms is exact per class. Equal scores are ordered as in torchvision, in eager mode and
      TorchScript: by index up to 1000 boxes on the CPU, as its sort leaves them beyond.
      fastvision.ops.batched_nms always orders them by index.
    - The RoI ops and on the CPU deform_conv2d are deterministic, and support double backward and
      forward mode (in autograd; for torch.func use fastvision.ops).
    - ps_roi_align gives zeros where torchvision's result is NaN: boxes that are empty, under
      adaptive sampling, or have a NaN or infinite coordinate. The gradient of ps_roi_pool is that
      of its forward also at the map's last row and column.
    - deform_conv2d takes a sample at a NaN offset as 0, and raises an error for a stride or
      dilation of 0, both of which can end the process in torchvision.
    - torch.compile supports an nms that keeps 0 or 1 boxes.
    - sigmoid_focal_loss returns the limit for infinite logits, where torchvision returns NaN, and
      computes in float32 for 16-bit logits.
    - FrozenBatchNorm2d, SqueezeExcitation and the number of elements that DropBlock keeps are
      computed in float32 for 16-bit features. DropBlock's random numbers are torchvision's.

    A device type is only covered if a kernel can run on it. Other devices, quantized tensors,
    tracing and ONNX export stay with torchvision. Programs recorded by torch.compile or
    torch.export, and programs made from them (run_decompositions, ONNX, AOTInductor), contain
    torchvision's operators, which reach these kernels when they run.

    The setting is global to the process, and repeated calls have no effect. It may change while
    other threads call torchvision: each call runs one implementation or the other. Only the very
    first call should come before the threads start, since torch's dispatcher has no lock between
    registering a kernel and calling it.

    If called before ``import torchvision``, it also makes a torchvision importable whose compiled
    library does not match the installed torch; its detection models then run on fastvision's
    kernels.

    Raises:
        ModuleNotFoundError: torchvision is not installed.

    Warns:
        UserWarning: no kernel can run on this machine, so nothing changes.
    """
    with _lock:
        _switch(True, _blocks)


def disable() -> None:
    """Restores torchvision's own kernels; inside an :func:`enabled` block, when the block ends.

    Functions compiled by torch.compile in between follow, or are recompiled. A Python function
    between the dispatcher and torchvision's kernels remains, at some microseconds per call.
    """
    with _lock:
        _switch(False, _blocks)


@contextlib.contextmanager
def enabled() -> Iterator[None]:
    """Context manager: :func:`enable` during a ``with`` block, for the whole process.

    Blocks may be nested.
    """
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
    """Registers the replacements on the first call; returns the device types with kernels."""
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
