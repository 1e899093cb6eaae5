"""Focal loss (Lin et al., Focal Loss for Dense Object Detection, equation 5)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid


def _widened(x: Tensor) -> Tensor:
    return x if x.dtype == torch.float64 else x.float()


def _nonzero(x: Tensor) -> Tensor:
    """Replaces zeros, where powers below 1 have no derivative, by the smallest normal number."""
    return torch.where(x == 0, torch.finfo(x.dtype).tiny, x)


def _refuse(bad: Tensor, classes: int) -> Tensor:
    """A weight of 1 per row, NaN where the label is bad. On the CPU a bad label is an error."""
    if bad.is_cpu and bad.any():
        raise RuntimeError(
            f"targets: row {int(bad.flatten().nonzero()[0])} has a label that is not one of "
            f"{classes} classes"
        )
    return torch.where(bad, torch.nan, 1.0)


def _sigmoid_terms(x: Tensor, t: Tensor, alpha: float, gamma: float) -> Tensor:
    infinite = x.isinf()
    share = torch.where(x < 0, t, 1 - t)  # the part of the loss that grows with |x|
    limit = torch.where(share == 0, 0.0, share ** (gamma + 1) * x.abs())
    x = x.masked_fill(infinite, 0)
    p, rest = x.sigmoid(), (-x).sigmoid()
    cross_entropy = -(t * logsigmoid(x) + (1 - t) * logsigmoid(-x))
    miss = _nonzero(p * (1 - t) + rest * t)  # 1 - p_t
    loss = torch.where(infinite, limit, miss**gamma * cross_entropy)
    return loss if alpha < 0 else loss * (alpha * t + (1 - alpha) * (1 - t))


def sigmoid_focal_loss(
    inputs: Sequence[Tensor],
    targets: Sequence[Tensor],
    alpha: float,
    gamma: float,
    reduce: bool,
) -> Tensor:
    """The sum over all levels in the compute dtype, or the loss of each logit.

    Args:
        inputs: [..., K] logits per level; a single level unless ``reduce``.
        targets: the shapes of ``inputs``, or int64 labels [...].

    See :func:`fastvision.ops.sigmoid_focal_loss`.
    """
    losses = []
    for x, t in zip(map(_widened, inputs), targets, strict=True):
        if t.is_floating_point():
            losses.append(_sigmoid_terms(x, t.to(x.dtype), alpha, gamma))
            continue
        classes = x.shape[-1]
        weight = _refuse(t >= classes, classes).to(x.dtype)[..., None]
        ignored = (t < -1)[..., None]
        one_hot = (t[..., None] == torch.arange(classes, device=t.device)).to(x.dtype)
        loss = _sigmoid_terms(x.masked_fill(ignored, 0), one_hot, alpha, gamma)
        losses.append((loss * weight).masked_fill(ignored, 0))
    if reduce:
        return torch.stack([loss.sum() for loss in losses]).sum()
    return losses[0].to(inputs[0].dtype)


def softmax_focal_loss(
    inputs: Tensor,
    targets: Tensor,
    weights: Tensor | None,
    gamma: float,
    ignore_index: int,
    reduce: bool,
) -> Tensor:
    """The sum in the compute dtype, or the loss of each row.

    Args:
        inputs: [..., K] logits.
        targets: int64 labels [...], or probabilities [..., K].
        weights: [K] class weights; None means 1.

    See :func:`fastvision.ops.softmax_focal_loss`.
    """
    x, classes = _widened(inputs), inputs.shape[-1]
    if targets.is_floating_point():
        log_p = x.log_softmax(-1)
        terms = _nonzero(-log_p.expm1()) ** gamma * log_p * targets
        terms = torch.where(targets == 0, 0.0, terms)  # also if the logit is -infinity
        loss = -(terms if weights is None else terms * weights).sum(-1)
    else:
        ignored = targets == ignore_index
        weight = _refuse(~ignored & ((targets < 0) | (targets >= classes)), classes).to(x.dtype)
        label = targets.clamp(0, max(classes - 1, 0))[..., None]
        x = x.masked_fill(ignored[..., None], 0)
        log_p = x.log_softmax(-1).gather(-1, label)[..., 0] if classes else x.sum(-1)
        if weights is not None and classes:
            weight = weight * weights[label[..., 0]]
        loss = -weight * _nonzero(-log_p.expm1()) ** gamma * log_p
        loss = loss.masked_fill(ignored, 0)
    return loss.sum() if reduce else loss.to(inputs.dtype)
