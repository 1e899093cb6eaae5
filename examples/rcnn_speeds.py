"""Time R-CNN, Fast R-CNN and Faster R-CNN on a photograph, and the proposals' share of it.

python examples/rcnn_speeds.py --size 480 640 --width 64 --regions 256
"""

import argparse
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
from sklearn.datasets import load_sample_image

from fastvision.models import detection

DETECTORS = ("R-CNN", "Fast R-CNN", "Fast R-CNN, SVD", "Faster R-CNN")

parser = argparse.ArgumentParser(description="detectors on VGG-16, with random weights")
parser.add_argument("--size", type=int, nargs=2, default=(120, 160), help="height and width")
parser.add_argument("--width", type=int, default=8, help="channels of VGG's first layer, 64 in VGG")
parser.add_argument("--regions", type=int, default=32, help="how many of them R-CNN is timed on")
parser.add_argument("--detectors", nargs="+", default=DETECTORS, choices=DETECTORS)
options = parser.parse_args()

torch.manual_seed(0)
photograph = torch.from_numpy(load_sample_image("china.jpg").copy()).permute(2, 0, 1)[None] / 255
(image,) = F.interpolate(photograph, tuple(options.size), mode="bilinear", antialias=True)


def seconds(function: Callable[..., object], *arguments: object, **others: object) -> float:
    """Of all cores together, whoever else is at work."""
    start = time.process_time()
    function(*arguments, **others)
    return time.process_time() - start


def report(name: str, searching: float, network: float, note: str = "") -> None:
    total = searching + network
    print(f"{name:16} {total:8.2f} s, of it {searching / total:4.0%} selective search{note}")


search = detection.SelectiveSearch()
searching = seconds(search, [image])
(boxes,) = search([image])
height, width = options.size
print(f"{len(boxes)} proposals in {height}x{width}, {torch.get_num_threads()} threads")
networks = {}
with torch.inference_mode():
    if "R-CNN" in options.detectors:
        model = detection.rcnn_vgg16(base_width=options.width).eval()
        some = boxes[torch.randperm(len(boxes))[: options.regions]]
        model([image], proposals=[some[:8]])  # packs the weights
        took = seconds(model, [image], proposals=[some])
        networks["R-CNN"] = took * len(boxes) / len(some)
        note = f"; {len(some)} regions took {took:.2f} s"
        report("R-CNN", searching, networks["R-CNN"], note)
    for name in options.detectors:
        if name.startswith("Fast R-CNN"):
            model = detection.fast_rcnn_vgg16(base_width=options.width).eval()
            if name.endswith("SVD"):
                model.compress(16 * options.width, 4 * options.width)
            model([image], proposals=[boxes])
            networks[name] = seconds(model, [image], proposals=[boxes])
            report(name, searching, networks[name])
    if "Faster R-CNN" in options.detectors:
        model = detection.faster_rcnn_vgg16(base_width=options.width).eval()
        model([image])
        networks["Faster R-CNN"] = seconds(model, [image])
        report("Faster R-CNN", 0.0, networks["Faster R-CNN"])
if {"R-CNN", "Fast R-CNN"} <= networks.keys():
    assert networks["R-CNN"] > networks["Fast R-CNN"]  # which computes features once
