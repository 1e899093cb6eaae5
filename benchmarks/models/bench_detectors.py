"""Detectors that torchvision has too: inference on photographs by stages, a training step, and the
post-processing of many anchors.

Against torchvision's model; weights are random (seeded) and the same. The model is measured as
built, and after fuse(); ONNX Runtime runs torchvision's.
"""

from __future__ import annotations

import copy
import functools
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torchvision.models import detection as theirs

import fastvision
from benchmarks.harness import BASELINE, Case, Inputs, Providers
from benchmarks.models.bench_detection import Detector, check, photographs
from benchmarks.models.bench_models import BUILT, FUSED
from benchmarks.models.runtimes import detector_in_onnx_runtime
from fastvision import models as ours

# random weights give scores in the middle, of which the default thresholds keep no box or all
MODELS: dict[str, dict[str, float]] = {
    "fasterrcnn_resnet50_fpn": {},
    "maskrcnn_resnet50_fpn": {},
    "keypointrcnn_resnet50_fpn": {},
    "retinanet_resnet50_fpn": {"score_thresh": 0.02},
    "fcos_resnet50_fpn": {"score_thresh": 0.02},
    "ssd300_vgg16": {},
    "ssdlite320_mobilenet_v3_large": {},
}
TRAINED = (
    "fasterrcnn_resnet50_fpn",
    "maskrcnn_resnet50_fpn",
    "retinanet_resnet50_fpn",
    "fcos_resnet50_fpn",
    "ssd300_vgg16",
)
FADING = "ssdlite320_mobilenet_v3_large"  # with random weights, its scores differ by rounding alone
BATCHES = (1, 4)
QUICK = (FADING, 1)
HEIGHT, WIDTH, OBJECTS, RATE = 320, 400, 3, 1e-4
# anchors of the levels of an image, 120,000 in all, and their classes
LEVELS, CLASSES, IMAGES = (90_000, 22_500, 5_625, 1_440, 435), 80, 8


@functools.cache
def pair(name: str) -> tuple[nn.Module, nn.Module]:
    """torchvision's model and the one of this package, with the same weights."""
    torch.manual_seed(0)
    options = {"weights": None, "weights_backbone": None, **MODELS[name]}
    baseline = getattr(theirs, name)(**options)
    if name == FADING:
        spread(baseline)
    model = ours.get_model(name, **options)
    model.load_state_dict(baseline.state_dict())
    return baseline.eval(), model.eval()


@torch.no_grad()
def spread(model: Any) -> None:
    """Weights and statistics with which activations keep their magnitude, whatever the depth."""
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 1.0
    images, _ = model.train().transform(list(photographs(torch.device("cpu"))))
    model.head(list(model.backbone(images.tensors).values()))


def inference_case(name: str, batch: int) -> Case:
    def providers(device: torch.device) -> Providers:
        baseline, model = (m.to(device) for m in pair(name))
        runs = {BASELINE: baseline, BUILT: model, FUSED: fastvision.fuse(model)}
        found: Providers = {key: Detector(m, device, enabled=False) for key, m in runs.items()}
        if batch == 1 and device.type == "cpu":
            found |= detector_in_onnx_runtime(baseline, photographs(device)[0])
        return found

    return Case(
        "detectors",
        f"{name}, batch {batch}",
        inputs=lambda device: (photographs(device) * 2)[:batch],
        providers=providers,
        check=check,
        quick=(name, batch) == QUICK,
        least_rounds=5,
        note=f"photographs of 427x640, random weights, {MODELS[name] or 'default thresholds'}",
    )


class Step:
    """A step of training by stochastic gradient descent; gives the losses."""

    def __init__(self, model: nn.Module) -> None:
        self.model = copy.deepcopy(model).train()
        trained = [p for p in self.model.parameters() if p.requires_grad]
        self.optimizer = torch.optim.SGD(trained, RATE)

    def __call__(self, images: list[Tensor], targets: list[dict[str, Tensor]]) -> Any:
        torch.manual_seed(0)  # of the boxes that are sampled
        losses = self.model(images, targets)
        self.optimizer.zero_grad()
        sum(losses.values()).backward()
        self.optimizer.step()
        return {key: loss.detach() for key, loss in losses.items()}


def targets(name: str, device: torch.device) -> list[dict[str, Tensor]]:
    generator = torch.Generator().manual_seed(2)
    result = []
    for _ in range(2):
        corner = torch.rand(OBJECTS, 2, generator=generator) * 150
        size = 60 + torch.rand(OBJECTS, 2, generator=generator) * 100
        boxes = torch.cat((corner, corner + size), 1)
        target = {"boxes": boxes, "labels": torch.arange(1, OBJECTS + 1)}
        if "mask" in name:
            target["masks"] = torch.zeros(OBJECTS, HEIGHT, WIDTH, dtype=torch.uint8)
            for mask, (x1, y1, x2, y2) in zip(target["masks"], boxes.long().tolist(), strict=True):
                mask[y1:y2, x1:x2] = 1
        result.append({key: value.to(device) for key, value in target.items()})
    return result


def check_losses(actual: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    torch.testing.assert_close(actual, expected, rtol=1e-3, atol=1e-4)


def training_case(name: str) -> Case:
    def inputs(device: torch.device) -> Inputs:
        generator = torch.Generator().manual_seed(1)
        images = torch.rand(2, 3, HEIGHT, WIDTH, generator=generator)
        return list(images.to(device)), targets(name, device)

    def providers(device: torch.device) -> Providers:
        baseline, model = (m.to(device) for m in pair(name))
        return {BASELINE: Step(baseline), BUILT: Step(model)}

    return Case(
        "detectors",
        f"{name}, training step, batch 2",
        inputs=inputs,
        providers=providers,
        check=check_losses,
        quick=False,
        least_rounds=5,
        note=f"{HEIGHT}x{WIDTH}, {OBJECTS} objects each, random weights of seed 0",
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
        models = zip((BASELINE, BUILT), pair("retinanet_resnet50_fpn"), strict=True)
        return {key: torch.inference_mode()(m.postprocess_detections) for key, m in models}

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
    *(inference_case(name, batch) for name in MODELS for batch in BATCHES),
    *map(training_case, TRAINED),
    *map(postprocessing_case, (-4.6, -6.0)),
]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_detectors(case: Case, compare) -> None:
    compare(case)
