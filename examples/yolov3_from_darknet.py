"""Detect by a network of Darknet's files.

python examples/yolov3_from_darknet.py --config yolov3.cfg --weights yolov3.weights --image dog.jpg

Without files of Darknet, a narrow YOLOv3 with random weights is written and read.
"""

import argparse
import tempfile
from pathlib import Path

import torch
from torch import Tensor

import fastvision
from fastvision.models.darknet import load_darknet_weights, save_darknet_weights
from fastvision.models.detection import YOLO, yolov3

parser = argparse.ArgumentParser(description="boxes, labels and scores of one image")
parser.add_argument("--config", type=Path, help="a .cfg file; none for a network of random weights")
parser.add_argument("--weights", type=Path, help="the .weights file of this configuration")
parser.add_argument("--image", type=Path, help="an image; none for random pixels")
options = parser.parse_args()
if (options.config is None) != (options.weights is None):
    parser.error("--config and --weights belong together")


def picture(path: Path | None) -> Tensor:
    """[3, H, W] from 0 to 1."""
    if path is None:
        return torch.rand(3, 90, 120)
    from torchvision.io import ImageReadMode, decode_image

    return decode_image(str(path), ImageReadMode.RGB) / 255


torch.manual_seed(0)
image = picture(options.image)
with tempfile.TemporaryDirectory() as folder, torch.inference_mode():
    config, weights = options.config, options.weights
    if config is None:
        config, weights = Path(folder, "narrow.cfg"), Path(folder, "narrow.weights")
        narrow = yolov3(num_classes=5, width_mult=0.125, size=96).eval()
        config.write_text(narrow.network.config)
        save_darknet_weights(narrow.network, weights)
    model = YOLO(config, score_thresh=0.25 if options.config else 0.001).eval()
    seen = load_darknet_weights(model.network, weights)
    if options.config is None:
        batch = torch.rand(1, 3, 96, 96)
        for ours, theirs in zip(model.network(batch), narrow.network(batch), strict=True):
            assert torch.equal(ours, theirs)
    (found,) = fastvision.fuse(model)([image])

print(f"{weights.name}: trained on {seen:,} images, {len(found['boxes'])} detections")
for i, box in enumerate(found["boxes"][:10].tolist()):
    label, score = found["labels"][i].item(), found["scores"][i].item()
    print(f"{score:.3f}  label {label}  ({', '.join(f'{x:.0f}' for x in box)})")
