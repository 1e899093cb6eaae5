"""torchvision's detectors on two photographs, before and after fastvision.enable().

The weights are random (seeded), so the detections mean nothing, but they are of the number and size
that make NMS and RoIAlign do real work; RetinaNet's score threshold is lowered for that.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from sklearn.datasets import load_sample_images
from torch import Tensor, nn
from torchvision.models import detection

import fastvision
from benchmarks.harness import BASELINE, Case, Providers
from benchmarks.models.stages import Stages

MODELS: dict[str, dict[str, float]] = {
    "fasterrcnn_resnet50_fpn": {},
    "maskrcnn_resnet50_fpn": {},
    "retinanet_resnet50_fpn": {"score_thresh": 0.02},
    "ssd300_vgg16": {},
}
# RoIAlign rounds differently in its last digits, and layers of random weights enlarge that
PIXELS, SCORE, MASK = 0.1, 1e-3, 1e-2
# scores that differ by rounding may change places at a threshold or at the limit of detections
MATCHED = 0.97


class Detector:
    """A model as a provider: stock, or within fastvision.enabled()."""

    def __init__(self, model: nn.Module, device: torch.device, *, enabled: bool) -> None:
        self.model, self.enabled = model, enabled
        self.stages = Stages(model, device)

    @contextlib.contextmanager
    def around(self) -> Iterator[None]:
        with (
            fastvision.enabled() if self.enabled else contextlib.nullcontext(),
            self.stages.watching(),
            torch.inference_mode(),
        ):
            yield

    def __call__(self, *images: Tensor) -> list[dict[str, Tensor]]:
        return self.stages.run(lambda: self.model(list(images)))

    def details(self) -> dict[str, Any]:
        kept = ", ".join(f"{kept} of {count}" for count, kept in self.stages.nms_sizes)
        return {
            "stages": self.stages.of_fastest_run(),
            "stages of": "the fastest run",
            "remark": f"NMS keeps {kept} boxes" if kept else "NMS of the batch at once",
        }


def check(actual: list[dict[str, Tensor]], expected: list[dict[str, Tensor]]) -> None:
    """Nearly all detections of either side have a partner on the other: of the same label, its box
    within PIXELS, its score within SCORE, and 99 % of its mask within MASK."""
    for one, other in zip(actual, expected, strict=True):
        assert len(other["boxes"]) > 0, "nothing is detected"
        same = one["labels"][:, None] == other["labels"]
        same &= (one["boxes"][:, None] - other["boxes"]).abs().amax(-1) <= PIXELS
        same &= (one["scores"][:, None] - other["scores"]).abs() <= SCORE
        for i, j in same.nonzero().tolist() if "masks" in one else []:
            off = (one["masks"][i] - other["masks"][j]).abs() > MASK
            covered = (one["masks"][i] > 0).sum().clamp(min=1)
            same[i, j] = off.sum() <= 0.01 * covered
        share = min(same.any(0).float().mean().item(), same.any(1).float().mean().item())
        assert share >= MATCHED, f"only {share:.1%} of the detections match"


def photographs(device: torch.device) -> tuple[Tensor, ...]:
    """china.jpg and flower.jpg of scikit-learn, [3, 427, 640]."""
    images = [torch.from_numpy(x.copy()).permute(2, 0, 1) for x in load_sample_images().images]
    return tuple(image.float().div(255).to(device) for image in images)


def model_case(name: str) -> Case:
    def providers(device: torch.device) -> Providers:
        torch.manual_seed(0)
        build = getattr(detection, name)
        model = build(weights=None, weights_backbone=None, **MODELS[name]).eval().to(device)
        return {
            BASELINE: Detector(model, device, enabled=False),
            "fastvision": Detector(model, device, enabled=True),
        }

    return Case(
        "detection",
        f"{name}, 2 photographs",
        inputs=photographs,
        providers=providers,
        check=check,
        quick=name == "ssd300_vgg16",
        least_rounds=7,
        note=f"random weights of seed 0, {MODELS[name] or 'default thresholds'}",
    )


CASES = [model_case(name) for name in MODELS]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_detection(case: Case, compare) -> None:
    compare(case)
