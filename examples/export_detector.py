"""Export a detector with its decoding and NMS as one program of fixed shapes, and run the file.

python examples/export_detector.py --model retinanet_resnet50_fpn --size 480 640
"""

import argparse
import tempfile
from pathlib import Path

import torch

from fastvision import models

parser = argparse.ArgumentParser(description="torch.export of a one-stage detector")
parser.add_argument("--model", default="small_retinanet")
parser.add_argument("--size", type=int, nargs=2, default=(96, 128), help="height and width")
options = parser.parse_args()


torch.manual_seed(0)
model = models.get_model(options.model).eval()
images = torch.rand(2, 3, *options.size)
with torch.inference_mode():
    # images are one tensor, and so are the boxes of all images, with a number of them for each
    expected = model.detect(images)
with torch.no_grad():
    program = torch.export.export(models.detection.FixedShape(model), (images,))

with tempfile.TemporaryDirectory() as folder:
    path = Path(folder) / "detector.pt2"
    torch.export.save(program, path)
    megabytes = path.stat().st_size / 1e6
    loaded = torch.export.load(path).module()
with torch.no_grad():
    found = loaded(images)
print(f"{path.name}: {megabytes:.1f} MB, boxes {list(found[0].shape)}")
torch.testing.assert_close(tuple(found), tuple(expected), rtol=1e-4, atol=1e-3)
