"""torchvision's Python functions and our replacements.

The switch exchanges two fixed functions per name, so nothing of ours is left in torchvision when it
is off. Our functions also check ``devices.active``, for names bound while it was on.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Iterable
from functools import partial
from operator import attrgetter
from typing import Any, NamedTuple

from . import boxes, drop_block, focal_loss, misc, nms, roi_align


class Name(NamedTuple):
    modules: tuple[str, ...]  # the first defines it, the others bind it if they are imported
    name: str  # of a function, or of a class and its method
    instead_of: Callable[[Any], Any]  # makes our function from torchvision's
    op: str | None = None  # the public function that runs; None for one without arithmetic
    without_library: bool = False  # only if torchvision has no compiled library


NAMES = (
    Name(
        ("torchvision.ops.boxes",),
        "_batched_nms_vanilla",
        partial(nms.batched_nms_instead_of, sorts=True),
        "batched_nms",
    ),
    Name(
        ("torchvision.ops.boxes",),
        "_batched_nms_coordinate_trick",
        partial(nms.batched_nms_instead_of, sorts=False),
        "batched_nms",
    ),
    Name(
        ("torchvision.ops.poolers",),
        "_multiscale_roi_align",
        roi_align.multiscale_roi_align_instead_of,
        "multiscale_roi_align",
    ),
    Name(
        ("torchvision.ops.roi_align",),
        "is_compile_supported",
        roi_align.is_compile_supported_instead_of,
    ),
    Name(
        (
            "torchvision.ops.focal_loss",
            "torchvision.ops",
            "torchvision.models.detection.fcos",
            "torchvision.models.detection.retinanet",
        ),
        "sigmoid_focal_loss",
        focal_loss.sigmoid_focal_loss_instead_of,
        "sigmoid_focal_loss",
    ),
    Name(
        ("torchvision.ops.drop_block", "torchvision.ops"),
        "drop_block2d",
        drop_block.drop_block_instead_of,
        "drop_block2d",
    ),
    Name(
        ("torchvision.ops.drop_block", "torchvision.ops"),
        "drop_block3d",
        drop_block.drop_block_instead_of,
        "drop_block3d",
    ),
    Name(
        ("torchvision.ops.misc",),
        "FrozenBatchNorm2d.forward",
        misc.frozen_batch_norm_instead_of,
        "batch_norm_relu",
    ),
    Name(
        ("torchvision.ops.misc",),
        "SqueezeExcitation.forward",
        misc.squeeze_excitation_instead_of,
        "squeeze_excitation",
    ),
    *(
        Name(
            (f"torchvision.{module}", "torchvision.ops", *map("torchvision.{}".format, users)),
            name,
            boxes.of_two_sets_instead_of,
            name,
        )
        for module, name, *users in (
            ("ops.boxes", "box_iou", "transforms.v2._geometry"),
            ("ops.boxes", "generalized_box_iou"),
            ("ops.boxes", "distance_box_iou"),
            ("ops.boxes", "complete_box_iou"),
            (
                "ops.giou_loss",
                "generalized_box_iou_loss",
                "models.detection._utils",
                "models.detection.fcos",
            ),
            ("ops.diou_loss", "distance_box_iou_loss", "models.detection._utils"),
            ("ops.ciou_loss", "complete_box_iou_loss", "models.detection._utils"),
        )
    ),
    Name(
        ("torchvision.ops.boxes", "torchvision.ops"),
        "masks_to_boxes",
        boxes.masks_to_boxes_instead_of,
        "masks_to_boxes",
    ),
    Name(
        (
            "torchvision.ops.boxes",
            "torchvision.ops.deform_conv",
            "torchvision.ops.ps_roi_align",
            "torchvision.ops.ps_roi_pool",
            "torchvision.ops.roi_align",
            "torchvision.ops.roi_pool",
        ),
        "_assert_has_ops",
        lambda stock: lambda: None,
        without_library=True,
    ),
)


class Replaced(NamedTuple):
    modules: tuple[str, ...]
    name: str
    op: str | None
    stock: Any
    ours: Any


def replacements(complete: bool) -> tuple[Replaced, ...]:
    """Both functions of each name. ``complete``: torchvision has its compiled library."""
    made = []
    for modules, name, instead_of, op, without_library in NAMES:
        if complete and without_library:
            continue
        stock = attrgetter(name)(importlib.import_module(modules[0]))
        made.append(Replaced(modules, name, op, stock, instead_of(stock)))
    return tuple(made)


def swap(replaced: Iterable[Replaced], to_ours: bool) -> None:
    """Replaces torchvision's functions by ours, or back; leaves third-party replacements alone."""
    for modules, name, _, stock, ours in replaced:
        before, after = (stock, ours) if to_ours else (ours, stock)
        holder, _, attribute = name.rpartition(".")
        for module in map(sys.modules.get, modules):
            owner: Any = getattr(module, holder, None) if holder else module
            if getattr(owner, attribute, None) is before:
                setattr(owner, attribute, after)
