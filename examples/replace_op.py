"""Replace two ops of torchvision: the same call, the same result."""

import torch
import torchvision

from fastvision import ops

torch.manual_seed(0)
corners = torch.rand(2000, 2) * 700
boxes = torch.cat([corners, corners + 20 + torch.rand(2000, 2) * 100], 1)
scores = torch.rand(2000)

keep = ops.nms(boxes, scores, 0.5)
assert torch.equal(keep, torchvision.ops.nms(boxes, scores, 0.5))
print(f"nms keeps {len(keep)} of {len(boxes)} boxes, the same ones as torchvision")

features = torch.randn(1, 64, 50, 50)
options = {"output_size": 7, "spatial_scale": 1 / 16, "sampling_ratio": 2}
pooled = ops.roi_align(features, [boxes[keep]], **options)
expected = torchvision.ops.roi_align(features, [boxes[keep]], **options)
torch.testing.assert_close(pooled, expected, rtol=1e-4, atol=1e-5)
error = (pooled - expected).abs().max().item()
print(f"roi_align pools {tuple(pooled.shape)}, at most {error:.1e} from torchvision")
