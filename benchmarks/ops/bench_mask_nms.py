"""mask_iou and mask_nms against products of masks in torch; torchvision has neither."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import fastvision
from benchmarks import work
from benchmarks.harness import EAGER, Case, Providers, backends
from fastvision.testing import cases

# (N, H, W), part of a quick run
MASKS = [((100, 28, 28), True), ((100, 200, 304), True), ((100, 800, 1216), False)]
THRESHOLD = 0.5


def ellipses(shape: tuple[int, int, int]) -> Tensor:
    """Masks of objects: several detections of each of ten."""
    count, height, width = shape
    g = cases.generator(9)
    which = torch.arange(count) % 10
    center = torch.rand(10, 2, generator=g)[which] + 0.02 * torch.randn(count, 2, generator=g)
    axes = (0.05 + 0.2 * torch.rand(10, 2, generator=g))[which]
    axes = axes * (1 + 0.2 * torch.rand(count, 2, generator=g))
    y = (torch.arange(height) / height - center[:, :1]) / axes[:, :1]
    x = (torch.arange(width) / width - center[:, 1:]) / axes[:, 1:]
    return y.square()[:, :, None] + x.square()[:, None] < 1


def by_products(masks: Tensor) -> Tensor:
    """In float32, which counts up to 2^24 pixels."""
    flat = masks.flatten(1).float()
    inter = flat @ flat.T
    pixels = inter.diagonal()
    return inter / (pixels[:, None] + pixels - inter)


def greedily(masks: Tensor, scores: Tensor) -> Tensor:
    order = scores.argsort(descending=True, stable=True)
    covers = (by_products(masks[order]) > THRESHOLD).triu(1)
    alive = torch.ones_like(order, dtype=torch.bool)
    for i in range(len(order)):
        if alive[i]:
            alive &= ~covers[i]
    return order[alive]


def case(op: str, shape: tuple[int, int, int], *, quick: bool) -> Case:
    def inputs(device: torch.device) -> tuple[Tensor, ...]:
        masks = ellipses(shape).to(device)
        return (masks,) if op == "mask_iou" else (masks, cases.scores(shape[0]).to(device))

    def providers(device: torch.device) -> Providers:
        def run(masks: Tensor, *scores: Tensor, backend: str) -> Tensor:
            if scores:
                return fastvision.ops.mask_nms(masks, *scores, THRESHOLD, backend=backend)
            return fastvision.ops.mask_iou(masks, masks, backend=backend)

        ours = backends(run, device, reference=False)
        ours.pop("cuda", None)
        return {EAGER: by_products if op == "mask_iou" else greedily} | ours

    def check(actual: Tensor, expected: Tensor) -> None:
        assert torch.equal(actual, expected.nan_to_num(0) if op == "mask_iou" else expected)

    return Case(
        "mask_nms",
        f"{op}, {'x'.join(map(str, shape))}",
        inputs=inputs,
        providers=providers,
        check=check,
        work=lambda tensors, result: work.mask_overlaps(tensors, result),
        quick=quick,
    )


CASES = [case(op, shape, quick=quick) for op in ("mask_iou", "mask_nms") for shape, quick in MASKS]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_mask_nms(case: Case, compare) -> None:
    compare(case)
