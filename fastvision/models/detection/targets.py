"""What detectors check of the targets they are trained for."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .image_list import Target


def check_targets(targets: Sequence[Target] | None, images: Sequence[Tensor]) -> None:
    """Raises:
    AssertionError: there are no targets, another number of them than of images, or boxes of
        another type or shape than [L, 4] (torchvision's error type).
    ValueError: a target has no boxes or no labels.
    """
    if targets is None:
        raise AssertionError("targets should not be none when in training mode")
    if len(targets) != len(images):
        raise AssertionError(f"Expected one target per image, {len(images)}, got {len(targets)}.")
    for target in targets:
        for name in ("boxes", "labels"):
            if name not in target:
                raise ValueError(f"Every element of targets should have a {name} key")
        boxes = target["boxes"]
        if not isinstance(boxes, Tensor):
            raise AssertionError(f"Expected target boxes to be of type Tensor, got {type(boxes)}.")
        if boxes.dim() != 2 or boxes.shape[-1] != 4:
            raise AssertionError(
                f"Expected target boxes to be a tensor of shape [N, 4], got {list(boxes.shape)}."
            )


def check_labels(targets: Sequence[Target]) -> None:
    """Raises:
    ValueError: labels are not int64 [L], or one is negative; names the first target.
    """
    for i, target in enumerate(targets):
        count, labels = len(target["boxes"]), target["labels"]
        if labels.shape != (count,) or labels.dtype != torch.int64:
            raise ValueError(
                f"Expected target labels to be int64 of shape [{count}], got {labels.dtype} "
                f"of shape {list(labels.shape)} for target at index {i}."
            )
        if (labels < 0).any():
            raise ValueError(
                f"Expected target labels not to be negative, got {labels.tolist()} "
                f"for target at index {i}."
            )


def check_classes(targets: Sequence[Target], count: int) -> None:
    """Raises:
    ValueError: a label is not below the number of classes; names the first target.
    """
    for i, target in enumerate(targets):
        if (target["labels"] >= count).any():
            raise ValueError(
                f"Expected target labels to be below the number of classes, {count}, got "
                f"{target['labels'].tolist()} for target at index {i}."
            )


def check_boxes(targets: Sequence[Target] | None) -> None:
    """Raises:
    AssertionError: a box has no area or is not finite; names the first one (torchvision's error
        type).
    """
    for i, target in enumerate(targets or ()):
        boxes = target["boxes"]
        sizes = boxes[:, 2:] - boxes[:, :2]
        degenerate = ~((sizes > 0) & sizes.isfinite()).all(1)
        if degenerate.any():
            first = boxes[torch.where(degenerate)[0][0]].tolist()
            raise AssertionError(
                "All bounding boxes should have positive height and width, and be finite. "
                f"Found invalid box {first} for target at index {i}."
            )
