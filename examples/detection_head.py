"""Train a small detection head with focal loss and decode it with batched NMS."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fastvision import ops

IMAGE, STRIDE = 64, 8
CELLS = IMAGE // STRIDE
CLASSES = ("square", "frame")


class Head(nn.Module):
    """A class per cell of a grid, and the box around the object centred there."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            ops.Conv2dNormActivation(1, 16, 3, stride=2),
            ops.Conv2dNormActivation(16, 32, 3, stride=2),
            ops.Conv2dNormActivation(32, 32, 3, stride=2),
            ops.Conv2dNormActivation(32, 32, 3),
        )
        self.classes = nn.Conv2d(32, len(CLASSES), 1)
        self.boxes = nn.Conv2d(32, 4, 1)
        nn.init.constant_(self.classes.bias, -2.0)  # objects are rare

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """[N, cells, K] logits, and [N, cells, 4] distances to the sides of the box in cells."""
        x = self.features(images)
        logits, sides = self.classes(x).flatten(2).mT, self.boxes(x).flatten(2).mT
        return logits, F.softplus(sides)


def make_images(count: int) -> tuple[Tensor, Tensor, Tensor]:
    """Noisy images with one object each, its label and its box."""
    images = torch.rand(count, 1, IMAGE, IMAGE) * 0.3
    labels = torch.randint(0, len(CLASSES), (count,))
    corners = torch.randint(0, IMAGE - 24, (count, 2))
    boxes = torch.cat([corners, corners + torch.randint(12, 24, (count, 2))], 1)
    for image, label, (x1, y1, x2, y2) in zip(images, labels, boxes.tolist(), strict=True):
        image[:, y1:y2, x1:x2] = 1
        if CLASSES[label] == "frame":
            image[:, y1 + 3 : y2 - 3, x1 + 3 : x2 - 3] = 0
    return images, labels, boxes.float()


def centres() -> Tensor:
    """[cells, 2] centres of the grid's cells in pixels."""
    steps = (torch.arange(CELLS) + 0.5) * STRIDE
    return torch.cartesian_prod(steps, steps).flip(1)


def loss_of(head: Head, images: Tensor, labels: Tensor, boxes: Tensor) -> Tensor:
    logits, sides = head(images)
    rows = torch.arange(len(images))
    x, y = ((boxes[:, :2] + boxes[:, 2:]) / 2 / STRIDE).long().unbind(1)
    cell = y * CELLS + x
    targets = torch.full(logits.shape[:2], -1)  # background
    targets[rows, cell] = labels
    classification = ops.sigmoid_focal_loss(logits, targets, reduction="sum") / len(images)
    centre = centres()[cell]
    expected = torch.cat([centre - boxes[:, :2], boxes[:, 2:] - centre], 1) / STRIDE
    return classification + F.l1_loss(sides[rows, cell], expected)


@torch.inference_mode()
def detect(head: Head, images: Tensor) -> tuple[Tensor, Tensor]:
    """The best box of each image after NMS, and its label."""
    logits, sides = head(images)
    scores, labels = logits.sigmoid().max(2)
    boxes = torch.cat([centres() - sides[..., :2] * STRIDE, centres() + sides[..., 2:] * STRIDE], 2)
    best, counts = ops.batched_nms_padded(boxes, scores, labels, 0.5, max_output=1)
    assert (counts == 1).all()
    rows = torch.arange(len(images))
    return boxes[rows, best[:, 0]], labels[rows, best[:, 0]]


def overlap(a: Tensor, b: Tensor) -> Tensor:
    """[N] intersection over union of boxes in pairs."""
    size = (torch.minimum(a[:, 2:], b[:, 2:]) - torch.maximum(a[:, :2], b[:, :2])).clamp(min=0)
    inter = size.prod(1)
    return inter / ((a[:, 2:] - a[:, :2]).prod(1) + (b[:, 2:] - b[:, :2]).prod(1) - inter)


torch.manual_seed(0)
head = Head()
optimizer = torch.optim.Adam(head.parameters(), lr=5e-3)
for step in range(81):
    loss = loss_of(head, *make_images(16))
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    if step % 20 == 0:
        print(f"step {step:3}: loss {loss.item():.3f}")

images, labels, boxes = make_images(100)
found_boxes, found_labels = detect(head.eval(), images)
right = (found_labels == labels) & (overlap(found_boxes, boxes) > 0.5)
print(f"{int(right.sum())} of {len(images)} objects found with the right class and box")
assert right.sum() >= 80
