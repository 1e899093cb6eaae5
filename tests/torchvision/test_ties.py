"""Equal scores keep torchvision's order, in eager mode and in TorchScript."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import fastvision
from fastvision.testing import cases

pytest.importorskip("torchvision.ops")
from torchvision import ops  # noqa: E402

pytestmark = [
    pytest.mark.usefixtures("needs_kernels"),
    pytest.mark.filterwarnings("ignore:.*torch.jit:FutureWarning"),
]


class BatchedNms(nn.Module):
    def forward(self, boxes: Tensor, scores: Tensor, classes: Tensor) -> Tensor:
        return ops.boxes.batched_nms(boxes, scores, classes, 0.5)


@pytest.mark.parametrize("count", [900, 1500])  # torchvision loops over classes from 1001 on
@pytest.mark.parametrize("levels", [1, 5, 10**6])
def test_order_of_equal_scores(count, levels, our_ops):
    """torchvision's, in eager mode and in TorchScript, whether scripted before or after."""
    boxes, classes = cases.clustered_boxes(count), cases.classes(count, 5)
    scores = (cases.scores(count) * levels).ceil() / levels
    arguments = boxes, scores, classes
    before = torch.jit.script(BatchedNms())
    expected = BatchedNms()(*arguments)
    with fastvision.enabled():
        after = torch.jit.script(BatchedNms())
        for module in (BatchedNms(), before, after):
            assert torch.equal(module(*arguments), expected)
            assert our_ops(module, *arguments) == {"fastvision::nms"}
        compiled = torch.compile(BatchedNms(), fullgraph=True, backend="aot_eager")
        assert torch.equal(compiled(*arguments), expected)
        scores[::7] = float("nan")
        with_nan = BatchedNms()(*arguments)
    assert torch.equal(BatchedNms()(*arguments), with_nan)
