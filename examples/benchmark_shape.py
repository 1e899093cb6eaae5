"""Compare a fused convolution with torch's layers on a shape of your own.

python examples/benchmark_shape.py --channels 128 --size 28
"""

import argparse

import torch
from torch import nn
from torch.utils.benchmark import Timer

from fastvision import ops

parser = argparse.ArgumentParser(description="3x3 convolution, batch normalization and ReLU")
parser.add_argument("--batch", type=int, default=1)
parser.add_argument("--channels", type=int, default=64)
parser.add_argument("--size", type=int, default=56, help="height and width of the map")
parser.add_argument("--seconds", type=float, default=0.5, help="to measure each of them")
options = parser.parse_args()

torch.manual_seed(0)
channels = options.channels
layers = nn.Sequential(
    nn.Conv2d(channels, channels, 3, padding=1, bias=False), nn.BatchNorm2d(channels), nn.ReLU()
).eval()
conv, norm, _ = layers
x = torch.randn(options.batch, channels, options.size, options.size)


def fused(x: torch.Tensor) -> torch.Tensor:
    return ops.conv_bn_relu(
        x,
        conv.weight,
        bn_weight=norm.weight,
        bn_bias=norm.bias,
        running_mean=norm.running_mean,
        running_var=norm.running_var,
        padding=1,
    )


def milliseconds(function, x: torch.Tensor) -> float:
    threads = torch.get_num_threads()
    timer = Timer("function(x)", globals={"function": function, "x": x}, num_threads=threads)
    return timer.blocked_autorange(min_run_time=options.seconds).median * 1e3


with torch.inference_mode():
    torch.testing.assert_close(fused(x), layers(x), rtol=1e-3, atol=1e-4)
    print(f"{tuple(x.shape)}, {torch.get_num_threads()} threads")
    for name in ("contiguous", "channels_last"):
        memory_format = getattr(torch, f"{name}_format" if name == "contiguous" else name)
        y = x.contiguous(memory_format=memory_format)
        layers = layers.to(memory_format=memory_format)
        before, after = milliseconds(layers, y), milliseconds(fused, y)
        print(f"{name:13}  torch {before:.3f} ms, fastvision {after:.3f} ms: {before / after:.2f}x")
