"""Train a detector with proposals of selective search on scenes of digits, and test it on others.

python scripts/train_rcnn.py rcnn --output runs/rcnn.pt
python scripts/train_rcnn.py fast_rcnn --output runs/fast_rcnn.pt
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torchmetrics.detection import MeanAveragePrecision

from fastvision import models
from fastvision.data import DigitScenes, detection_evaluation
from fastvision.models.detection import RCNN, SelectiveSearch, fast_rcnn_vgg16

SIZE = 96  # of the scenes
CLASSES = 11

parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
parser.add_argument("model", choices=("rcnn", "fast_rcnn"))
parser.add_argument("--scenes", type=int, default=2000, help="to train on")
parser.add_argument("--fitted", type=int, default=600, help="of them for R-CNN's SVMs")
parser.add_argument("--penalty", type=float, default=0.01, help="C of the SVMs")
parser.add_argument("--tested", type=int, default=200, help="scenes to test on")
parser.add_argument("--steps", type=int, default=2500)
parser.add_argument("--images", type=int, default=8, help="per step")
parser.add_argument("--rate", type=float, default=2e-3, help="largest learning rate")
parser.add_argument("--seed", type=int, default=0)
parser.add_argument("--cache", type=Path, help="folder for proposals")
parser.add_argument("--output", type=Path, help="file for the weights")
options = parser.parse_args()


class Clock:
    """Seconds of this process: of all its threads, whoever else is at work."""

    def __init__(self) -> None:
        self.start = time.process_time()

    def __str__(self) -> str:
        return f"{time.process_time() - self.start:.0f} s"


def scenes(split: str, length: int) -> tuple[list[Tensor], list[dict[str, Any]]]:
    data = DigitScenes(
        split,
        length=length,
        size=SIZE,
        n_objects=(1, 4),
        scale=(0.3, 0.6),
        transforms=detection_evaluation(),
        seed=options.seed,
    )
    images, targets = zip(*data, strict=True)
    return list(images), list(targets)


def build() -> nn.Module:
    search = SelectiveSearch(scale=100, min_size=12, cache=options.cache)
    if options.model == "fast_rcnn":
        return fast_rcnn_vgg16(
            num_classes=CLASSES,
            base_width=16,
            batch_norm=True,
            dropout=0.0,
            min_size=128,
            proposals=search,
            batch_size_per_image=32,
            positive_fraction=0.5,
        )
    network = models.vgg11_bn(num_classes=CLASSES, base_width=16, dropout=0.0)
    return RCNN(
        network,
        size=32,
        context=4,
        proposals=search,
        batch_size_per_image=16,
        positive_fraction=0.5,
        batch_size=256,
    )


def train(model: Any, images: list[Tensor], targets: list[dict[str, Any]]) -> None:
    proposals = [model.proposals([image])[0] for image in images]
    print(f"{sum(map(len, proposals)) / len(images):.0f} proposals per scene, {clock}", flush=True)
    optimizer = torch.optim.AdamW(model.parameters(), options.rate, fused=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, options.rate, total_steps=options.steps, pct_start=0.1
    )
    total = 0.0
    for step in range(1, options.steps + 1):
        chosen = torch.randint(len(images), (options.images,)).tolist()
        losses = model(*([part[i] for i in chosen] for part in (images, targets, proposals)))
        loss = sum(losses.values())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        total += loss.item()
        if step % 50 == 0:
            print(f"step {step}, loss {total / 50:.3f}, {clock}", flush=True)
            total = 0.0


def test(model: nn.Module) -> float:
    """COCO's mAP at an IoU of 0.5, on scenes of other digits and photographs."""
    metric = MeanAveragePrecision(iou_thresholds=[0.5])
    model.eval()
    with torch.no_grad():
        for image, target in zip(*scenes("test", options.tested), strict=True):
            metric.update(model([image]), [{name: target[name] for name in ("boxes", "labels")}])
    map50 = float(metric.compute()["map_50"])
    print(f"mAP50 {map50:.3f}, {clock}", flush=True)
    return map50


torch.manual_seed(options.seed)
clock = Clock()
images, targets = scenes("train", options.scenes)
model: Any = build()
train(model, images, targets)
test(model)
if options.model == "rcnn":
    model.fit(images[: options.fitted], targets[: options.fitted], penalty=options.penalty)
    test(model)
if options.output is not None:
    options.output.parent.mkdir(parents=True, exist_ok=True)
    torch.save(model.state_dict(), options.output)
