"""Put a backbone of your own under Faster R-CNN and train it on digits in photographs.

python examples/own_backbone.py --steps 2000    # the default of 30 only shows that it learns
"""

import argparse

import torch
from torch import Tensor, nn

from fastvision import models, ops
from fastvision.data import DigitScenes, collate_detection, detection_evaluation

parser = argparse.ArgumentParser(description="Faster R-CNN on a backbone of seven convolutions")
parser.add_argument("--steps", type=int, default=30)
options = parser.parse_args()


class Backbone(nn.Module):
    """Maps of 1/8 and 1/16 of the resolution. A detector asks for the number of their channels."""

    out_channels = 64

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            ops.Conv2dNormActivation(3, 16, 3, stride=2),
            ops.Conv2dNormActivation(16, 32, 3, stride=2),
            ops.Conv2dNormActivation(32, 32, 3),
            ops.Conv2dNormActivation(32, 64, 3, stride=2),
            ops.Conv2dNormActivation(64, 64, 3),
        )
        self.deep = nn.Sequential(
            ops.Conv2dNormActivation(64, 64, 3, stride=2),
            ops.Conv2dNormActivation(64, 64, 3),
        )

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        fine = self.stem(images)
        return {"fine": fine, "coarse": self.deep(fine)}


torch.manual_seed(0)
scenes = DigitScenes("train", size=96, n_objects=(1, 3), scale=(0.25, 0.6), overlap=False)
scenes.transforms = detection_evaluation()
model = models.detection.FasterRCNN(
    Backbone(),
    min_size=96,
    max_size=96,
    rpn_anchor_generator=models.detection.AnchorGenerator(((24, 32), (48, 64)), ((1.0, 2.0),) * 2),
    box_roi_pool=ops.MultiScaleRoIAlign(["fine", "coarse"], output_size=5, sampling_ratio=2),
    box_head=models.detection.TwoMLPHead(64 * 5 * 5, 128),
    box_predictor=models.detection.FastRCNNPredictor(128, len(scenes.classes)),  # and background
)
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
losses = []
for step in range(options.steps):
    batch = [scenes[(8 * step + i) % len(scenes)] for i in range(8)]
    images, targets = collate_detection(batch)
    terms = model(images, targets)
    loss = sum(terms.values())
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    losses.append(loss.item())
    if step % 10 == 0:
        named = ", ".join(f"{name[5:]} {term.item():.2f}" for name, term in terms.items())
        print(f"step {step}: {loss.item():.2f} ({named})")

model.eval()
with torch.inference_mode():
    found = model([scenes[0][0]])[0]
print(f"{len(found['boxes'])} boxes in a scene")
tenth = max(1, options.steps // 10)
assert sum(losses[-tenth:]) < 0.9 * sum(losses[:tenth]), losses
