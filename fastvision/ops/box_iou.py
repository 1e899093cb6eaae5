"""Overlap of every box of one set with every box of another, in one pass over the pairs."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .. import reference
from ..reference.box_iou import FORMATS, KINDS
from ._box_pairs import check_sets, gradients, of_batches
from ._checks import is_traced, is_transformed, needs_gradient, number
from ._library import declare
from .box_convert import ROTATED, box_convert
from .box_iou_rotated import box_iou_rotated

_IOU, _GENERALIZED, _DISTANCE, _COMPLETE = range(4)


def _fake(
    boxes1: Tensor, boxes2: Tensor, kind: int, format: int, eps: float, narrow: bool
) -> Tensor:
    batch = torch.broadcast_shapes(boxes1.shape[:-2], boxes2.shape[:-2])
    wide = boxes1.dtype == torch.float64 and not narrow
    return boxes1.new_empty(
        (*batch, boxes1.shape[-2], boxes2.shape[-2]), dtype=torch.float64 if wide else torch.float32
    )


def _fake_backward(
    grad: Tensor, boxes1: Tensor, boxes2: Tensor, kind: int, format: int, eps: float
) -> tuple[Tensor, Tensor]:
    batch = grad.shape[:-2]
    first, second = (grad.new_empty((*batch, b.shape[-2], 4)) for b in (boxes1, boxes2))
    return first, second


def _reference(
    boxes1: Tensor, boxes2: Tensor, kind: int, format: int, eps: float, narrow: bool
) -> Tensor:
    overlap = reference.box_iou(boxes1, boxes2, KINDS[kind], FORMATS[format], eps)
    return overlap.float() if narrow else overlap


# boxes [N, 4] and [M, 4], or [B, N, 4] and [B, M, 4] where either B may be 1.
# kind: index in KINDS; format: index in FORMATS; narrow: float32 results of float64 boxes
_FORWARD = declare(
    "box_iou",
    "(Tensor boxes1, Tensor boxes2, int kind, int format, float eps, bool narrow) -> Tensor",
    fake=_fake,
    triton="kernels.box_iou.launch_box_iou",
    reference=_reference,
    lacks={"cuda": "the Triton kernel serves GPUs"},
    serves=("box_iou", "generalized_box_iou", "distance_box_iou", "complete_box_iou"),
)
_BACKWARD = declare(
    "box_iou_backward",
    "(Tensor grad, Tensor boxes1, Tensor boxes2, int kind, int format, float eps) "
    "-> (Tensor, Tensor)",
    fake=_fake_backward,
    triton="kernels.box_iou.launch_box_iou_backward",
)


class _BoxIou(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, boxes1: Tensor, boxes2: Tensor, kind: int, format: int, eps: float, backend: str
    ) -> Tensor:
        ctx.save_for_backward(boxes1, boxes2)
        ctx.options, ctx.backend = (kind, format, eps), backend
        result: Tensor = _FORWARD.run[backend](boxes1, boxes2, kind, format, eps, False)
        return result

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        boxes1, boxes2 = ctx.saved_tensors
        kind, format, eps = ctx.options
        if is_transformed() or needs_gradient((grad, boxes1, boxes2)):
            names = KINDS[kind], FORMATS[format]
            grads = reference.box_iou_backward(grad, boxes1, boxes2, *names, eps)
        else:
            grads = _BACKWARD.run[ctx.backend](grad, boxes1, boxes2, *ctx.options)
        return *gradients(grads, (boxes1, boxes2)), None, None, None, None


def _run(
    boxes1: Tensor, boxes2: Tensor, kind: int, format: int, eps: float, narrow: bool, backend: str
) -> Tensor:
    if needs_gradient((boxes1, boxes2)) and not narrow:
        result: Tensor = _BoxIou.apply(boxes1, boxes2, kind, format, eps, backend)
        return result
    result = _FORWARD.run[backend](boxes1, boxes2, kind, format, eps, narrow)
    return result


def _overlaps(
    boxes1: Tensor, boxes2: Tensor, kind: int, format: int, eps: float, backend: str | None
) -> Tensor:
    """[..., N, M] of the arguments of a public function."""
    if not is_traced():  # which would take sizes for constants
        check_sets(boxes1, boxes2, 4)
    result_dtype, narrow = None, False
    if boxes1.dtype != boxes2.dtype or not boxes1.is_floating_point():
        dtype = torch.promote_types(boxes1.dtype, boxes2.dtype)
        if not dtype.is_floating_point:
            # in float64, products of integers do not overflow; a quotient has the default dtype
            dtype, result_dtype = torch.float64, torch.get_default_dtype()
            narrow = result_dtype != torch.float64
        boxes1, boxes2 = boxes1.to(dtype), boxes2.to(dtype)
    chosen = _FORWARD.choose(boxes1, backend)
    if chosen == "reference" or is_transformed() or is_traced():
        boxes1 = boxes1.unsqueeze(0) if boxes1.dim() == 1 else boxes1
        overlap = _reference(boxes1, boxes2, kind, format, eps, narrow)
    else:
        overlap = of_batches(
            lambda b1, b2: _run(b1, b2, kind, format, eps, narrow, chosen), boxes1, boxes2
        )
    return overlap if result_dtype is None else overlap.to(result_dtype)


def box_iou(
    boxes1: Tensor, boxes2: Tensor, fmt: str = "xyxy", *, backend: str | None = None
) -> Tensor:
    """Intersection over union of every box of one set with every box of another.

    One pass over the pairs: beyond the result, memory is a few numbers per box of a tile.

    Args:
        boxes1: [..., N, K] boxes in ``fmt``; float16, bfloat16, float32, float64 or integers.
        boxes2: [..., M, K]; leading dimensions broadcast with those of ``boxes1``.
        fmt: with K = 4 "xyxy" (x1, y1, x2, y2), "xywh" (x1, y1, width, height) or "cxcywh" (center,
            width, height). Rotated boxes in degrees: "cxcywhr" and "xywhr" with K = 5, "xyxyxyxy"
            with K = 8; see :func:`box_iou_rotated` and :func:`box_convert`.
        backend: "triton", "cpp" or "reference"; None picks the fastest that can run.

    Returns:
        [..., N, M] in float32 (float64 for float64 boxes, the default dtype for integer ones; for
        rotated boxes always float32). float32 results have torchvision's bits. 16-bit boxes are
        computed in float32 and integer ones in float64, so that nothing overflows or wraps around.
        NaN where a coordinate is NaN and where the union is 0.

    Differentiable in both sets, any number of times.

    Raises:
        TypeError: an argument is no tensor, or of a complex, boolean or quantized type.
        ValueError: an unknown ``fmt``; shapes or devices that do not fit; ``backend`` cannot run.
        NotImplementedError: a sparse or nested tensor.
    """
    if fmt in FORMATS:
        return _overlaps(boxes1, boxes2, _IOU, FORMATS.index(fmt), 0.0, backend)
    if fmt not in ROTATED:
        raise ValueError(
            f"Unsupported format '{fmt}'. Supported axis-aligned formats: {FORMATS}. "
            f"Supported rotated formats: {ROTATED}."
        )
    if fmt != "cxcywhr":
        boxes1, boxes2 = (box_convert(boxes, fmt, "cxcywhr") for boxes in (boxes1, boxes2))
    return box_iou_rotated(boxes1, boxes2, backend=backend).float()


def generalized_box_iou(boxes1: Tensor, boxes2: Tensor, *, backend: str | None = None) -> Tensor:
    """IoU minus the share of the smallest box around both that neither covers.

    Rezatofighi et al., Generalized intersection over union, 2019.

    Args:
        boxes1: [..., N, 4] corners (x1, y1, x2, y2), of the dtypes of :func:`box_iou`.
        boxes2: [..., M, 4].
        backend: see :func:`box_iou`.

    Returns:
        [..., N, M] from -1 to 1, in the dtype of :func:`box_iou`'s result and differentiable alike.

    Raises:
        TypeError, ValueError, NotImplementedError: as :func:`box_iou`.
    """
    return _overlaps(boxes1, boxes2, _GENERALIZED, 0, 0.0, backend)


def distance_box_iou(
    boxes1: Tensor, boxes2: Tensor, eps: float = 1e-7, *, backend: str | None = None
) -> Tensor:
    """IoU minus the squared distance of the centers, divided by the squared diagonal of the
    smallest enclosing box.

    Zheng et al., Distance-IoU loss, 2020, equation 7.

    Args:
        boxes1: [..., N, 4] corners (x1, y1, x2, y2), of the dtypes of :func:`box_iou`.
        boxes2: [..., M, 4].
        eps: added to the denominator.
        backend: see :func:`box_iou`.

    Returns:
        [..., N, M] from -1 to 1, in the dtype of :func:`box_iou`'s result and differentiable alike.

    Raises:
        TypeError, ValueError, NotImplementedError: as :func:`box_iou`.
    """
    return _overlaps(boxes1, boxes2, _DISTANCE, 0, number(eps, "eps"), backend)


def complete_box_iou(
    boxes1: Tensor, boxes2: Tensor, eps: float = 1e-7, *, backend: str | None = None
) -> Tensor:
    """:func:`distance_box_iou` minus a penalty for different aspect ratios.

    Zheng et al., Distance-IoU loss, 2020, equations 8 to 11: the penalty is alpha * v with
    v = 4 / pi^2 (atan(w1 / h1) - atan(w2 / h2))^2 and alpha = v / (1 - IoU + v + eps), which is a
    constant to derivatives.

    Args:
        boxes1: [..., N, 4] corners (x1, y1, x2, y2), of the dtypes of :func:`box_iou`.
        boxes2: [..., M, 4].
        eps: added to the denominators.
        backend: see :func:`box_iou`.

    Returns:
        [..., N, M] in the dtype of :func:`box_iou`'s result and differentiable alike. NaN where
        width and height of a box are both 0; there the penalty has a gradient of 0, torchvision's
        has NaN.

    Raises:
        TypeError, ValueError, NotImplementedError: as :func:`box_iou`.
    """
    return _overlaps(boxes1, boxes2, _COMPLETE, 0, number(eps, "eps"), backend)
