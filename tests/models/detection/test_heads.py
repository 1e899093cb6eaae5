"""Heads of the user's own: whatever a class or hook changes of a head, detections follow."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fastvision import fuse, models
from fastvision.models.detection import (
    FCOS,
    SSD,
    AnchorGenerator,
    DefaultBoxGenerator,
    RetinaNet,
    fcos,
    retinanet,
    ssd,
)
from fastvision.testing.detectors import scenes

IMAGES = [torch.rand(3, 64, 96, generator=torch.Generator().manual_seed(0))]


class Maps(nn.Module):
    """Two maps of 16 channels, a backbone of any detector."""

    out_channels: Any = 16

    def __init__(self, channels: Any = 16) -> None:
        super().__init__()
        self.out_channels = channels
        self.fine, self.coarse = nn.Conv2d(3, 16, 3, 8, 1), nn.Conv2d(16, 16, 3, 2, 1)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        fine = self.fine(x)
        return {"fine": fine, "coarse": self.coarse(fine)}


def built(name: str) -> nn.Module:
    torch.manual_seed(0)
    if name == "SSD":
        boxes = DefaultBoxGenerator([[2], [2, 3]])
        model: nn.Module = SSD(Maps([16, 16]), boxes, (96, 64), 3, score_thresh=0.0)
    else:
        anchors = AnchorGenerator(((16,), (32,)), ((1.0,),) * 2)
        build, head = {
            "RetinaNet": (RetinaNet, retinanet.RetinaNetHead(16, 1, 3)),
            "FCOS": (FCOS, fcos.FCOSHead(16, 1, 3, num_convs=0)),
        }[name]
        options = {"min_size": 64, "max_size": 96, "score_thresh": 0.0}
        model = build(Maps(), 3, anchor_generator=anchors, head=head, **options)
    for parameter in model.parameters():
        if parameter.dim() == 4:
            nn.init.kaiming_normal_(parameter)
    return model.eval()


def convolutions(model: Any) -> list[nn.Conv2d]:
    """Those that predict classes."""
    head = model.head.classification_head
    return list(head.module_list) if isinstance(model, SSD) else [head.cls_logits]


def subclass(module: nn.Module, change: Callable[[Any], Any]) -> None:
    """Makes ``module`` an instance of a subclass whose forward changes the result."""
    base = type(module)

    class Changed(base):  # type: ignore[misc,valid-type]
        def forward(self, x: Any) -> Any:
            return change(super().forward(x))

    module.__class__ = Changed


def of_logits(outputs: dict[str, Tensor]) -> dict[str, Tensor]:
    return {key: value * (1 + (key == "cls_logits")) for key, value in outputs.items()}


@pytest.mark.parametrize("how", ["head", "part", "hook", "fused"])
@pytest.mark.parametrize("name", ["RetinaNet", "FCOS", "SSD"])
def test_a_change_of_the_scores_is_seen(name: str, how: str) -> None:
    """Logits that are doubled, as if the weights were."""
    model, reference = built(name), built(name)
    with torch.no_grad():
        before = model(IMAGES)[0]
        for layer in convolutions(reference):
            for parameter in layer.parameters():
                parameter *= 2
        part = model.head.classification_head
        if how == "hook":
            part.register_forward_hook(lambda module, arguments, result: result * 2)
        elif how == "part":
            subclass(part, lambda logits: logits * 2)
        else:
            subclass(model.head, of_logits)
        if how == "fused":
            model = fuse(model)
        expected, found = reference(IMAGES)[0], model(IMAGES)[0]
        fixed = model.detect(torch.stack(IMAGES)).unpadded()[0]
    assert len(expected["scores"]) > 3 and not torch.equal(expected["scores"], before["scores"])
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(fixed, expected, rtol=1e-4, atol=1e-3)


def test_a_change_of_the_distances_is_seen() -> None:
    model, reference = built("FCOS"), built("FCOS")
    with torch.no_grad():
        reference.head.regression_head.bbox_reg.weight *= 2
        reference.head.regression_head.bbox_reg.bias *= 2
        subclass(model.head.regression_head, lambda result: (2 * result[0], result[1]))
        torch.testing.assert_close(model(IMAGES), reference(IMAGES), rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("name", ["RetinaNet", "FCOS", "SSD"])
def test_parts_of_torchvision(name: str) -> None:
    theirs = pytest.importorskip("torchvision.models.detection")
    model, reference = built(name), built(name)
    head = model.head
    if name == "RetinaNet":
        part = theirs.retinanet.RetinaNetClassificationHead(16, 1, 3)
    elif name == "FCOS":
        part = theirs.fcos.FCOSClassificationHead(16, 1, 3, num_convs=0)
    else:
        part = theirs.ssd.SSDClassificationHead([16, 16], [4, 6], 3)
    part.load_state_dict(head.classification_head.state_dict())
    head.classification_head = part
    targets = [{"boxes": torch.tensor([[8.0, 8, 40, 40]]), "labels": torch.tensor([1])}]
    with torch.no_grad():
        torch.testing.assert_close(model(IMAGES), reference(IMAGES), rtol=1e-4, atol=1e-3)
        losses = [m.train()(IMAGES, targets) for m in (model, reference)]
    torch.testing.assert_close(*losses, rtol=1e-4, atol=1e-4)
    assert isinstance(head, (retinanet.RetinaNetHead, fcos.FCOSHead, ssd.SSDHead))


@pytest.mark.parametrize("name", ["RetinaNet", "FCOS"])
def test_own_parts(name):
    """A head with a hook is called as it is, and an own anchor generator is taken."""
    backbone = models.Stages(models.mobilenet_v1_x0_25().features, {"6": "0"})
    channels = backbone(torch.zeros(1, 3, 32, 32))["0"].shape[1]
    backbone.out_channels = channels
    torch.manual_seed(0)
    anchors = AnchorGenerator(((16,),), ((1.0,),))
    build = {"RetinaNet": RetinaNet, "FCOS": FCOS}[name]
    if name == "FCOS":
        head = fcos.FCOSHead(channels, 1, 3, num_convs=1)
        head.classification_head.conv = head.regression_head.conv = nn.Identity()
    else:
        head = retinanet.RetinaNetHead(channels, 1, 3)
    model = build(backbone, 3, 64, 96, anchor_generator=anchors, head=head, score_thresh=0.0).eval()
    images, _ = scenes(torch.float32)
    with torch.no_grad():
        expected = model(images)
        seen = []
        handle = head.register_forward_hook(lambda *args: seen.append(args[2]))
        actual = model(images)
        handle.remove()
    assert len(seen) == 1 and seen[0]["cls_logits"].shape[::2] == (2, 3)
    assert len(expected[0]["boxes"]) > 0
    torch.testing.assert_close(actual, expected)


def test_boxes_of_16_bits() -> None:
    """Their areas do not fit, but places are assigned as for wider ones."""
    model = built("FCOS").train()
    target = {"boxes": torch.tensor([[8.0, 8, 40, 40]]), "labels": torch.tensor([1])}
    with torch.no_grad():
        expected = model(IMAGES, [target])
        losses = model(IMAGES, [{**target, "boxes": target["boxes"].half()}])
    torch.testing.assert_close(losses, expected, rtol=1e-3, atol=1e-3)
