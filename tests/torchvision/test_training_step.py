"""One training step of torchvision's detectors in float64: losses and gradients are stock's."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import fastvision
from fastvision.testing import cases

pytest.importorskip("torchvision.ops")
from torchvision.models import detection  # noqa: E402
from torchvision.models.detection import keypoint_rcnn, mask_rcnn, ssd, ssdlite  # noqa: E402
from torchvision.models.detection.backbone_utils import BackboneWithFPN  # noqa: E402
from torchvision.ops import FrozenBatchNorm2d  # noqa: E402
from torchvision.ops.feature_pyramid_network import LastLevelMaxPool, LastLevelP6P7  # noqa: E402

pytestmark = [pytest.mark.usefixtures("needs_kernels", "one_thread")]

SIZE = 64
SIZES = {"min_size": SIZE, "max_size": SIZE}
FEW = {
    "rpn_pre_nms_top_n_train": 60,
    "rpn_post_nms_top_n_train": 20,
    "rpn_batch_size_per_image": 32,
    "box_batch_size_per_image": 16,
    **SIZES,
}
C = 32  # of the pyramid; FCOS has groups of that many channels


def backbone(extra: nn.Module | None = None, levels: int = 3) -> nn.Module:
    """Some convolutions with frozen norms, and a pyramid on top."""
    layers = nn.Sequential(nn.Conv2d(3, 8, 4, 4))
    for _ in range(levels):
        step = nn.Conv2d(8, 8, 3, 2, 1, bias=False)
        layers.append(nn.Sequential(step, FrozenBatchNorm2d(8), nn.ReLU()))
    names = {str(level + 1): str(level) for level in range(levels)}
    return BackboneWithFPN(layers, names, [8] * levels, C, extra or LastLevelMaxPool())


def levels_of(count: int) -> nn.Module:
    found = backbone()
    found.out_channels = [C] * count
    return found


def anchors(count: int) -> nn.Module:
    sizes = tuple((8 * 2**level,) for level in range(count))
    return detection.anchor_utils.AnchorGenerator(sizes, ((0.5, 1.0, 2.0),) * count)


def rcnn(cls: type[nn.Module], classes: int, **options: object) -> nn.Module:
    model = cls(backbone(), classes, rpn_anchor_generator=anchors(4), **FEW, **options)
    model.roi_heads.box_roi_pool.featmap_names = ["0", "1", "2"]
    return model


def single_shot(head: Callable[[nn.Module], nn.Module | None]) -> nn.Module:
    boxes = detection.anchor_utils.DefaultBoxGenerator([[2]] * 4)
    return ssd.SSD(levels_of(4), boxes, (SIZE, SIZE), 4, head=head(boxes))


DETECTORS: dict[str, Callable[[], nn.Module]] = {
    "Faster R-CNN": lambda: rcnn(detection.FasterRCNN, 4),
    "Mask R-CNN": lambda: rcnn(
        detection.MaskRCNN,
        4,
        mask_head=mask_rcnn.MaskRCNNHeads(C, (8, 256), 1),
    ),
    "Keypoint R-CNN": lambda: rcnn(
        detection.KeypointRCNN,
        2,
        keypoint_head=keypoint_rcnn.KeypointRCNNHeads(C, (8, 8)),
        keypoint_predictor=keypoint_rcnn.KeypointRCNNPredictor(8, 5),
    ),
    "RetinaNet": lambda: detection.RetinaNet(
        backbone(LastLevelP6P7(C, C)), 4, anchor_generator=anchors(5), **SIZES
    ),
    "FCOS": lambda: detection.FCOS(backbone(LastLevelP6P7(C, C)), 4, **SIZES),
    "SSD": lambda: single_shot(lambda boxes: None),
    "SSDLite": lambda: single_shot(
        lambda boxes: ssdlite.SSDLiteHead(
            [C] * 4, boxes.num_anchors_per_location(), 4, nn.BatchNorm2d
        )
    ),
}


def targets(name: str) -> list[dict[str, Tensor]]:
    torch.manual_seed(2)
    found = []
    for boxes in ([[5.0, 5, 40, 50], [20, 10, 60, 61], [30, 30, 62, 60]], [[10.0, 12, 62, 50]]):
        count = len(boxes)
        target = {
            "boxes": torch.tensor(boxes, dtype=torch.float64),
            "labels": torch.ones(count, dtype=torch.int64)
            if "Keypoint" in name
            else torch.arange(count) % 3 + 1,
            "masks": torch.zeros(count, SIZE, SIZE, dtype=torch.uint8),
            "keypoints": torch.rand(count, 5, 3) * 20 + 20,  # torchvision takes float32
        }
        target["masks"][:, 10:50, 15:45] = 1
        target["keypoints"][..., 2] = 1
        found.append(target)
    return found


@pytest.mark.parametrize("name", DETECTORS)
def test_losses_and_gradients(name: str) -> None:
    torch.manual_seed(0)
    model = DETECTORS[name]().double().train()
    state = {key: value.clone() for key, value in model.state_dict().items()}
    images = [cases.feature_map(3, SIZE, SIZE, seed=s).double().sigmoid() for s in (0, 1)]
    wanted = targets(name)

    def step() -> dict[str, Tensor]:
        model.load_state_dict(state)
        model.zero_grad()
        torch.manual_seed(1)  # of the sampling of proposals
        losses = model(images, wanted)
        sum(losses.values()).backward()
        assert all(loss > 0 for loss in losses.values())
        gradients = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
        return {n: loss.detach() for n, loss in losses.items()} | gradients

    expected = step()
    with fastvision.enabled():
        assert fastvision.enabled_names()
        actual = step()
    assert actual.keys() == expected.keys()
    for key, values in expected.items():
        limit = 1e-10 * max(1.0, values.abs().max().item())
        error = (actual[key] - values).abs().max().item()
        assert error <= limit, f"{key}: {error} of {limit}"
