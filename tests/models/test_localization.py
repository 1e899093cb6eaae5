"""One network for class and box: its loss, term by term, and that it learns."""

import pytest
import torch

from fastvision import models
from fastvision.models import localization_loss


def test_loss_term_by_term():
    boxes = torch.tensor([[0.1, 0.2, 0.5, 0.6], [0.0, 0.0, 1.0, 1.0]])
    targets = torch.tensor([[0.2, 0.2, 0.4, 0.9], [0.0, 0.0, 1.0, 1.0]])
    scores = torch.tensor([[0.0, 0.0], [0.0, 0.0]])
    loss = localization_loss(boxes, scores, targets, torch.tensor([0, 1]), alpha=3.0)
    torch.testing.assert_close(loss.box, torch.tensor(0.25))  # (0.1 + 0.1 + 0.3) / 2
    torch.testing.assert_close(loss.label, torch.tensor(2.0).log())
    torch.testing.assert_close(loss.total, loss.box + 3 * loss.label)


def test_gradients_of_the_terms():
    boxes = torch.rand(3, 4, dtype=torch.double, requires_grad=True)
    scores = torch.rand(3, 5, dtype=torch.double, requires_grad=True)
    targets, labels = torch.rand(3, 4, dtype=torch.double), torch.tensor([0, 4, 2])
    assert torch.autograd.gradcheck(
        lambda b, s: localization_loss(b, s, targets, labels, 0.5), (boxes, scores)
    )


@pytest.mark.parametrize("shape", [(3, 5), (2, 4), (4,)])
def test_shapes_of_boxes(shape):
    with pytest.raises(ValueError, match="boxes and target_boxes"):
        localization_loss(torch.rand(3, 4), torch.rand(3, 2), torch.rand(shape), torch.zeros(3))


def test_the_first_four_outputs_are_the_box():
    torch.manual_seed(0)
    model = models.localizer(backbone="resnet20", num_classes=3).eval()
    x = torch.rand(2, 3, 32, 32)
    with torch.no_grad():
        boxes, scores = model(x)
        assert boxes.shape == (2, 4) and scores.shape == (2, 3)
        assert torch.equal(torch.cat((boxes, scores), 1), model.backbone(x))


def test_learns_squares():
    """Bright or dark squares: the kind is the class, the place is the box."""
    torch.manual_seed(0)
    model = models.localizer(backbone="resnet20", num_classes=2)
    generator = torch.Generator().manual_seed(0)

    def batch(count):
        corner = torch.randint(0, 9, (count, 2), generator=generator)
        labels = torch.randint(0, 2, (count,), generator=generator)
        x = torch.zeros(count, 3, 16, 16)
        for image, (left, top), label in zip(x, corner.tolist(), labels.tolist(), strict=True):
            image[:, top : top + 8, left : left + 8] = 2 * label - 1
        return x, torch.cat((corner, corner + 8), 1) / 16, labels

    unseen = batch(32)

    def losses():
        return localization_loss(*model(unseen[0]), *unseen[1:])

    model.eval()
    with torch.no_grad():
        before = losses()
    model.train()
    optimizer = torch.optim.Adam(model.parameters(), 3e-3)
    for _ in range(40):
        x, boxes, labels = batch(32)
        loss = localization_loss(*model(x), boxes, labels).total
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    model.eval()
    with torch.no_grad():
        after = losses()
    assert after.box < before.box / 2 and after.label < before.label / 2
