"""Count and time a 5x5 convolution of an Inception block, and the same behind a 1x1 bottleneck.

python examples/inception_cost.py --seconds 2
"""

import argparse

import torch
from torch import nn
from torch.utils.benchmark import Timer

from fastvision import ops

SIZE, INPUTS, OUTPUTS, REDUCED = 28, 192, 32, 16  # inception (3a) of GoogLeNet

parser = argparse.ArgumentParser(description="192 to 32 channels at 28x28")
parser.add_argument("--seconds", type=float, default=0.5, help="to measure each of them")
options = parser.parse_args()


def multiply_adds(model: nn.Module, x: torch.Tensor) -> int:
    """Of the convolutions: weights times pixels of the result."""
    counts = []
    hooks = [
        layer.register_forward_hook(
            lambda conv, _, y: counts.append(conv.weight.numel() * y.shape[-2:].numel())
        )
        for layer in model.modules()
        if isinstance(layer, nn.Conv2d)
    ]
    model(x)
    for hook in hooks:
        hook.remove()
    return sum(counts)


def milliseconds(model: nn.Module, x: torch.Tensor) -> float:
    threads = torch.get_num_threads()
    timer = Timer("model(x)", globals={"model": model, "x": x}, num_threads=threads)
    return timer.blocked_autorange(min_run_time=options.seconds).median * 1e3


torch.manual_seed(0)
x = torch.randn(1, INPUTS, SIZE, SIZE).contiguous(memory_format=torch.channels_last)
models = {
    "5x5": ops.Sequential(nn.Conv2d(INPUTS, OUTPUTS, 5, padding=2), nn.ReLU()),
    "1x1, 5x5": ops.Sequential(
        *(nn.Conv2d(INPUTS, REDUCED, 1), nn.ReLU()),
        *(nn.Conv2d(REDUCED, OUTPUTS, 5, padding=2), nn.ReLU()),
    ),
}
print(f"{INPUTS} to {OUTPUTS} channels at {SIZE}x{SIZE}, {torch.get_num_threads()} threads")
counts = []
with torch.inference_mode():
    for name, model in models.items():
        layers = nn.Sequential(*model).eval()  # torch's, one by one
        torch.testing.assert_close(model.eval()(x), layers(x), rtol=1e-3, atol=1e-4)
        counts.append(multiply_adds(layers, x))
        times = milliseconds(layers, x), milliseconds(model, x)
        print(
            f"{name:9} {counts[-1] / 1e6:6.1f} M multiply-adds, "
            f"torch {times[0]:.2f} ms, fastvision {times[1]:.2f} ms"
        )
assert [round(count / 1e6, 1) for count in counts] == [120.4, 12.4]
