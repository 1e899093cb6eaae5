"""Replacements for nms and batched_nms."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ... import ops
from . import devices
from .recording import is_exporting, keeping_torchscript


def fake(dets: Tensor, scores: Tensor, iou_threshold: float) -> Tensor:
    kept = torch.library.get_ctx().new_dynamic_size(min=0)  # torchvision's fake assumes at least 2
    return dets.new_empty(kept, dtype=torch.int64)


def batched_nms_instead_of(stock: Callable[..., Tensor], sorts: bool) -> Callable[..., Tensor]:
    """``sorts``: torchvision's function ends in a sort by score."""

    @keeping_torchscript(stock)
    def batched_nms(boxes: Tensor, scores: Tensor, idxs: Tensor, iou_threshold: float) -> Tensor:
        if is_exporting() or boxes.device.type not in devices.active or boxes.is_quantized:
            return stock(boxes, scores, idxs, iou_threshold)
        if boxes.numel() and idxs.device != boxes.device:
            idxs = idxs.to(boxes.device)
        kept = ops.batched_nms(boxes, scores, idxs, iou_threshold)
        return _in_order_of_sort(kept, scores) if sorts else kept

    return batched_nms


def _in_order_of_sort(kept: Tensor, scores: Tensor) -> Tensor:
    """Orders equal scores as torchvision's loop does.

    The loop ends in an unstable sort, whose order of equal scores only depends on its input.
    TorchScript runs that loop and has to agree with eager mode.
    """
    by_score = scores[kept]
    # distinct scores need no sort; data-dependent, so not checked while compiling
    if not torch.compiler.is_compiling() and (by_score[:-1] > by_score[1:]).all():
        return kept
    kept = kept.sort()[0]
    return kept[scores[kept].sort(descending=True)[1]]
