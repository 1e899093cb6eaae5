"""Helpers that code outside of torchvision imports from torchvision.ops._utils, under its names."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

_WIDE = (torch.float32, torch.float64)


def _cat(tensors: Sequence[Tensor], dim: int = 0) -> Tensor:
    """torch.cat, but a single tensor itself."""
    return tensors[0] if len(tensors) == 1 else torch.cat(list(tensors), dim)


def convert_boxes_to_roi_format(boxes: Sequence[Tensor]) -> Tensor:
    """[K, 5] (image, x1, y1, x2, y2) of one [L, 4] per image, in the dtype of the boxes.

    bfloat16 holds image indices up to 256 only, float16 up to 2048.
    """
    indices = [torch.full_like(box[:, :1], image) for image, box in enumerate(boxes)]
    return torch.cat([_cat(indices), _cat(boxes)], 1)


def check_roi_boxes_shape(boxes: Tensor | Sequence[Tensor]) -> None:
    """Raises AssertionError unless ``boxes`` is a [K, 5] tensor or a list of [L, 4] tensors."""
    if isinstance(boxes, (list, tuple)):
        for i, box in enumerate(boxes):
            torch._assert(
                box.size(1) == 4, f"boxes[{i}] must have shape [L, 4], got {list(box.shape)}"
            )
    elif isinstance(boxes, Tensor):
        torch._assert(boxes.size(1) == 5, f"boxes must have shape [K, 5], got {list(boxes.shape)}")
    else:
        raise AssertionError(
            f"boxes must be a Tensor or a list of them, got {type(boxes).__name__}"
        )


def split_normalization_params(
    model: nn.Module, norm_classes: Sequence[type] | None = None
) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
    """The trainable parameters of normalization layers, and all others.

    Args:
        model: whose modules are searched.
        norm_classes: of the normalizations; all of torch's by default. Only a module without
            children counts as one.

    Raises:
        ValueError: a class that is not a Module's.
    """
    if not norm_classes:
        norm_classes = [
            nn.modules.batchnorm._BatchNorm,
            nn.LayerNorm,
            nn.GroupNorm,
            nn.modules.instancenorm._InstanceNorm,
            nn.LocalResponseNorm,
        ]
    for norm_class in norm_classes:
        if not issubclass(norm_class, nn.Module):
            raise ValueError(f"norm_classes must be subclasses of nn.Module, got {norm_class}")
    norms: list[nn.Parameter] = []
    others: list[nn.Parameter] = []
    for module in model.modules():
        is_leaf = next(module.children(), None) is None
        kind = norms if is_leaf and isinstance(module, tuple(norm_classes)) else others
        kind += [p for p in module.parameters(recurse=is_leaf) if p.requires_grad]
    return norms, others


def _upcast(t: Tensor) -> Tensor:
    """At least float32, or int32: products of coordinates fit."""
    if t.is_floating_point():
        return t if t.dtype in _WIDE else t.float()
    return t if t.dtype in (torch.int32, torch.int64) else t.int()


def _upcast_non_float(t: Tensor) -> Tensor:
    """float32, or float64 as it is."""
    return t if t.dtype in _WIDE else t.float()


def _loss_inter_union(boxes1: Tensor, boxes2: Tensor) -> tuple[Tensor, Tensor]:
    """Areas of intersection and union of boxes [..., 4] and their partners, both [...]."""
    low = torch.maximum(boxes1[..., :2], boxes2[..., :2])
    high = torch.minimum(boxes1[..., 2:], boxes2[..., 2:])
    size = high - low
    meet = (size > 0).all(-1)
    # before the product, whose gradient would be 0 times what the other side has
    width, height = torch.where(meet[..., None], size, 0).unbind(-1)
    intersection = width * height
    area1, area2 = (
        (box[..., 2] - box[..., 0]) * (box[..., 3] - box[..., 1]) for box in (boxes1, boxes2)
    )
    return intersection, area1 + area2 - intersection
