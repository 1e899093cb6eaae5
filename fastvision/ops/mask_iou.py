"""Intersection over union of masks, counted in words of bits."""

from __future__ import annotations

import torch
from torch import Tensor

from .. import reference
from ._checks import check_tensor
from ._library import declare


def _fake(masks1: Tensor, masks2: Tensor) -> Tensor:
    return masks1.new_empty((masks1.shape[0], masks2.shape[0]), dtype=torch.float32)


_OPERATOR = declare(
    "mask_iou",
    "(Tensor masks1, Tensor masks2) -> Tensor",
    fake=_fake,
    triton="kernels.mask_iou.launch_mask_iou",
    reference=reference.mask_iou,
    lacks={"cuda": "the Triton kernel serves GPUs"},
    serves=("mask_iou", "mask_matrix_nms"),
)


def check_masks(masks: Tensor, name: str) -> None:
    check_tensor(masks, name)
    if masks.dtype != torch.bool:
        raise TypeError(f"{name} must be of type bool, got {masks.dtype}")
    if masks.dim() != 3:
        raise ValueError(f"{name} must have shape [N, H, W], got {list(masks.shape)}")


def mask_iou(masks1: Tensor, masks2: Tensor, *, backend: str | None = None) -> Tensor:
    """Intersection over union of every mask of one set with every mask of another.

    Masks are packed into bits, and only words that are inside of both masks' bounding boxes are
    read.

    Args:
        masks1: [N, H, W] of type bool.
        masks2: [M, H, W] of type bool.
        backend: "triton", "cpp" or "reference"; None picks the fastest that can run.

    Returns:
        float32 [N, M], rounded once. 0 for two empty masks. No derivative.

    Raises:
        ValueError: shapes or devices that do not fit; ``backend`` cannot run here.
        TypeError: an argument is not a tensor, or not of type bool.
        NotImplementedError: a sparse, nested or mkldnn tensor.
    """
    check_masks(masks1, "masks1")
    check_masks(masks2, "masks2")
    if masks1.shape[1:] != masks2.shape[1:]:
        raise ValueError(
            f"masks2 must have the size of masks1, {list(masks1.shape[1:])}, "
            f"got {list(masks2.shape[1:])}"
        )
    if masks1.device != masks2.device:
        raise ValueError(f"masks2 must be on {masks1.device} as masks1, got {masks2.device}")
    result: Tensor = _OPERATOR.run[_OPERATOR.choose(masks1, backend)](masks1, masks2)
    return result
