"""Unchanged torchvision code on fastvision's kernels: enable(), disable(), enabled().

Two layers. The operators ``torchvision::nms`` and ``torchvision::roi_align`` get kernels of ours in
the dispatcher, which reaches every caller: eager, TorchScript, autocast, compiled programs. They
are registered once and stay, since the dispatcher has no lock against a kernel that goes while
another thread runs it; in each call they look at ``_devices`` and hand on to torchvision's kernels
where that says so. They stand above the kernels of the devices, not in their place
(BackendSelect), so handing on is an ordinary redispatch. A program that is being recorded (by
torch.compile, export, make_fx) gets torchvision's operators, and finds our kernels when it runs.

What torchvision does around the operators in Python (a loop over classes, a loop over pyramid
levels) is replaced by name, in the module whose globals its own functions look up, so that names
bound elsewhere and modules already built are reached too. sigmoid_focal_loss is not in the
dispatcher, so it is replaced wherever torchvision itself binds it.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import importlib.util
import os
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from . import _device, _extension, ops
from ._version import __version__
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

_CPU, _CUDA, _META, _PYTHON, _BACKEND_SELECT = (
    getattr(torch._C.DispatchKey, name)
    for name in ("CPU", "CUDA", "Meta", "Python", "BackendSelect")
)

_lock = threading.RLock()
# a fork may happen while another thread holds it
os.register_at_fork(after_in_child=lambda: globals().update(_lock=threading.RLock()))
_on = False  # by enable()
_blocks = 0  # open enabled() blocks, of all threads
_devices: tuple[str, ...] = ()  # types of device that run on our kernels at this moment
_installed: _Installed | None = None
_schemas: torch.library.Library | None = None  # they live as long as torchvision is imported


def enable() -> None:
    """Makes torchvision.ops, and all code that uses it, run on fastvision's kernels.

    Reaches nms, batched_nms, roi_align, RoIAlign and MultiScaleRoIAlign, forward and backward, in
    eager mode, torch.jit.script, torch.compile and autocast; names bound and models built before
    take part. sigmoid_focal_loss is reached as torchvision.ops.sigmoid_focal_loss and in
    torchvision's models; torch.jit.script, and names that others bound before, keep torchvision's.
    The answers are torchvision's, with these differences:

    - nms takes float16 and bfloat16 on the CPU, roi_align bfloat16; features may be of lower
      precision than the boxes, and autocast leaves them so instead of converting to float32 (except
      in compiled and exported programs).
    - batched_nms is exact per class. The order of equal scores is torchvision's, in eager mode and
      in TorchScript: by index up to 1000 boxes on the CPU, as its sort leaves them beyond;
      fastvision.ops.batched_nms always orders them by index.
    - roi_align is deterministic and can be differentiated twice and in forward mode (by autograd;
      for torch.func use fastvision.ops).
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
    global _on, _blocks, _devices
    if (on or blocks) and not (_on or _blocks):
        _devices = _install()
        _swap_names()
    elif not (on or blocks) and (_on or _blocks):
        _devices = ()
        _swap_names()
    _on, _blocks = on, blocks
    if _installed is not None:
        _tag_compiled()


class _Installed:
    """What stays for good: kernels in the dispatcher, and both functions of each name."""

    def __init__(self, complete: bool) -> None:
        self.library = torch.library.Library("torchvision", "IMPL")
        _register(self.library, complete)
        self.names = _functions_by_name(complete)


def _install() -> tuple[str, ...]:
    """Does once what is done once; the types of device that can run on our kernels."""
    global _installed
    complete = _import_torchvision()
    devices = tuple(t for t in ("cpu", "cuda") if not complete or _has_kernels(t))
    if not devices:
        warnings.warn(
            "fastvision.enable() changes nothing: there is no kernel for this machine "
            f"({_extension.missing or _device.triton_missing()})",
            stacklevel=4,
        )
    elif _installed is None:
        _installed = _Installed(complete)
    return devices


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


def _register(library: torch.library.Library, complete: bool) -> None:
    namespace = torch.ops.torchvision
    fakes: dict[str, _Kernel] = {
        "roi_align": _fake_roi_align,
        "_roi_align_backward": _fake_roi_align_backward,
    }
    for name, kernel in (
        ("nms", ops.nms),
        ("roi_align", _roi_align),
        ("_roi_align_backward", _roi_align_backward),
    ):
        op = getattr(namespace, name).default
        select = _select_of(op, kernel, fakes.get(name))
        library.impl(name, select, "BackendSelect", with_keyset=True)
    for device in ("cpu", "cuda"):
        # torchvision's is on the alias key Autograd, and stays there
        key = f"Autograd{device.upper()}"
        stock = torch.library.get_kernel("torchvision::roi_align", key) if complete else None
        library.impl("roi_align", _autograd_of(device, stock), key, with_keyset=True)
        key = f"Autocast{device.upper()}"
        library.impl("roi_align", _autocast_of(device, key, complete), key, with_keyset=True)
    stock_fake = sys.modules["torchvision._meta_registrations"].meta_nms if complete else None
    torch.library.register_fake(
        "torchvision::nms", _fake_nms_instead_of(stock_fake), lib=library, allow_override=True
    )
    if not complete:
        for name, fake in fakes.items():
            library.impl(name, fake, "Meta")
        for device in ("cpu", "cuda"):
            if torch.amp.is_autocast_available(device):
                torch.library.register_autocast(
                    "torchvision::nms", device, torch.float32, lib=library
                )
    # torch.compile remembers which key serves an operator, and is not told of changes
    for name in ("nms", *fakes):
        getattr(namespace, name).default._dispatch_cache.clear()


_Kernel = Callable[..., Tensor]


def _select_of(op: Any, kernel: _Kernel, fake: _Kernel | None) -> _Kernel:
    """``kernel`` where it is on, or else the next kernel below: torchvision's for the device."""
    below = torch._C._dispatch_keyset_full_after(_BACKEND_SELECT)
    backends = below.remove(torch._C.DispatchKey.PythonDispatcher)  # which is below every key

    def select(keyset: Any, *args: Any) -> Tensor:
        if _devices:
            key = (keyset & backends).highestPriorityTypeId()
            if (key == _CPU and "cpu" in _devices) or (key == _CUDA and "cuda" in _devices):
                return kernel(*args)
            if key == _META and fake is not None:
                _tag_compiled()
                return fake(*args)
        return op.redispatch(keyset & below, *args)

    return select


def _autograd_of(device: str, stock: Any) -> _Kernel:
    op = torch.ops.torchvision.roi_align.default
    below = torch._C._after_autograd_keyset

    def autograd(keyset: Any, *args: Any) -> Tensor:
        if device in _devices:
            if not keyset.has(_PYTHON):
                return _roi_align(*args)
            # somebody records or watches operators, and shall see torchvision's
            if torch.is_grad_enabled() and (args[0].requires_grad or args[1].requires_grad):
                return _RecordedRoIAlign.apply(keyset & below, *args)
        elif stock is not None:
            return stock.call_boxed(keyset, *args)
        with torch._C._AutoDispatchBelowAutograd():
            return op.redispatch(keyset & below, *args)

    return autograd


class _RecordedRoIAlign(torch.autograd.Function):
    """torchvision's operators in both directions.

    torchvision's own formula is the same, but refuses CUDA in deterministic mode.
    """

    @staticmethod
    def forward(ctx: Any, keyset: Any, input: Tensor, rois: Tensor, *options: Any) -> Tensor:
        ctx.save_for_backward(rois)
        ctx.shape, ctx.options = input.shape, options
        with torch._C._AutoDispatchBelowAutograd():
            return torch.ops.torchvision.roi_align.default.redispatch(keyset, input, rois, *options)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        (rois,) = ctx.saved_tensors
        scale, height, width, *sampling = ctx.options
        grad_input = torch.ops.torchvision._roi_align_backward(
            grad, rois, scale, height, width, *ctx.shape, *sampling
        )
        return (None, grad_input, *(None,) * 6)


def _autocast_of(device: str, key_name: str, complete: bool) -> _Kernel:
    op = torch.ops.torchvision.roi_align.default
    key = getattr(torch._C.DispatchKey, key_name)
    below = torch._C._dispatch_keyset_full_after(key)
    only = torch._C.DispatchKeySet(key)

    def autocast(keyset: Any, *args: Any) -> Tensor:
        # the kernels take features as they are. What is recorded has to suit torchvision's, too
        if not complete or (device in _devices and not keyset.has(_PYTHON)):
            return op.redispatch(keyset & below, *args)
        # as torchvision's kernel for this key, which cannot be called any more: where it is written
        # in Python, torch looks it up by operator and key, and finds this one
        input, rois, *options = args
        with torch._C._ExcludeDispatchKeyGuard(only):
            pooled = op(_to_float32(input), _to_float32(rois), *options)
        return pooled.to(input.dtype)

    return autocast


def _to_float32(tensor: Tensor) -> Tensor:
    lower = tensor.is_floating_point() and tensor.dtype != torch.float64
    return tensor.float() if lower else tensor


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


def _fake_nms_instead_of(stock: _Kernel | None) -> _Kernel:
    def fake_nms(dets: Tensor, scores: Tensor, iou_threshold: float) -> Tensor:
        _tag_compiled()
        if stock is not None and not _devices:
            return stock(dets, scores, iou_threshold)
        kept = torch.library.get_ctx().new_dynamic_size(min=0)  # torchvision's says at least 2
        return dets.new_empty(kept, dtype=torch.int64)

    return fake_nms


_TAG = f"fastvision-{__version__}"


def _tag_compiled() -> None:
    """Keeps programs compiled now and programs compiled without us apart in the caches on disk.

    They have the same operators, but other assumptions about their results (as of nms, above).
    The tag belongs to one thread, so the fakes set it as well: a thread that compiles runs them
    before it asks a cache. What a user adds to it stays.
    """
    from torch.compiler import config

    tag = config.cache_key_tag
    if _devices and not tag.endswith(_TAG):
        config.cache_key_tag = tag + _TAG
    elif not _devices and tag.endswith(_TAG):
        config.cache_key_tag = tag.removesuffix(_TAG)


# --- the functions around them


def _functions_by_name(complete: bool) -> list[tuple[str, str, Any, Any]]:
    """Module, name, torchvision's function and ours."""
    boxes, poolers, roi_align, focal_loss = (
        importlib.import_module(f"torchvision.ops.{name}")
        for name in ("boxes", "poolers", "roi_align", "focal_loss")
    )
    replacements = [
        (boxes, "_batched_nms_vanilla", _batched_nms_instead_of(boxes._batched_nms_vanilla, True)),
        (
            boxes,
            "_batched_nms_coordinate_trick",
            _batched_nms_instead_of(boxes._batched_nms_coordinate_trick, False),
        ),
        (
            poolers,
            "_multiscale_roi_align",
            _multiscale_roi_align_instead_of(poolers._multiscale_roi_align, poolers),
        ),
        (
            roi_align,
            "is_compile_supported",
            _is_compile_supported_instead_of(roi_align.is_compile_supported),
        ),
    ]
    if not complete:
        replacements += [
            (module, "_assert_has_ops", _assert_has_ops) for module in (boxes, roi_align)
        ]
    names = [
        (module.__name__, name, getattr(module, name), ours) for module, name, ours in replacements
    ]
    stock = focal_loss.sigmoid_focal_loss
    loss = _sigmoid_focal_loss_instead_of(stock)
    return names + [(name, "sigmoid_focal_loss", stock, loss) for name in _BINDS_FOCAL_LOSS]


def _swap_names() -> None:
    """Ours where we are on, torchvision's otherwise; what someone else has put there stays."""
    for module_name, name, stock, ours in () if _installed is None else _installed.names:
        module = sys.modules.get(module_name)
        before, after = (stock, ours) if _devices else (ours, stock)
        if getattr(module, name, None) is before:
            setattr(module, name, after)


def _assert_has_ops() -> None:
    pass


def _is_compile_supported_instead_of(stock: Callable[[str], bool]) -> Callable[[str], bool]:
    def is_compile_supported(device_type: str) -> bool:
        # deterministic mode takes torchvision's slow Python version wherever this says yes
        return device_type not in _devices and stock(device_type)

    return is_compile_supported


def _is_exporting() -> bool:
    """Exported programs hold torchvision's operators alone, so that they run without fastvision."""
    return torch._C._get_tracing_state() is not None or torch.compiler.is_exporting()


def _keeping_torchscript(stock: _Kernel) -> Callable[[Any], Any]:
    """Decorates a replacement of ``stock``: torch.jit.script compiles ``stock`` in its place."""

    def decorate(replacement: _Kernel) -> _Kernel:
        # without stock's attributes: by them torch.compile would find stock
        replacement = functools.update_wrapper(replacement, stock, updated=())
        replacement.__prepare_scriptable__ = lambda: stock  # type: ignore[attr-defined]
        return replacement

    return decorate


def _in_order_of_sort(kept: Tensor, scores: Tensor) -> Tensor:
    """Equal scores in the order that torchvision's loop gives them.

    Its last step is a sort that is not stable, whose order of equal scores depends on its input
    alone. TorchScript runs that loop, and must agree with eager mode.
    """
    by_score = scores[kept]
    # no score equals another one; not asked while compiling, where the answer is not known
    if not torch.compiler.is_compiling() and (by_score[:-1] > by_score[1:]).all():
        return kept
    kept = kept.sort()[0]
    return kept[scores[kept].sort(descending=True)[1]]


def _batched_nms_instead_of(stock: _Kernel, sorts: bool) -> _Kernel:
    @_keeping_torchscript(stock)
    def batched_nms(boxes: Tensor, scores: Tensor, idxs: Tensor, iou_threshold: float) -> Tensor:
        if _is_exporting() or boxes.device.type not in _devices or boxes.is_quantized:
            return stock(boxes, scores, idxs, iou_threshold)
        if boxes.numel() and idxs.device != boxes.device:
            idxs = idxs.to(boxes.device)
        kept = ops.batched_nms(boxes, scores, idxs, iou_threshold)
        return _in_order_of_sort(kept, scores) if sorts else kept

    return batched_nms


def _multiscale_roi_align_instead_of(stock: _Kernel, poolers: Any) -> _Kernel:
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
            or x_filtered[0].device.type not in _devices
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


def _sigmoid_focal_loss_instead_of(stock: _Kernel) -> _Kernel:
    @_keeping_torchscript(stock)
    def sigmoid_focal_loss(
        inputs: Tensor,
        targets: Tensor,
        alpha: float = 0.25,
        gamma: float = 2,
        reduction: str = "none",
    ) -> Tensor:
        if (
            _is_exporting()
            or not isinstance(inputs, Tensor)
            or not isinstance(targets, Tensor)
            or inputs.dtype not in FLOATING
            or targets.dtype not in FLOATING
            or inputs.shape != targets.shape
            or inputs.device.type not in _devices
            or targets.device != inputs.device
            or not gamma >= 0
        ):
            return stock(inputs, targets, alpha, gamma, reduction)
        return ops.sigmoid_focal_loss(inputs, targets, alpha, gamma, reduction)

    return sigmoid_focal_loss
