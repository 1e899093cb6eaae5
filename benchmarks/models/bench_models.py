"""Models that torchvision has too: inference, and a training step.

Against torchvision's model in both memory formats; weights are random (seeded) and the same. The
model is measured as built, and after fuse(). ONNX Runtime and OpenVINO run torchvision's model.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision import models as theirs

import fastvision
from benchmarks.harness import EAGER, EAGER_CHANNELS_LAST, Case, Inputs, Providers
from benchmarks.models.bench_fuse import check_logits, work
from benchmarks.models.runtimes import runtimes
from fastvision import models as ours

# (model, size of the images)
CLASSIFIERS = [
    ("alexnet", 224),
    ("vgg11", 224),
    ("vgg16_bn", 224),
    ("googlenet", 224),
    ("inception_v3", 299),
    ("resnet18", 224),
    ("resnet50", 224),
    ("resnet101", 224),
    ("resnext50_32x4d", 224),
    ("wide_resnet50_2", 224),
    ("densenet121", 224),
    ("mobilenet_v2", 224),
    ("mobilenet_v3_small", 224),
    ("mobilenet_v3_large", 224),
    ("shufflenet_v2_x1_0", 224),
    ("fcn_resnet50", 224),
    ("deeplabv3_mobilenet_v3_large", 224),
    ("lraspp_mobilenet_v3_large", 224),
]
BATCHES = [1, 8]
TRAINED = ["resnet18", "resnet50", "vgg11_bn", "mobilenet_v2"]
TRAINED_BATCH, TRAINED_SIZE, RATE = 8, 224, 1e-4
QUICK = [("mobilenet_v2", 1)]
# before and after fuse(), of a model of this package and of torchvision's
BUILT, FUSED, TORCHVISIONS = "fastvision", "fastvision, fused", "torchvision's, fused"
BUILT_CHANNELS_LAST = "fastvision, channels_last"


@functools.cache
def pair(name: str) -> tuple[nn.Module, nn.Module]:
    """torchvision's model and the one of this package, with the same weights."""
    torch.manual_seed(0)
    options = {"init_weights": False} if name in ("googlenet", "inception_v3") else {}
    if name in theirs.list_models(theirs.segmentation):
        options["weights_backbone"] = None
    baseline = theirs.get_model(name, weights=None, **options)
    model = ours.get_model(name, **options)
    model.load_state_dict(baseline.state_dict())
    return baseline.eval(), model.eval()


def _images(batch: int, size: int, device: torch.device) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(batch, 3, size, size, generator=generator).to(device)


def _scores(model: Callable[..., Any]) -> Callable[..., Tensor]:
    """The scores alone, of models that give a dict."""

    @torch.inference_mode()
    def run(images: Tensor) -> Tensor:
        result = model(images)
        return result["out"] if isinstance(result, dict) else result

    return run


def inference_case(name: str, size: int, batch: int) -> Case:
    def providers(device: torch.device) -> Providers:
        baseline, model = (m.to(device) for m in pair(name))
        last = copy.deepcopy(baseline).to(memory_format=torch.channels_last)

        def channels_last(images: Tensor) -> Any:
            return last(images.contiguous(memory_format=torch.channels_last))

        runs = {
            EAGER: _scores(baseline),
            EAGER_CHANNELS_LAST: _scores(channels_last),
            BUILT: _scores(model),
            FUSED: _scores(fastvision.fuse(model)),
        }
        if device.type == "cpu":
            runs |= runtimes(baseline, _images(batch, size, device))
        return runs

    return Case(
        "models",
        f"{name}, batch {batch}",
        inputs=lambda device: (_images(batch, size, device),),
        providers=providers,
        check=check_logits,
        work=lambda inputs, result: work(pair(name)[0], inputs, result),
        quick=(name, batch) in QUICK,
        least_rounds=8,
        note=f"{size}x{size}, random weights of seed 0",
    )


class Step:
    """A step of training by stochastic gradient descent; gives the loss."""

    def __init__(self, model: nn.Module, memory_format: torch.memory_format) -> None:
        self.model, self.memory_format = model.train(), memory_format
        self.optimizer = torch.optim.SGD(model.parameters(), RATE)

    def __call__(self, images: Tensor, labels: Tensor) -> Tensor:
        torch.manual_seed(0)  # of dropout
        images = images.contiguous(memory_format=self.memory_format)
        loss = F.cross_entropy(self.model(images), labels)
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        return loss.detach()


def training_case(name: str) -> Case:
    def inputs(device: torch.device) -> Inputs:
        generator = torch.Generator().manual_seed(2)
        labels = torch.randint(1000, (TRAINED_BATCH,), generator=generator)
        return _images(TRAINED_BATCH, TRAINED_SIZE, device), labels.to(device)

    def providers(device: torch.device) -> Providers:
        baseline, model = (copy.deepcopy(m).to(device) for m in pair(name))
        last = copy.deepcopy(baseline).to(memory_format=torch.channels_last)
        fused = fastvision.fuse(copy.deepcopy(last), training=True)
        return {
            EAGER: Step(baseline, torch.contiguous_format),
            EAGER_CHANNELS_LAST: Step(last, torch.channels_last),
            BUILT: Step(copy.deepcopy(model), torch.contiguous_format),
            BUILT_CHANNELS_LAST: Step(
                model.to(memory_format=torch.channels_last), torch.channels_last
            ),
            TORCHVISIONS: Step(fused, torch.channels_last),
        }

    return Case(
        "models",
        f"{name}, training step, batch {TRAINED_BATCH}",
        inputs=inputs,
        providers=providers,
        check=lambda actual, expected: torch.testing.assert_close(
            actual, expected, rtol=1e-4, atol=1e-5
        ),
        quick=False,
        least_rounds=4,
        note=f"{TRAINED_SIZE}x{TRAINED_SIZE}, cross entropy, SGD",
    )


CASES = [
    *(inference_case(name, size, batch) for name, size in CLASSIFIERS for batch in BATCHES),
    *map(training_case, TRAINED),
]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_models(case: Case, compare) -> None:
    compare(case)
