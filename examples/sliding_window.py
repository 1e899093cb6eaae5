"""Segment a picture patch by patch and in one pass: the same scores, at very different cost.

python examples/sliding_window.py --size 96
"""

import argparse
import time
from collections.abc import Callable

import torch
from torch import Tensor

from fastvision.models import segmentation

parser = argparse.ArgumentParser(description="21 classes from patches of 15x15")
parser.add_argument("--size", type=int, default=64, help="height and width of the picture")
options = parser.parse_args()

WINDOW = 15
torch.manual_seed(0)
classifier = segmentation.patch_classifier().eval()
one_pass = segmentation.fully_convolutional(classifier, WINDOW)
fcn = segmentation.fcn8s_vgg16(base_width=16).eval()
images = torch.randn(1, 3, options.size, options.size)


def seconds(function: Callable[[Tensor], object]) -> float:
    """The best of three calls, after one."""
    function(images)
    times = []
    for _ in range(3):
        start = time.perf_counter()
        function(images)
        times.append(time.perf_counter() - start)
    return min(times)


with torch.inference_mode():
    patches = segmentation.sliding_window(classifier, images, WINDOW)
    torch.testing.assert_close(one_pass(images), patches, rtol=1e-3, atol=1e-4)
    times = {
        "a patch for each pixel": seconds(
            lambda x: segmentation.sliding_window(classifier, x, WINDOW)
        ),
        "the same network in one pass": seconds(one_pass),
        "FCN-8s, a quarter of VGG-16's width": seconds(fcn),
    }
    slow, *_ = times.values()
    for name, took in times.items():
        print(f"{name:36} {took * 1e3:8.1f} ms, {slow / took:6.1f}x")
assert patches.shape == (1, 21, options.size, options.size)
