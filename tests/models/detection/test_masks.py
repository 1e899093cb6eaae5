"""Prediction of masks."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import fastvision
from fastvision.models.detection import masks
from fastvision.testing import cases


class _MasksOfLabels(nn.Module):
    """A mask branch as RoIHeads runs it."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Conv2d(16, 24, 3, padding=1)
        self.predictor = masks.MaskRCNNPredictor(24, 8, 5)

    def forward(self, x: Tensor, labels: Tensor) -> Tensor:
        return masks.predict(self.predictor, self.head(x), labels)


@pytest.mark.parametrize("fused", [False, True])
def test_masks_of_labels(fused, monkeypatch):
    """Only those of the label of each box are computed, and follow the weights."""
    model = _MasksOfLabels().eval()
    maps = torch.randn(3, 16, 6, 7, generator=cases.generator(0))
    labels = torch.tensor([4, 0, 2])
    run = fastvision.fuse(model) if fused else model
    for x in (maps, maps.contiguous(memory_format=torch.channels_last), maps[:0], maps[:1]):
        wanted = labels[: len(x)]
        with torch.no_grad():
            for m in {model, run}:
                m.predictor.mask_fcn_logits.bias += 1
            every = model.predictor(model.head(x))
            expected = every[torch.arange(len(x)), wanted]
            with monkeypatch.context() as patch:
                patch.setattr(masks, "of_labels", None)
                torch.testing.assert_close(run(x, wanted), expected, rtol=1e-4, atol=1e-4)
    if fused:
        assert run.fastvision_report.waiting == 0
    model.train()  # where gradients of all classes' weights are wanted
    assert model(x, wanted).grad_fn is not None
