"""Loss from the distance IoU."""

from __future__ import annotations

from torch import Tensor

from ..reference.box_iou_loss import distance_loss as _diou_iou_loss
from .box_iou_loss import box_iou_loss

__all__ = ["_diou_iou_loss", "distance_box_iou_loss"]  # users of torchvision import both


def distance_box_iou_loss(
    boxes1: Tensor,
    boxes2: Tensor,
    reduction: str = "none",
    eps: float = 1e-7,
    *,
    backend: str | None = None,
) -> Tensor:
    """1 - distance IoU of each box with its counterpart.

    Zheng et al., Distance-IoU loss, 2020, equation 7.

    Args:
        boxes1: [..., 4] corners (x1, y1, x2, y2) of any floating-point or integer type.
        boxes2: [..., 4] of the same shape, or one that broadcasts with it.
        reduction: "none", "mean" or "sum".
        eps: added to the denominators.
        backend: "triton", "cpp" or "reference"; None picks the fastest that can run.

    Returns:
        [...] for "none", otherwise a scalar (0 for no boxes); in float64 for float64 boxes,
        otherwise in float32, in which 16-bit and integer boxes are computed.

    Differentiable in both arguments, any number of times.

    Raises:
        ValueError: another reduction; shapes or devices that do not fit; ``backend`` cannot run
            here.
        TypeError, NotImplementedError: an argument is no dense tensor.
    """
    return box_iou_loss(boxes1, boxes2, reduction, "distance", eps, backend)
