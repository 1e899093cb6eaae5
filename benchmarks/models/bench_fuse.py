"""torchvision's models before and after fastvision.fuse().

Against the model as it is, in both memory formats; weights are random (seeded). Detectors also run
within fastvision.enabled(), as they would be used.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from sklearn.datasets import load_sample_image
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode
from torchvision import models
from torchvision.models import detection

import fastvision
from benchmarks.harness import (
    BASELINE,
    COMPILED,
    EAGER,
    EAGER_CHANNELS_LAST,
    Case,
    Inputs,
    Providers,
    Work,
)
from benchmarks.models import bench_detection

# model and batch; the last are for torch.compile, which takes minutes for each
CLASSIFIERS = [
    ("resnet50", 1),
    ("resnet50", 8),
    ("mobilenet_v2", 1),
    ("vgg16_bn", 1),
    ("googlenet", 1),
    ("densenet121", 1),
    ("shufflenet_v2_x1_0", 1),
    ("resnext50_32x4d", 1),
]
COMPILES = [("resnet50", 1)]
QUICK = [("mobilenet_v2", 1)]
DETECTORS = ["fasterrcnn_resnet50_fpn"]
SIZE, PHOTOGRAPH = 224, (480, 640)  # of a classifier's and a detector's images
TOLERANCE = 1e-4  # of the largest logit


@functools.cache
def classifier(name: str) -> nn.Module:
    torch.manual_seed(0)
    options = {"init_weights": False} if name == "googlenet" else {}
    return models.get_model(name, weights=None, **options).eval()


def check_logits(actual: Tensor, expected: Tensor) -> None:
    tolerance = TOLERANCE * expected.abs().max().item()
    torch.testing.assert_close(actual, expected, rtol=0, atol=tolerance)


def work(model: nn.Module, inputs: Inputs, result: Tensor) -> Work:
    """Reading the weights and the images once; the arithmetic of convolutions and linear layers."""
    counter = FlopCounterMode(display=False)
    with counter, torch.inference_mode():
        model(*inputs)
    tensors = [*model.parameters(), *inputs, result]
    return Work(sum(t.numel() * t.itemsize for t in tensors), counter.get_total_flops())


def classifier_case(name: str, batch: int) -> Case:
    def inputs(device: torch.device) -> Inputs:
        g = torch.Generator().manual_seed(1)
        return (torch.randn(batch, 3, SIZE, SIZE, generator=g).to(device),)

    def providers(device: torch.device) -> Providers:
        model = classifier(name).to(device)
        last = copy.deepcopy(model).to(memory_format=torch.channels_last)

        def channels_last(x: Tensor) -> Tensor:
            return last(x.contiguous(memory_format=torch.channels_last))

        runs: dict[str, Callable[..., Any]] = {
            EAGER: model,
            EAGER_CHANNELS_LAST: channels_last,
            "fastvision": fastvision.fuse(model),
        }
        if (name, batch) in COMPILES:
            torch.compiler.reset()
            runs[COMPILED] = torch.compile(model, dynamic=False, options={"freezing": True})
        return {provider: torch.inference_mode()(run) for provider, run in runs.items()}

    return Case(
        "fuse",
        f"{name}, batch {batch}",
        inputs=inputs,
        providers=providers,
        check=check_logits,
        work=lambda inputs, result: work(classifier(name), inputs, result),
        quick=(name, batch) in QUICK,
        least_rounds=10,
        note=f"{SIZE}x{SIZE}, random weights of seed 0",
    )


def detector_case(name: str) -> Case:
    def inputs(device: torch.device) -> Inputs:
        photograph = torch.from_numpy(load_sample_image("china.jpg").copy()).permute(2, 0, 1)
        image = photograph.float().div(255)[None]
        return (nn.functional.interpolate(image, PHOTOGRAPH, mode="bilinear")[0].to(device),)

    def providers(device: torch.device) -> Providers:
        torch.manual_seed(0)
        build = getattr(detection, name)
        model = build(weights=None, weights_backbone=None).eval().to(device)
        detector = bench_detection.Detector
        return {
            BASELINE: detector(model, device, enabled=False),
            "fastvision": detector(fastvision.fuse(model), device, enabled=True),
        }

    return Case(
        "fuse",
        f"{name}, one photograph",
        inputs=inputs,
        providers=providers,
        check=bench_detection.check,
        quick=False,
        least_rounds=5,
        note=f"{PHOTOGRAPH[0]}x{PHOTOGRAPH[1]}, random weights of seed 0",
    )


CASES = [
    *(classifier_case(name, batch) for name, batch in CLASSIFIERS),
    *(detector_case(name) for name in DETECTORS),
]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_fuse(case: Case, compare) -> None:
    compare(case)
