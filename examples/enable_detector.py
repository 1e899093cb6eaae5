"""Run an unchanged torchvision detector on fastvision's kernels."""

import torch
from torchvision.models.detection import fasterrcnn_mobilenet_v3_large_320_fpn

import fastvision

torch.manual_seed(0)
# random weights are enough to compare; with them no score is high
detector = fasterrcnn_mobilenet_v3_large_320_fpn(
    weights=None, weights_backbone=None, box_score_thresh=0.0
).eval()
image = torch.rand(3, 240, 320)

with torch.inference_mode():
    before = detector([image])[0]
    with fastvision.enabled():
        after = detector([image])[0]

for name, expected in before.items():
    torch.testing.assert_close(after[name], expected, rtol=1e-4, atol=1e-3)
print(f"{len(after['boxes'])} detections, the same as without fastvision")
