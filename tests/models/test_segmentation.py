"""What is particular to the segmentation models: their weights and the format of their results."""

from __future__ import annotations

import pytest
import torch

from fastvision import models
from fastvision._memory_format import memory_format
from fastvision.models import segmentation
from fastvision.testing.models import images


def test_weights_decide_about_the_auxiliary_classifier(tmp_path):
    build = segmentation.deeplabv3_mobilenet_v3_large
    for aux in (False, True):
        model = build(weights_backbone=None, aux_loss=aux, num_classes=3)
        torch.save(model.state_dict(), tmp_path / "model.pth")
        for given in (None, aux):
            loaded = build(weights=tmp_path / "model.pth", aux_loss=given, num_classes=3)
            assert loaded.state_dict().keys() == model.state_dict().keys()
            for key, value in loaded.state_dict().items():
                assert torch.equal(value, model.state_dict()[key])
        with pytest.raises(ValueError, match="aux_loss"):
            build(weights=tmp_path / "model.pth", aux_loss=not aux, num_classes=3)


def test_weights_of_the_backbone():
    backbone = models.mobilenet_v3_large()
    model = segmentation.lraspp_mobilenet_v3_large(weights_backbone=backbone.state_dict())
    for key, value in model.backbone.state_dict().items():
        assert torch.equal(value, backbone.features.state_dict()[key])


def test_no_auxiliary_loss_of_lraspp():
    with pytest.raises(NotImplementedError, match="aux_loss"):
        segmentation.lraspp_mobilenet_v3_large(weights_backbone=None, aux_loss=True)


@pytest.mark.parametrize("channels_last", [False, True], ids=["nchw", "nhwc"])
def test_format_of_the_result(channels_last):
    model = segmentation.deeplabv3_mobilenet_v3_large(weights_backbone=None, aux_loss=True).eval()
    format = memory_format(channels_last)
    with torch.no_grad():
        result = model(images(48).contiguous(memory_format=format))
    assert list(result) == ["out", "aux"]
    for scores in result.values():
        assert scores.shape == (2, 21, 48, 48)
        assert scores.is_contiguous(memory_format=format)


def test_on_the_meta_device():
    model = segmentation.lraspp_mobilenet_v3_large(weights_backbone=None).to("meta").eval()
    assert model(torch.empty(1, 3, 64, 64, device="meta"))["out"].shape == (1, 21, 64, 64)
    model = models.mobilenet_v3_small().to("meta").eval()
    assert model(torch.empty(1, 3, 64, 64, device="meta")).shape == (1, 1000)


def test_hooks_of_residual_blocks():
    """A block whose addition is part of a convolution calls its layers where somebody listens."""
    for model, name in (
        (models.mobilenet_v2(), "features.3.conv"),
        (models.mobilenet_v3_small(), "features.3.block"),
    ):
        model.eval()
        x = images(32)
        with torch.no_grad():
            expected = model(x)
            seen = []
            layers = model.get_submodule(name)
            layers.register_forward_hook(lambda *args, seen=seen: seen.append(args[2]))
            result = model(x)
        assert len(seen) == 1
        assert (result - expected).abs().max() <= 1e-4 * expected.abs().max()
