"""Matrix NMS on the matrix of overlaps."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import pad

from .nms import areas, iou


def matrix_nms(
    boxes: Tensor, scores: Tensor, idxs: Tensor | None, gaussian: bool, sigma: float
) -> Tensor:
    """Decayed scores [N]; see :func:`fastvision.ops.matrix_nms`.

    Args:
        boxes: [N, 4] corners (x1, y1, x2, y2).
        scores: [N].
        idxs: [N] class labels, or None for a single class.
        gaussian: whether f(x) is exp(-sigma x^2) instead of 1 - x.
        sigma: of the Gaussian.
    """
    boxes = boxes if boxes.dtype == torch.float64 else boxes.float()
    area = areas(boxes)
    overlaps = iou(boxes[:, None], area[:, None], boxes, area)
    return decayed_scores(overlaps, scores, idxs, gaussian, sigma)


def decayed_scores(
    overlaps: Tensor, scores: Tensor, idxs: Tensor | None, gaussian: bool, sigma: float
) -> Tensor:
    """The same for overlaps [N, N] of any kind, in float32 or float64."""
    rank = scores.argsort(descending=True, stable=True).argsort()
    better = rank[:, None] < rank
    if idxs is not None:
        better &= idxs[:, None] == idxs
    overlaps = torch.where(better & (overlaps > 0), overlaps, 0)
    # one row more, since there is no largest of no boxes
    compensation = pad(overlaps, (0, 0, 0, 1)).amax(0)[:, None]
    if gaussian:
        # finite, since infinity times 0 is NaN
        sigma = min(sigma, torch.finfo(overlaps.dtype).max)
        quotient = torch.exp(-sigma * (overlaps * overlaps - compensation * compensation))
    else:
        quotient = (1 - overlaps) / (1 - compensation)
    # where a box is decayed more than it decays another, the quotient is 1 or more
    quotient = torch.where(overlaps > compensation, quotient, 1)
    decay = pad(quotient, (0, 0, 0, 1), value=1).amin(0)
    return (scores.to(overlaps.dtype) * decay).to(scores.dtype)
