"""Numbers that detectors are made with: a wrong one is named while the detector is made."""

from __future__ import annotations

import inspect
import math
from typing import Any

import pytest
from torch import nn

from fastvision import models
from fastvision.models import detection
from fastvision.models.detection.pillars import PointPillars
from fastvision.models.detection.rcnn import RCNN
from fastvision.models.detection.roi_heads import RoIHeads
from fastvision.models.detection.rpn import RegionProposalNetwork
from fastvision.models.detection.yolo.model import YOLO

NUMBERS = ("_thresh", "_fraction", "_radius")
COUNTS = ("_per_img", "_per_scene", "_per_image", "_top_n_train", "_top_n_test", "_candidates")
SIZES = ("min_size", "max_size")


class Backbone(nn.Module):
    out_channels = 32

    def forward(self, x: Any) -> Any:
        return x


def yolo(**options: Any) -> nn.Module:
    return models.get_model("yolov2_tiny", width_mult=0.125, **options)


def ssd(**options: Any) -> nn.Module:
    boxes = detection.DefaultBoxGenerator([[2]])
    return detection.SSD(Backbone(), boxes, (64, 64), 2, head=nn.Identity(), **options)


def two_stages(kind: type[nn.Module]) -> Any:
    """Of a part of detectors, which has few defaults."""
    names = inspect.signature(kind.__init__).parameters
    given: dict[str, Any] = {name: 1 for name in names if name.endswith((*NUMBERS, *COUNTS))}
    parts = dict.fromkeys((n for n in names if n != "self" and n not in given), None)
    return lambda **options: kind(**{**parts, **given, **options})


KINDS: dict[str, tuple[type[nn.Module], Any]] = {
    **{
        kind.__name__: (kind, lambda kind=kind, **options: kind(Backbone(), 3, **options))
        for kind in (detection.RetinaNet, detection.FCOS, detection.FasterRCNN)
    },
    "SSD": (detection.SSD, ssd),
    "YOLO": (YOLO, yolo),
    "PointPillars": (PointPillars, PointPillars),
    "RCNN": (RCNN, lambda **options: RCNN(nn.Identity(), **options)),
    "RoIHeads": (RoIHeads, two_stages(RoIHeads)),
    "RegionProposalNetwork": (RegionProposalNetwork, two_stages(RegionProposalNetwork)),
}


@pytest.mark.parametrize("name", KINDS)
def test_wrong_numbers(name: str) -> None:
    kind, make = KINDS[name]
    names = list(inspect.signature(kind.__init__).parameters)
    numbers, counts = ([n for n in names if n.endswith(ends)] for ends in (NUMBERS, COUNTS))
    sizes = [n for n in names if n in SIZES]
    assert numbers and counts
    wrong = [
        *((option, "big", TypeError) for option in numbers + counts + sizes),
        *((option, math.nan, ValueError) for option in numbers + sizes),
        *((option, 2.5, TypeError) for option in counts),
        *((option, -1, ValueError) for option in counts + sizes),
    ]
    for option, value, error in wrong:
        with pytest.raises(error, match=rf"^{option} must be .*, got {value!r}$"):
            make(**{option: value})


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"min_size": ()}, ValueError, "min_size .* got none"),
        ({"min_size": (64, "big")}, TypeError, "min_size .* got 'big'"),
        ({"fixed_size": (64, 0)}, ValueError, "fixed_size .* got 0"),
        ({"size_divisible": 0}, ValueError, "size_divisible .* got 0"),
        ({"fixed_size": 64}, ValueError, r"fixed_size must be \(width, height\), got 64"),
        ({"size_divisible": 1.5}, TypeError, "size_divisible .* got 1.5"),
        ({"image_mean": 0.5}, TypeError, "image_mean must be a list .* got 0.5"),
        ({"image_mean": []}, TypeError, r"image_mean must be a list .* got \[\]"),
        ({"image_mean": (0.5, "big", 0.5)}, TypeError, "image_mean .* got 'big'"),
        ({"image_mean": (0.5, math.nan, 0.5)}, ValueError, "image_mean .* got nan"),
        ({"image_std": (0.5, 0, 0.5)}, ValueError, "image_std must be positive, got 0"),
        ({"image_std": [0.5]}, ValueError, "image_mean and image_std .* got 3 and 1"),
    ],
)
def test_wrong_transforms(options: dict[str, Any], error: type[Exception], message: str) -> None:
    given: dict[str, Any] = {"min_size": 64, "max_size": 64, "image_mean": None, "image_std": None}
    with pytest.raises(error, match=message):
        detection.GeneralizedRCNNTransform(**{**given, **options})


def test_share_of_positive_boxes() -> None:
    with pytest.raises(ValueError, match="positive_fraction must be above 0 .* got 0"):
        ssd(positive_fraction=0)
