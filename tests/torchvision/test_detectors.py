"""torchvision's detectors, whole."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import fastvision
from fastvision.testing import cases

pytest.importorskip("torchvision.ops")
from torchvision.models import detection  # noqa: E402
from torchvision.models.detection.backbone_utils import resnet_fpn_backbone  # noqa: E402

pytestmark = [
    pytest.mark.usefixtures("needs_kernels", "one_thread"),
    pytest.mark.filterwarnings("ignore:.*torch.jit:FutureWarning"),
    pytest.mark.filterwarnings("ignore:RCNN always returns:UserWarning"),
]
OURS = {
    "fastvision::batch_norm_relu",
    "fastvision::box_iou",
    "fastvision::nms",
    "fastvision::roi_align",
    "fastvision::roi_align_backward",
}


SIZES = {"min_size": 96, "max_size": 128}
# in double precision no two scores of random weights are equal but for rounding
IMAGES = [cases.feature_map(3, 80, 90).double(), cases.feature_map(3, 96, 72).double()]
CORNER = torch.tensor([[5.0, 5, 40, 50], [20, 10, 60, 70], [30, 30, 70, 60]]).double()
TARGETS = [
    {"boxes": CORNER, "labels": torch.tensor([1, 2, 3]), "masks": torch.ones(3, 80, 90)},
    {"boxes": CORNER[1:], "labels": torch.tensor([3, 1]), "masks": torch.ones(2, 96, 72)},
]


def detector(name: str) -> nn.Module:
    torch.manual_seed(0)
    return _detector(name).double()


def _detector(name: str) -> nn.Module:
    backbone = resnet_fpn_backbone(backbone_name="resnet18", weights=None, trainable_layers=5)
    if name == "faster_rcnn":
        return detection.FasterRCNN(backbone, 4, box_score_thresh=0, **SIZES)
    if name == "mask_rcnn":
        few = {"rpn_post_nms_top_n_train": 30, "box_batch_size_per_image": 16}
        few |= {"box_detections_per_img": 5}
        return detection.MaskRCNN(backbone, 4, box_score_thresh=0, **few, **SIZES)
    if name == "retinanet":
        model = detection.RetinaNet(backbone, 4, score_thresh=0, topk_candidates=100, **SIZES)
    else:
        backbone.out_channels = [256] * 5
        anchors = detection.anchor_utils.DefaultBoxGenerator([[2]] * 5)
        model = detection.ssd.SSD(
            backbone, anchors, (96, 96), 4, score_thresh=0, topk_candidates=100
        )
    for parameter in model.head.parameters():
        if parameter.dim() > 1:  # as initialised, all boxes get one score, and the order is chance
            nn.init.normal_(parameter, std=0.03)
    return model


@pytest.mark.parametrize("name", ["faster_rcnn", "mask_rcnn", "retinanet", "ssd"])
def test_detector(name, our_ops):
    model = detector(name).eval()
    results = []
    with torch.no_grad():
        expected = model(IMAGES)
        with fastvision.enabled():
            ran = our_ops(lambda: results.extend(model(IMAGES)))
    assert ("fastvision::roi_align" in ran) == ("rcnn" in name) and "fastvision::nms" in ran
    assert all(len(result["boxes"]) >= 5 for result in expected)
    torch.testing.assert_close(results, expected, rtol=1e-4, atol=1e-4)


def test_detector_in_training(our_ops):
    model = detector("mask_rcnn").eval()  # batch norm's statistics must not move between the runs
    model.training = model.rpn.training = model.roi_heads.training = True

    def train() -> tuple[Tensor, Tensor]:
        torch.manual_seed(1)  # of the sampling of proposals
        model.zero_grad()
        losses = torch.stack(list(model(IMAGES, TARGETS).values()))
        losses.sum().backward()
        return losses.detach(), model.backbone.body.layer3[0].conv1.weight.grad.clone()

    expected_losses, expected_grad = train()
    with fastvision.enabled():
        assert our_ops(train) == OURS
        losses, grad = train()
    torch.testing.assert_close(losses, expected_losses, rtol=1e-4, atol=1e-4)
    assert (grad - expected_grad).norm() < 1e-3 * expected_grad.norm()


def test_detector_in_torchscript(our_ops):
    model = detector("faster_rcnn").eval()
    with torch.no_grad():
        expected = model(IMAGES)
        with fastvision.enabled():
            scripted = torch.jit.script(model)
            results = []
            ran = our_ops(lambda: results.extend(scripted(IMAGES)[1]))
    assert ran == {"fastvision::nms", "fastvision::roi_align"}
    torch.testing.assert_close(results, expected, rtol=1e-4, atol=1e-4)
