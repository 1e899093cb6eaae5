"""Models that timm has too: same keys, same initialization, same results, same gradients."""

from __future__ import annotations

import pytest
import torch

import fastvision
from fastvision import models
from fastvision.testing.models import images, randomize

# ours, timm's, and a small size of the images
PAIRS = [("xception", "legacy_xception", 71), ("inception_resnet_v2", "inception_resnet_v2", 75)]


@pytest.mark.parametrize("ours, theirs, size", PAIRS)
def test_timm_has_the_same_model(ours: str, theirs: str, size: int) -> None:
    timm = pytest.importorskip("timm")
    torch.manual_seed(0)
    expected_model = timm.create_model(theirs, pretrained=False)
    torch.manual_seed(0)
    model = models.get_model(ours)
    state = expected_model.state_dict()
    assert list(model.state_dict()) == list(state)
    for key, value in model.state_dict().items():
        assert torch.equal(value, state[key]), f"{key} starts with other values"

    expected_model.load_state_dict(randomize(model).state_dict())
    model.load_state_dict(expected_model.state_dict())
    x = images(size)
    with torch.no_grad():
        expected = expected_model.eval()(x)
        for actual in (model.eval()(x), fastvision.fuse(model)(x)):
            assert actual.shape == expected.shape
            assert (actual - expected).abs().max() <= 1e-4 * expected.abs().max()

    for block in expected_model.modules():
        if hasattr(block, "scale"):  # of residuals, which ours holds in float32
            block.scale = float(torch.tensor(block.scale))
    gradients = []
    for each in (model, expected_model):
        each.double().train()
        result = each(x.double())
        result.square().sum().backward()
        gradients.append([result, *(p.grad for p in each.parameters())])
    for a, b in zip(*gradients, strict=True):
        assert a.shape == b.shape and (a - b).abs().max() <= 1e-6 * b.abs().max() + 1e-12
