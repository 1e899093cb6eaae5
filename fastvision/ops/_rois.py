"""What the RoI ops check and make of their arguments."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ._checks import FLOATING, check_floating, check_number, check_tensor, pair


def check_feature(feature: object, name: str) -> None:
    check_tensor(feature, name)
    assert isinstance(feature, Tensor)
    if feature.dim() != 4:
        raise ValueError(f"{name} must have shape [N, C, H, W], got {list(feature.shape)}")
    check_floating(feature.dtype, name)


def stacked(
    boxes: Sequence[Tensor], feature: Tensor, dtype: torch.dtype, numbers: int = 4
) -> Tensor:
    """[K, 1 + numbers] of one [L, numbers] per image."""
    # the index is written in the final dtype: in bfloat16 it would be rounded from 256 on
    parts = [nn.functional.pad(box.to(dtype), (1, 0), value=i) for i, box in enumerate(boxes)]
    return torch.cat(parts) if parts else feature.new_empty((0, 1 + numbers), dtype=dtype)


def as_rois(boxes: Tensor | Sequence[Tensor], feature: Tensor, numbers: int = 4) -> Tensor:
    """[K, 1 + numbers of a box] in float32; in float64 if the features are."""
    dtype = torch.float64 if feature.dtype == torch.float64 else torch.float32
    if isinstance(boxes, Tensor):
        # torchvision raises AssertionError for the shape of boxes
        if boxes.dim() != 2 or boxes.shape[1] != 1 + numbers:
            shape = list(boxes.shape)
            raise AssertionError(f"boxes must have shape [K, {1 + numbers}], got {shape}")
        rois = boxes
    elif isinstance(boxes, (list, tuple)) and all(isinstance(box, Tensor) for box in boxes):
        for i, box in enumerate(boxes):
            if box.dim() != 2 or box.shape[1] != numbers:
                raise AssertionError(
                    f"boxes[{i}] must have shape [L, {numbers}], got {list(box.shape)}"
                )
        if len(boxes) > feature.shape[0]:
            raise ValueError(
                f"boxes must be one Tensor per image, {feature.shape[0]} at most, got {len(boxes)}"
            )
        rois = stacked(boxes, feature, dtype, numbers)
    else:
        raise AssertionError(
            f"boxes must be a Tensor or a list of them, got {type(boxes).__name__}"
        )
    if rois.dtype not in FLOATING:
        raise TypeError(f"boxes must be of a floating-point type, got {rois.dtype}")
    if rois.device != feature.device:
        raise ValueError(f"boxes must be on {feature.device} as the features, got {rois.device}")
    return rois if rois.dtype == dtype else rois.to(dtype)


def as_recorded(boxes: Tensor | Sequence[Tensor], feature: Tensor, numbers: int = 4) -> Tensor:
    """The same for torch.jit.trace: no checks, for which sizes would become constants."""
    if isinstance(boxes, Tensor):
        return boxes
    dtype = torch.promote_types(feature.dtype, torch.float32)
    return stacked(boxes, feature, dtype, numbers)


def bins_of(output_size: int | Sequence[int]) -> tuple[int, int]:
    bins = pair(output_size, "output_size")
    for size in bins:
        if not 0 <= size < 2**63:
            raise ValueError(f"output_size must be at least 0 and fit 64 bits, got {output_size!r}")
    return bins


def check_scale(spatial_scale: float) -> None:
    check_number(spatial_scale, "spatial_scale")
    if not -math.inf < spatial_scale < math.inf:
        raise ValueError(f"spatial_scale must be finite, got {spatial_scale}")
