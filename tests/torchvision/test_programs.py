"""Programs that call torchvision.ops in the ways of well-known packages, under enable()."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import fastvision
from fastvision.testing import cases
from fastvision.testing.numerics import assert_matches

pytest.importorskip("torchvision.ops")
import torchvision  # noqa: E402
from torchvision.ops import boxes as box_ops  # noqa: E402
from torchvision.ops import roi_align, roi_pool, sigmoid_focal_loss  # noqa: E402
from torchvision.ops.boxes import batched_nms, nms  # noqa: E402

pytestmark = pytest.mark.usefixtures("needs_kernels", "one_thread")

COUNT, CLASSES = 400, 6


def candidates(seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Boxes, scores and classes of an image."""
    boxes = cases.clustered_boxes(COUNT, seed=seed)
    return boxes, cases.scores(COUNT, seed=seed), cases.classes(COUNT, CLASSES, seed=seed)


class LevelPooler(nn.Module):
    """detectron2's: a RoIAlign per level, results written to their rows."""

    def forward(self, maps: list[Tensor], boxes: list[Tensor]) -> Tensor:
        images = torch.cat([torch.full((len(b), 1), float(i)) for i, b in enumerate(boxes)])
        rois = torch.cat([images, torch.cat(boxes)], 1)
        sizes = (rois[:, 3] - rois[:, 1]).mul(rois[:, 4] - rois[:, 2]).sqrt()
        levels = torch.floor(4 + torch.log2(sizes / 56 + 1e-8)).clamp(2, 4).long() - 2
        output = maps[0].new_zeros(len(rois), maps[0].shape[1], 7, 7)
        for level, feature in enumerate(maps):
            rows = (levels == level).nonzero(as_tuple=True)[0]
            pooled = roi_align(feature, rois[rows].to(feature.dtype), 7, 0.25 / 2**level, 0, True)
            output.index_put_((rows,), pooled)
        return output


def detectron2() -> list[Tensor]:
    """Its Fast R-CNN inference, and the gradient of its pooler."""
    boxes, scores, classes = candidates()
    keep = box_ops.batched_nms(boxes.float(), scores, classes, 0.5)[:50]
    maps, _ = cases.pyramid(2, 4, height=128, width=160, levels=3)
    maps = [m.double().requires_grad_() for m in maps]
    rois = cases.rois(30, 2, height=128, width=160, max_size=120)
    pooled = LevelPooler()(maps, [rois[rois[:, 0] == i, 1:] for i in (0, 1)])
    return [keep, pooled, *torch.autograd.grad(pooled.square().sum(), maps)]


def ultralytics() -> list[Tensor]:
    """Its NMS: classes are kept apart by an offset, the function is looked up in each call."""
    results = []
    for seed in (0, 1):
        boxes, scores, classes = candidates(seed)
        kept = scores > 0.2
        boxes, scores, classes = boxes[kept], scores[kept], classes[kept]
        order = scores.argsort(descending=True)[:300]
        boxes, scores, classes = boxes[order], scores[order], classes[order]
        keep = torchvision.ops.nms(boxes + classes[:, None] * 7680.0, scores, 0.7)[:100]
        results += [boxes[keep], scores[keep], keep]
    return results


def mmdetection() -> list[Tensor]:
    """Class by class from a number of boxes on, and the layers that it takes from torchvision."""
    boxes, scores, classes = candidates()
    mask = torch.zeros(COUNT, dtype=torch.bool)
    for label in classes.unique():
        rows = (classes == label).nonzero(as_tuple=False).view(-1)
        mask[rows[nms(boxes[rows], scores[rows], 0.5)]] = True
    keep = mask.nonzero(as_tuple=False).view(-1)
    keep = keep[scores[keep].argsort(descending=True)]
    maps = cases.feature_map(2, 4, 20, 24).double().requires_grad_()
    rois = cases.rois(12, 2, height=40, width=48, max_size=30).double()
    results = [keep]
    for pooled in (roi_align(maps, rois, (3, 5), 0.5, 2, True), roi_pool(maps, rois, (3, 5), 0.5)):
        results += [pooled, *torch.autograd.grad(pooled.square().sum(), maps)]
    return results


def effdet() -> list[Tensor]:
    """Its detections, padded to a fixed number, and a loss over all levels."""
    boxes, scores, classes = candidates()
    keep = batched_nms(boxes, scores, classes, iou_threshold=0.5)[:100]
    rows = torch.cat([boxes[keep], scores[keep, None], classes[keep, None] + 1.0], 1)
    padded = nn.functional.pad(rows, (0, 0, 0, 100 - len(rows)))
    logits = torch.linspace(-6, 6, 400, dtype=torch.float64).view(50, 8).requires_grad_()
    wanted = (torch.arange(400).view(50, 8) % 7 == 0).double()
    loss = sigmoid_focal_loss(logits, wanted, 0.25, 1.5, "sum") / wanted.sum()
    loss = loss + torchvision.ops.sigmoid_focal_loss(logits, wanted, gamma=2.0).mean()
    return [keep, padded, loss, *torch.autograd.grad(loss, logits)]


def facenet() -> list[Tensor]:
    """Its cascade: within each scale, then over all scales, of a batch of images at once."""
    scales, images = [], []
    for scale, seed in ((1.0, 0), (0.6, 1)):
        boxes, scores, _ = candidates(seed)
        image = torch.arange(COUNT) % 3
        keep = batched_nms(boxes / scale, scores, image, 0.5)
        scales.append(torch.cat([boxes[keep] / scale, scores[keep, None]], 1))
        images.append(image[keep])
    found, image = torch.cat(scales), torch.cat(images)
    keep = batched_nms(found[:, :4], found[:, 4], image, 0.7)
    return [found[keep], image[keep], keep]


PROGRAMS: dict[Callable[[], list[Tensor]], set[str]] = {  # and ops of ours that they run
    detectron2: {"nms", "roi_align", "roi_align_backward"},
    ultralytics: {"nms"},
    mmdetection: {"nms", "roi_align", "roi_align_backward", "roi_pool", "roi_pool_backward"},
    effdet: {"nms"},
    facenet: {"nms"},
}


@pytest.mark.parametrize("program", PROGRAMS, ids=lambda p: p.__name__)
def test_program(program: Callable[[], list[Tensor]], our_ops) -> None:
    expected = program()
    results: list[Tensor] = []
    with fastvision.enabled():
        ran = our_ops(lambda: results.extend(program()))
    assert {f"fastvision::{name}" for name in PROGRAMS[program]} <= ran
    for actual, wanted in zip(results, expected, strict=True):
        assert wanted.numel() > 0
        if wanted.is_floating_point():
            assert_matches(actual, wanted, scale=10)
        else:
            assert torch.equal(actual, wanted)
