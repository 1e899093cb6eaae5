"""Boxes around masks, in one pass that skips what is inside of the box."""

from __future__ import annotations

import torch
from torch import Tensor

from .. import reference
from ._checks import check_tensor, is_traced, is_transformed
from ._library import declare

# in bytes and for whether -0.0 exists, all that a kernel needs to know of a dtype
_KERNEL_DTYPES = (
    torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64,
    torch.float16, torch.bfloat16, torch.float32, torch.float64,
)  # fmt: skip


def _fake(masks: Tensor) -> Tensor:
    return masks.new_empty((masks.shape[0], 4), dtype=torch.float32)


_OPERATOR = declare(
    "masks_to_boxes",
    "(Tensor masks) -> Tensor",
    fake=_fake,
    triton="kernels.masks_to_boxes.launch_masks_to_boxes",
    reference=reference.masks_to_boxes,
    lacks={"cuda": "the Triton kernel serves GPUs"},
    serves=("masks_to_boxes",),
)


def masks_to_boxes(masks: Tensor, *, backend: str | None = None) -> Tensor:
    """The smallest box around the nonzero pixels of each mask.

    Args:
        masks: [N, H, W] of any dtype; NaN is nonzero.
        backend: "triton", "cpp" or "reference"; None picks the fastest that can run.

    Returns:
        float32 (x1, y1, x2, y2) [N, 4], the first and last column and row with a nonzero pixel, so
        that a single pixel has x1 = x2. 0 for a mask without one; [0, 4] if masks have no pixels
        at all. No derivative.

    Raises:
        ValueError: another shape; ``backend`` cannot run here.
        TypeError, NotImplementedError: ``masks`` is no dense tensor.
    """
    if is_traced():
        return reference.masks_to_boxes(masks.detach())
    check_tensor(masks, "masks")
    if masks.numel() == 0:
        return torch.zeros((0, 4), device=masks.device)
    if masks.dim() != 3:
        raise ValueError(f"masks must have shape [N, H, W], got {list(masks.shape)}")
    chosen = _OPERATOR.choose(masks, backend)
    masks = masks.detach()
    if chosen == "reference" or is_transformed():
        return reference.masks_to_boxes(masks)
    if masks.dtype not in _KERNEL_DTYPES:
        masks = masks.bool()
    boxes: Tensor = _OPERATOR.run[chosen](masks)
    return boxes
