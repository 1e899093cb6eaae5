"""Loss from the complete IoU."""

from __future__ import annotations

from torch import Tensor

from .box_iou_loss import box_iou_loss


def complete_box_iou_loss(
    boxes1: Tensor,
    boxes2: Tensor,
    reduction: str = "none",
    eps: float = 1e-7,
    *,
    backend: str | None = None,
) -> Tensor:
    """1 - complete IoU of each box with its counterpart.

    Zheng et al., Distance-IoU loss, 2020, equations 8 to 11.

    Args:
        boxes1: [..., 4] corners (x1, y1, x2, y2) of any floating-point or integer type.
        boxes2: [..., 4] of the same shape, or one that broadcasts with it.
        reduction: "none", "mean" or "sum".
        eps: added to the denominator of the aspect ratio's weight. Other denominators have 1e-7,
            as in torchvision.
        backend: "triton", "cpp" or "reference"; None picks the fastest that can run.

    Returns:
        [...] for "none", otherwise a scalar (0 for no boxes); in float64 for float64 boxes,
        otherwise in float32, in which 16-bit and integer boxes are computed. NaN where width and
        height of a box are both 0; there the aspect ratio has a gradient of 0, torchvision's has
        NaN.

    Differentiable in both arguments, any number of times. The aspect ratio's weight
    is a constant to derivatives.

    Raises:
        ValueError: another reduction; shapes or devices that do not fit; ``backend`` cannot run
            here.
        TypeError, NotImplementedError: an argument is no dense tensor.
    """
    return box_iou_loss(boxes1, boxes2, reduction, "complete", eps, backend)
