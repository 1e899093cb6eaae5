"""Registers our kernels for torchvision's operators in the dispatcher.

They are registered once and stay, since the dispatcher has no lock against removing a kernel that
another thread runs. Each call checks ``devices.active`` and otherwise redispatches to torchvision's
kernels, which stay registered: ours use the key BackendSelect, above those of the devices. A
program that is being recorded (by torch.compile, export, make_fx) contains torchvision's operators,
which reach our kernels when it runs.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ... import ops
from . import boxes, deform_conv2d, devices, nms, position_sensitive, roi_align, roi_pool
from .recording import tag_compiled

_Kernel = Callable[..., Any]


@dataclass(frozen=True)
class Operator:
    """An operator of torchvision, and our functions for it by dispatch key."""

    schema: str  # torchvision's; defined by us if its compiled library cannot be loaded

    # BackendSelect: runs on the devices, with the schema's arguments and results
    kernel: _Kernel

    # Meta: accepts everything kernel accepts and returns what torchvision's kernels return
    fake: _Kernel
    data_dependent: bool = False  # whether the fake's result has a data-dependent size

    # AutogradCPU, AutogradCUDA, if kernel is differentiable in its first arguments: replaces it
    # while operators are recorded. Built from torchvision's operators, and called with a key set
    # before the arguments. Then AutocastCPU, AutocastCUDA pass features on unchanged, where
    # torchvision's convert to float32
    recorded: type[torch.autograd.Function] | None = None
    tensors: int = 2  # number of those arguments

    # AutocastCPU, AutocastCUDA of other operators: the dtype torchvision's library converts to
    autocast: torch.dtype | None = None

    @property
    def name(self) -> str:
        return self.schema.partition("(")[0]

    @property
    def public(self) -> str:
        """The public op that runs."""
        return self.name.removeprefix("_").removesuffix("_backward")

    @property
    def op(self) -> Any:
        return getattr(torch.ops.torchvision, self.name).default


_DEFORM = (
    "Tensor weight, Tensor offset, Tensor mask, Tensor bias, SymInt stride_h, SymInt stride_w, "
    "SymInt pad_h, SymInt pad_w, SymInt dilation_h, SymInt dilation_w, SymInt groups, "
    "SymInt offset_groups, bool use_mask"
)
OPERATORS = (
    Operator(
        "box_iou_rotated(Tensor boxes1, Tensor boxes2) -> Tensor",
        kernel=boxes.box_iou_rotated,
        fake=boxes.fake_box_iou_rotated,
    ),
    Operator(
        "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
        kernel=ops.nms,
        fake=nms.fake,
        data_dependent=True,
        autocast=torch.float32,
    ),
    Operator(
        f"deform_conv2d(Tensor input, {_DEFORM}) -> Tensor",
        kernel=deform_conv2d.forward,
        fake=deform_conv2d.fake,
        recorded=deform_conv2d.Recorded,
        tensors=5,
    ),
    Operator(
        f"_deform_conv2d_backward(Tensor grad, Tensor input, {_DEFORM}) -> "
        "(Tensor, Tensor, Tensor, Tensor, Tensor)",
        kernel=deform_conv2d.backward,
        fake=deform_conv2d.fake_backward,
    ),
    Operator(
        "ps_roi_align(Tensor input, Tensor rois, float spatial_scale, SymInt pooled_height, "
        "SymInt pooled_width, int sampling_ratio) -> (Tensor, Tensor)",
        kernel=position_sensitive.ps_roi_align,
        fake=position_sensitive.fake,
        recorded=position_sensitive.PSRoIAlignRecorded,
    ),
    Operator(
        "_ps_roi_align_backward(Tensor grad, Tensor rois, Tensor channel_mapping, "
        "float spatial_scale, SymInt pooled_height, SymInt pooled_width, int sampling_ratio, "
        "SymInt batch_size, SymInt channels, SymInt height, SymInt width) -> Tensor",
        kernel=position_sensitive.ps_roi_align_backward,
        fake=roi_pool.fake_backward,
    ),
    Operator(
        "ps_roi_pool(Tensor input, Tensor rois, float spatial_scale, SymInt pooled_height, "
        "SymInt pooled_width) -> (Tensor, Tensor)",
        kernel=position_sensitive.ps_roi_pool,
        fake=position_sensitive.fake,
        recorded=position_sensitive.PSRoIPoolRecorded,
    ),
    Operator(
        "_ps_roi_pool_backward(Tensor grad, Tensor rois, Tensor channel_mapping, "
        "float spatial_scale, SymInt pooled_height, SymInt pooled_width, SymInt batch_size, "
        "SymInt channels, SymInt height, SymInt width) -> Tensor",
        kernel=position_sensitive.ps_roi_pool_backward,
        fake=roi_pool.fake_backward,
    ),
    Operator(
        "roi_align(Tensor input, Tensor rois, float spatial_scale, SymInt pooled_height, "
        "SymInt pooled_width, int sampling_ratio, bool aligned) -> Tensor",
        kernel=roi_align.forward,
        fake=roi_align.fake,
        recorded=roi_align.Recorded,
    ),
    Operator(
        "_roi_align_backward(Tensor grad, Tensor rois, float spatial_scale, SymInt pooled_height, "
        "SymInt pooled_width, SymInt batch_size, SymInt channels, SymInt height, SymInt width, "
        "int sampling_ratio, bool aligned) -> Tensor",
        kernel=roi_align.backward,
        fake=roi_align.fake_backward,
    ),
    Operator(
        "roi_pool(Tensor input, Tensor rois, float spatial_scale, SymInt pooled_height, "
        "SymInt pooled_width) -> (Tensor, Tensor)",
        kernel=roi_pool.forward,
        fake=roi_pool.fake,
        recorded=roi_pool.Recorded,
    ),
    Operator(
        "_roi_pool_backward(Tensor grad, Tensor rois, Tensor argmax, float spatial_scale, "
        "SymInt pooled_height, SymInt pooled_width, SymInt batch_size, SymInt channels, "
        "SymInt height, SymInt width) -> Tensor",
        kernel=roi_pool.backward,
        fake=roi_pool.fake_backward,
    ),
)

_CPU, _CUDA, _META, _PYTHON, _BACKEND_SELECT = (
    getattr(torch._C.DispatchKey, name)
    for name in ("CPU", "CUDA", "Meta", "Python", "BackendSelect")
)


def register(complete: bool) -> torch.library.Library:
    """Registers our kernels until the returned object is destroyed.

    ``complete``: torchvision has its compiled library.
    """
    library = torch.library.Library("torchvision", "IMPL")
    for operator in OPERATORS:
        library.impl(operator.name, _select(operator), "BackendSelect", with_keyset=True)
        _register_fake(library, operator, complete)
        for device in ("cpu", "cuda"):
            if operator.recorded is not None:
                _register_gradient(library, operator, operator.recorded, device, complete)
            elif operator.autocast is not None and not complete:
                _register_autocast(library, operator, operator.autocast, device)
        # torch caches the key that serves an operator and is not notified of changes
        operator.op._dispatch_cache.clear()
    return library


def _select(operator: Operator) -> _Kernel:
    """Runs ``kernel`` on active device types, otherwise the next kernel: torchvision's."""
    op, kernel = operator.op, operator.kernel
    fake = None if operator.data_dependent else operator.fake
    below = torch._C._dispatch_keyset_full_after(_BACKEND_SELECT)
    backends = below.remove(torch._C.DispatchKey.PythonDispatcher)  # part of every "below" set

    def select(keyset: Any, *args: Any) -> Any:
        if active := devices.active:
            key = (keyset & backends).highestPriorityTypeId()
            if (key == _CPU and "cpu" in active) or (key == _CUDA and "cuda" in active):
                return kernel(*args)
            if key == _META and fake is not None:
                tag_compiled()
                return fake(*args)
        return op.redispatch(keyset & below, *args)

    return select


def _register_fake(library: torch.library.Library, operator: Operator, complete: bool) -> None:
    if not operator.data_dependent:  # BackendSelect runs it on active devices
        if not complete:
            library.impl(operator.name, operator.fake, "Meta")
        return
    fakes = sys.modules["torchvision._meta_registrations"] if complete else None
    stock = getattr(fakes, f"meta_{operator.name}") if complete else None

    def fake(*args: Any) -> Any:
        tag_compiled()
        if stock is not None and not devices.active:
            return stock(*args)
        return operator.fake(*args)

    torch.library.register_fake(
        f"torchvision::{operator.name}", fake, lib=library, allow_override=True
    )


def _register_gradient(
    library: torch.library.Library,
    operator: Operator,
    recorded: type[torch.autograd.Function],
    device: str,
    complete: bool,
) -> None:
    # torchvision's stays registered for the alias key Autograd
    key = f"Autograd{device.upper()}"
    stock = torch.library.get_kernel(f"torchvision::{operator.name}", key) if complete else None
    autograd = _autograd(operator, recorded, device, stock)
    library.impl(operator.name, autograd, key, with_keyset=True)
    key = f"Autocast{device.upper()}"
    if torch._C._dispatch_has_kernel_for_dispatch_key(f"torchvision::{operator.name}", key):
        library.impl(operator.name, _autocast(operator, device, key), key, with_keyset=True)


def _register_autocast(
    library: torch.library.Library, operator: Operator, dtype: torch.dtype, device: str
) -> None:
    if torch.amp.is_autocast_available(device):
        torch.library.register_autocast(f"torchvision::{operator.name}", device, dtype, lib=library)


def _autograd(
    operator: Operator, recorded: type[torch.autograd.Function], device: str, stock: Any
) -> _Kernel:
    op, kernel, tensors = operator.op, operator.kernel, operator.tensors
    below = torch._C._after_autograd_keyset

    def autograd(keyset: Any, *args: Any) -> Any:
        if device in devices.active:
            if not keyset.has(_PYTHON):
                return kernel(*args)
            # a dispatch mode or tracer must see torchvision's operators
            if torch.is_grad_enabled() and any(x.requires_grad for x in args[:tensors]):
                return recorded.apply(keyset & below, *args)
        elif stock is not None:
            return stock.call_boxed(keyset, *args)
        with torch._C._AutoDispatchBelowAutograd():
            return op.redispatch(keyset & below, *args)

    return autograd


def _autocast(operator: Operator, device: str, key_name: str) -> _Kernel:
    op, tensors = operator.op, operator.tensors
    key = getattr(torch._C.DispatchKey, key_name)
    below = torch._C._dispatch_keyset_full_after(key)
    only = torch._C.DispatchKeySet(key)

    def autocast(keyset: Any, *args: Any) -> Any:
        # our kernels need no cast, but a recorded program must suit torchvision's as well
        if device in devices.active and not keyset.has(_PYTHON):
            return op.redispatch(keyset & below, *args)
        # does the same as torchvision's kernel for this key, which can no longer be called: if it
        # is written in Python, torch looks it up by operator and key and finds this one
        wide = map(_to_float32, args[:tensors])
        dtype = args[0].dtype
        with torch._C._ExcludeDispatchKeyGuard(only):
            results = op(*wide, *args[tensors:])
        if isinstance(results, tuple):
            return tuple(result.to(dtype) for result in results)
        return results.to(dtype)

    return autocast


def _to_float32(tensor: Tensor) -> Tensor:
    lower = tensor.is_floating_point() and tensor.dtype != torch.float64
    return tensor.float() if lower else tensor
