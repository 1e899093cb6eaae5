"""Fuse a timm model for inference and look at the report."""

import torch

import fastvision

try:
    import timm
except ImportError:
    print("skipped: timm is not installed")
    raise SystemExit(0) from None

torch.manual_seed(0)
model = timm.create_model("resnet18", pretrained=False).eval()
images = torch.randn(1, 3, 160, 160)

fast = fastvision.fuse(model, example_inputs=(images,))
print(fast.fastvision_report)

with torch.inference_mode():
    expected, logits = model(images), fast(images)
torch.testing.assert_close(logits, expected, rtol=1e-3, atol=1e-4)
assert type(fast).__name__ == type(model).__name__
assert fast.state_dict().keys() == model.state_dict().keys()
print(f"logits differ by at most {(logits - expected).abs().max().item():.1e}")
