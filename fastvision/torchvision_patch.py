"""Unchanged torchvision code on fastvision's kernels: enable(), disable(), enabled().

Two layers, both undone by disable(). The operators ``torchvision::nms`` and
``torchvision::roi_align`` get our kernels in the dispatcher, which reaches every caller: eager,
TorchScript, autocast, torch.compile. What torchvision does around the operators in Python (a loop
over classes, a loop over pyramid levels) is replaced by name, in the module whose globals its own
functions look up, so that names bound elsewhere and modules already built are reached too.
sigmoid_focal_loss is not in the dispatcher, so it is replaced wherever torchvision itself binds it.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import importlib.util
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from . import _device, _extension, ops
from .ops import _backend
from .ops._checks import FLOATING
from .ops.roi_align import MAX_LEVELS, _as_rois, _run_backward

# what `import torchvision` and our kernels need where torchvision's own library cannot be loaded
_SCHEMAS = (
    "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "roi_align(Tensor input, Tensor rois, float spatial_scale, SymInt pooled_height, "
    "SymInt pooled_width, int sampling_ratio, bool aligned) -> Tensor",
    "_roi_align_backward(Tensor grad, Tensor rois, float spatial_scale, SymInt pooled_height, "
    "SymInt pooled_width, SymInt batch_size, SymInt channels, SymInt height, SymInt width, "
    "int sampling_ratio, bool aligned) -> Tensor",
)

# torchvision's modules that hold the name sigmoid_focal_loss, as far as they are imported
_BINDS_FOCAL_LOSS = (
    "torchvision.ops",
    "torchvision.ops.focal_loss",
    "torchvision.models.detection.fcos",
    "torchvision.models.detection.retinanet",
)

_lock = threading.RLock()
_on = False  # by enable()
_blocks = 0  # open enabled() blocks, of all threads
_undo: contextlib.ExitStack | None = None
_schemas: torch.library.Library | None = None  # they live as long as torchvision is imported


def enable() -> None:
    """Makes torchvision.ops, and all code that uses it, run on fastvision's kernels.

    Reaches nms, batched_nms, roi_align, RoIAlign and MultiScaleRoIAlign, forward and backward, in
    eager mode, torch.jit.script, torch.compile and autocast; names bound and models built before
    take part. sigmoid_focal_loss is reached as torchvision.ops.sigmoid_focal_loss and in
    torchvision's models; torch.jit.script, and names that others bound before, keep torchvision's.
    The answers are torchvision's, with these differences:

    - nms takes float16 and bfloat16 on the CPU, roi_align bfloat16; features may be of lower
      precision than the boxes, and autocast leaves them so instead of converting to float32.
    - batched_nms is exact per class.
    - roi_align is deterministic and can be differentiated twice and in forward mode (by autograd;
      for torch.func use fastvision.ops).
    - torch.compile handles an nms that keeps 0 or 1 boxes.
    - sigmoid_focal_loss has the limits at infinite logits, where torchvision's gives NaN, and does
      its arithmetic in float32 for 16-bit logits.

    Each device type is taken over only where a kernel can run on it; the rest, quantized tensors,
    tracing and ONNX export stay with torchvision. The setting is one for the whole process, and
    calling it again changes nothing.

    Called before ``import torchvision``, it also lets a torchvision be imported whose compiled
    library does not fit the installed torch; its detection models then run on fastvision's kernels.

    Raises:
        ModuleNotFoundError: torchvision is not installed.
    """
    with _lock:
        _switch(True, _blocks)


def disable() -> None:
    """Gives torchvision its own kernels back; inside an :func:`enabled` block, when that ends.

    A function that torch.compile has compiled meanwhile keeps the kernels it was compiled with.
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
    global _on, _blocks, _undo
    if (on or blocks) and _undo is None:
        _undo = _install()
    elif not (on or blocks) and _undo is not None:
        _undo.close()
        _undo = None
    _on, _blocks = on, blocks


def _install() -> contextlib.ExitStack:
    complete = _import_torchvision()
    devices = tuple(t for t in ("cpu", "cuda") if not complete or _has_kernels(t))
    if not devices:
        warnings.warn(
            "fastvision.enable() changes nothing: there is no kernel for this machine "
            f"({_extension.missing or _device.triton_missing()})",
            stacklevel=4,
        )
    with contextlib.ExitStack() as undo:
        if devices:
            _register(undo, devices, complete)
            _replace_names(undo, devices, complete)
        return undo.pop_all()


def _has_kernels(device_type: str) -> bool:
    """Whether more than the reference can run there. Asks no device: that would initialise CUDA."""
    runs = {
        "cpp": device_type == "cpu" and _extension.missing is None,
        "cuda": device_type == "cuda" and bool(_extension.cuda_architectures()),
        "triton": _device.triton_missing() is None
        and (device_type == "cuda" or _device.triton_interpreted()),
    }
    requested = _backend.requested_by_environment
    return any(
        runs.get(b, False) for b in ((requested,) if requested else _backend._ORDER[device_type])
    )


# --- torchvision with and without its compiled library


def _import_torchvision() -> bool:
    """Imports torchvision and says whether its compiled library is loaded."""
    if "torchvision" not in sys.modules:
        spec = importlib.util.find_spec("torchvision")
        if spec is None or spec.origin is None:
            raise ModuleNotFoundError("fastvision.enable() needs torchvision", name="torchvision")
        _load_or_define(Path(spec.origin).parent)
    extension = importlib.import_module("torchvision.extension")
    importlib.import_module("torchvision.ops")
    return bool(extension._has_ops())


def _load_or_define(package: Path) -> None:
    # the library ends the process if it finds its schemas defined, so it is always tried first
    global _schemas
    for library in sorted(package.glob("_C*.so")):
        if not hasattr(torch.ops.torchvision, "nms"):
            with contextlib.suppress(OSError):
                torch.ops.load_library(str(library))
    if not hasattr(torch.ops.torchvision, "nms"):
        _schemas = torch.library.Library("torchvision", "FRAGMENT")
        for schema in _SCHEMAS:
            _schemas.define(schema)


# --- the operators


def _register(undo: contextlib.ExitStack, devices: tuple[str, ...], complete: bool) -> None:
    undo.callback(_forget_dispatch)
    library = torch.library.Library("torchvision", "IMPL")
    undo.callback(library._destroy)
    for key in (device.upper() for device in devices):
        library.impl("nms", ops.nms, key)
        library.impl("roi_align", _roi_align, key)
        library.impl("_roi_align_backward", _roi_align_backward, key)
        # comes before torchvision's, which is on the alias key Autograd
        library.impl("roi_align", _roi_align, f"Autograd{key}")
        # torchvision converts features to float32 here; the kernels take them as they are
        library.impl("roi_align", torch.library.fallthrough_kernel, f"Autocast{key}")
    library.impl("roi_align", _fake_roi_align, "Meta")
    library.impl("_roi_align_backward", _fake_roi_align_backward, "Meta")
    torch.library.register_fake("torchvision::nms", _fake_nms, lib=library, allow_override=True)
    _forget_dispatch()
    if not complete:
        for device in devices:
            if torch.amp.is_autocast_available(device):
                torch.library.register_autocast(
                    "torchvision::nms", device, torch.float32, lib=library
                )


def _forget_dispatch() -> None:
    """torch.compile remembers which key serves an operator, and is not told of changes."""
    for name in ("nms", "roi_align", "_roi_align_backward"):
        getattr(torch.ops.torchvision, name).default._dispatch_cache.clear()


def _roi_align(
    input: Tensor,
    rois: Tensor,
    spatial_scale: float,
    pooled_height: int,
    pooled_width: int,
    sampling_ratio: int,
    aligned: bool,
) -> Tensor:
    try:
        pooled = ops.roi_align(
            input, rois, (pooled_height, pooled_width), spatial_scale, sampling_ratio, aligned
        )
    except (AssertionError, TypeError, ValueError) as error:
        raise RuntimeError(str(error)) from error  # as torchvision's operator
    # torchvision's result is contiguous, and callers view() it
    return pooled.contiguous()


def _roi_align_backward(
    grad: Tensor,
    rois: Tensor,
    spatial_scale: float,
    pooled_height: int,
    pooled_width: int,
    batch_size: int,
    channels: int,
    height: int,
    width: int,
    sampling_ratio: int,
    aligned: bool,
) -> Tensor:
    """For graphs that torchvision's own autograd has recorded, before enable()."""
    backend = _backend.choose(grad, None)
    if backend == "reference":
        raise RuntimeError(f"no kernel for the backward of torchvision::roi_align on {grad.device}")
    options = ([spatial_scale], pooled_height, pooled_width, sampling_ratio, aligned, 0.0, 0.0, 0)
    sizes = [batch_size, height, width]
    return _run_backward(backend, _as_rois(rois, grad), options, sizes, False, grad)[0]


def _fake_roi_align(
    input: Tensor,
    rois: Tensor,
    spatial_scale: float,
    pooled_height: int,
    pooled_width: int,
    *_: Any,
) -> Tensor:
    return input.new_empty((rois.shape[0], input.shape[1], pooled_height, pooled_width))


def _fake_roi_align_backward(
    grad: Tensor,
    rois: Tensor,
    spatial_scale: float,
    pooled_height: int,
    pooled_width: int,
    batch_size: int,
    channels: int,
    height: int,
    width: int,
    *_: Any,
) -> Tensor:
    return grad.new_empty((batch_size, channels, height, width))


def _fake_nms(dets: Tensor, scores: Tensor, iou_threshold: float) -> Tensor:
    kept = torch.library.get_ctx().new_dynamic_size(min=0)  # torchvision's says at least 2
    return dets.new_empty(kept, dtype=torch.int64)


# --- the functions around them


def _replace_names(undo: contextlib.ExitStack, devices: tuple[str, ...], complete: bool) -> None:
    boxes = importlib.import_module("torchvision.ops.boxes")
    poolers = importlib.import_module("torchvision.ops.poolers")
    roi_align = importlib.import_module("torchvision.ops.roi_align")
    for name in ("_batched_nms_vanilla", "_batched_nms_coordinate_trick"):
        _replace(undo, boxes, name, _batched_nms_instead_of(getattr(boxes, name), devices))
    _replace(
        undo,
        poolers,
        "_multiscale_roi_align",
        _multiscale_roi_align_instead_of(poolers._multiscale_roi_align, poolers, devices),
    )
    # deterministic mode takes torchvision's slow Python version wherever this says yes
    stock = roi_align.is_compile_supported
    _replace(undo, roi_align, "is_compile_supported", lambda t: t not in devices and stock(t))
    if not complete:
        for module in (boxes, roi_align):
            _replace(undo, module, "_assert_has_ops", _assert_has_ops)
    stock_loss = sys.modules["torchvision.ops.focal_loss"].sigmoid_focal_loss
    loss = _sigmoid_focal_loss_instead_of(stock_loss, devices)
    for name in _BINDS_FOCAL_LOSS:
        if getattr(sys.modules.get(name), "sigmoid_focal_loss", None) is stock_loss:
            _replace(undo, sys.modules[name], "sigmoid_focal_loss", loss)


def _replace(
    undo: contextlib.ExitStack, module: ModuleType, name: str, replacement: Callable[..., Any]
) -> None:
    stock = getattr(module, name)

    def restore() -> None:
        if getattr(module, name) is replacement:  # unless someone else has replaced it since
            setattr(module, name, stock)

    setattr(module, name, replacement)
    undo.callback(restore)


def _assert_has_ops() -> None:
    pass


def _is_exporting() -> bool:
    """Exported programs hold torchvision's operators alone, so that they run without fastvision."""
    return torch._C._get_tracing_state() is not None or torch.compiler.is_exporting()


def _keeping_torchscript(stock: Callable[..., Tensor]) -> Callable[[Any], Any]:
    """Decorates a replacement of ``stock``: torch.jit.script compiles ``stock`` in its place."""

    def decorate(replacement: Callable[..., Tensor]) -> Callable[..., Tensor]:
        # without stock's attributes: by them torch.compile would find stock
        replacement = functools.update_wrapper(replacement, stock, updated=())
        replacement.__prepare_scriptable__ = lambda: stock  # type: ignore[attr-defined]
        return replacement

    return decorate


def _batched_nms_instead_of(
    stock: Callable[..., Tensor], devices: tuple[str, ...]
) -> Callable[..., Tensor]:
    @_keeping_torchscript(stock)
    def batched_nms(boxes: Tensor, scores: Tensor, idxs: Tensor, iou_threshold: float) -> Tensor:
        if _is_exporting() or boxes.device.type not in devices or boxes.is_quantized:
            return stock(boxes, scores, idxs, iou_threshold)
        if boxes.numel() and idxs.device != boxes.device:
            idxs = idxs.to(boxes.device)
        return ops.batched_nms(boxes, scores, idxs, iou_threshold)

    return batched_nms


def _multiscale_roi_align_instead_of(
    stock: Callable[..., Tensor], poolers: Any, devices: tuple[str, ...]
) -> Callable[..., Tensor]:
    @_keeping_torchscript(stock)
    def multiscale_roi_align(
        x_filtered: list[Tensor],
        boxes: list[Tensor],
        output_size: list[int],
        sampling_ratio: int,
        scales: list[float] | None,
        mapper: Any,
    ) -> Tensor:
        levels = len(x_filtered)
        if (
            _is_exporting()
            or scales is None
            or mapper is None
            or not 1 <= levels <= MAX_LEVELS
            or len(scales) != levels
            # a pyramid with a gap: torchvision leaves zeros for the boxes of the missing levels
            or (levels > 1 and mapper.k_max - mapper.k_min + 1 != levels)
            or x_filtered[0].device.type not in devices
            or x_filtered[0].is_quantized
        ):
            return stock(x_filtered, boxes, output_size, sampling_ratio, scales, mapper)
        pooled = ops.multiscale_roi_align(
            x_filtered,
            poolers._convert_to_roi_format(boxes),
            output_size,
            scales,
            sampling_ratio,
            canonical_scale=mapper.s0,
            canonical_level=mapper.lvl0,
            min_level=mapper.k_min,
        )
        return pooled.contiguous()

    return multiscale_roi_align


def _sigmoid_focal_loss_instead_of(
    stock: Callable[..., Tensor], devices: tuple[str, ...]
) -> Callable[..., Tensor]:
    @_keeping_torchscript(stock)
    def sigmoid_focal_loss(
        inputs: Tensor,
        targets: Tensor,
        alpha: float = 0.25,
        gamma: float = 2,
        reduction: str = "none",
    ) -> Tensor:
        if (
            _undo is None  # disabled, but someone has bound the name meanwhile
            or _is_exporting()
            or not isinstance(inputs, Tensor)
            or not isinstance(targets, Tensor)
            or inputs.dtype not in FLOATING
            or targets.dtype not in FLOATING
            or inputs.shape != targets.shape
            or inputs.device.type not in devices
            or targets.device != inputs.device
            or not gamma >= 0
        ):
            return stock(inputs, targets, alpha, gamma, reduction)
        return ops.sigmoid_focal_loss(inputs, targets, alpha, gamma, reduction)

    return sigmoid_focal_loss
