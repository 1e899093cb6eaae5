"""This package's detectors against torchvision's: inference, a training step, post-processing.

Weights are random (seeded) and the same; a model is measured as built, and after fuse().
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from sklearn.datasets import load_sample_images
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models import detection as theirs

import fastvision
from benchmarks.harness import BASELINE, Case, Inputs, Providers
from benchmarks.models.bench_detection import check
from fastvision.models import detection as ours

DETECTORS: dict[str, dict[str, float]] = {
    "retinanet_resnet50_fpn": {"score_thresh": 0.02},
    "fcos_resnet50_fpn": {"score_thresh": 0.02},
    "ssd300_vgg16": {},
    "ssdlite320_mobilenet_v3_large": {},
}
TRAINED = ["retinanet_resnet50_fpn", "fcos_resnet50_fpn", "ssd300_vgg16"]
HEIGHT, WIDTH = 480, 640
QUICK = "ssdlite320_mobilenet_v3_large"
BUILT, FUSED = "fastvision", "fastvision, fused"
RATE = 1e-4
# anchors of the levels of an image, 120,000 in all, and their classes
LEVELS, CLASSES, IMAGES = (90_000, 22_500, 5_625, 1_440, 435), 80, 8


@functools.cache
def pair(name: str) -> tuple[nn.Module, nn.Module]:
    """torchvision's detector and the one of this package, with the same weights."""
    torch.manual_seed(0)
    options = {"weights_backbone": None, **DETECTORS.get(name, {})}
    baseline = getattr(theirs, name)(weights=None, **options)
    model = getattr(ours, name)(**options)
    model.load_state_dict(baseline.state_dict())
    return baseline.eval(), model.eval()


def photographs(count: int, height: int, width: int) -> list[Tensor]:
    """china.jpg and flower.jpg in turn, [3, height, width] in 0..1."""
    loaded = [torch.from_numpy(p.copy()).permute(2, 0, 1) for p in load_sample_images().images]
    sized = [F.interpolate(x[None] / 255, size=(height, width), mode="bilinear") for x in loaded]
    return [sized[i % 2][0] for i in range(count)]


def _run(model: nn.Module) -> Callable[..., Any]:
    @torch.inference_mode()
    def run(*images: Tensor) -> Any:
        return model(list(images))

    return run


def inference_case(name: str, batch: int) -> Case:
    def providers(device: torch.device) -> Providers:
        baseline, model = (m.to(device) for m in pair(name))
        fused = fastvision.fuse(model)
        return {BASELINE: _run(baseline), BUILT: _run(model), FUSED: _run(fused)}

    return Case(
        "detectors",
        f"{name}, batch {batch}",
        inputs=lambda device: tuple(x.to(device) for x in photographs(batch, HEIGHT, WIDTH)),
        providers=providers,
        check=check,
        quick=(name, batch) == (QUICK, 1),
        least_rounds=7,
        note=f"{HEIGHT}x{WIDTH}, random weights of seed 0, {DETECTORS[name] or 'own thresholds'}",
    )


class Step:
    """A step of training by stochastic gradient descent; gives the sum of the losses."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model.train()
        self.optimizer = torch.optim.SGD(model.parameters(), RATE)

    def __call__(self, images: list[Tensor], targets: list[dict[str, Tensor]]) -> Tensor:
        loss = sum(self.model(images, targets).values())
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        return loss.detach()


def training_case(name: str) -> Case:
    def inputs(device: torch.device) -> Inputs:
        corners = torch.tensor([[20.0, 30, 200, 280], [150, 60, 390, 300], [5, 5, 60, 90]])
        target = {"boxes": corners.to(device), "labels": torch.tensor([1, 7, 3], device=device)}
        return [x.to(device) for x in photographs(2, 320, 400)], [target] * 2

    def providers(device: torch.device) -> Providers:
        pair.cache_clear()  # a step changes the weights
        baseline, model = (m.to(device) for m in pair(name))
        pair.cache_clear()
        return {BASELINE: Step(baseline), BUILT: Step(model)}

    return Case(
        "detectors",
        f"{name}, training step",
        inputs=inputs,
        providers=providers,
        check=lambda actual, expected: torch.testing.assert_close(
            actual, expected, rtol=1e-3, atol=1e-4
        ),
        quick=False,
        least_rounds=3,
        note="2 images of 320x400, SGD",
    )


def postprocessing_case(mean: float) -> Case:
    def inputs(device: torch.device) -> Inputs:
        torch.manual_seed(0)
        logits = [torch.randn(IMAGES, n, CLASSES, device=device) + mean for n in LEVELS]
        offsets = [torch.randn(IMAGES, n, 4, device=device) * 0.2 for n in LEVELS]
        centres = [torch.rand(n, 2, device=device) * 800 for n in LEVELS]
        half = [torch.rand(n, 2, device=device) * 100 + 8 for n in LEVELS]
        anchors = [torch.cat((c - h, c + h), 1) for c, h in zip(centres, half, strict=True)]
        outputs = {"cls_logits": logits, "bbox_regression": offsets}
        return outputs, [anchors] * IMAGES, [(800, 800)] * IMAGES

    def providers(device: torch.device) -> Providers:
        return {
            BASELINE: torch.inference_mode()(
                pair("retinanet_resnet50_fpn")[0].postprocess_detections
            ),
            BUILT: torch.inference_mode()(pair("retinanet_resnet50_fpn")[1].postprocess_detections),
        }

    return Case(
        "detectors",
        f"RetinaNet's post-processing, logits of mean {mean:g}",
        inputs=inputs,
        providers=providers,
        check=check,
        quick=False,
        least_rounds=5,
        note=f"{IMAGES} images, {sum(LEVELS):,} anchors, {CLASSES} classes",
    )


CASES = [
    *(inference_case(name, batch) for name in DETECTORS for batch in (1, 4)),
    *map(training_case, TRAINED),
    *map(postprocessing_case, (-4.6, -6.0)),
]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_detectors(case: Case, compare) -> None:
    compare(case)
