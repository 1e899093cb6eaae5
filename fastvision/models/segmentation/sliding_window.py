"""Segmentation by a classifier of patches: one patch per pixel, or all of them in one pass.

The pass gives the classifier's own scores, as in Long, Shelhamer and Darrell, Fully convolutional
networks for semantic segmentation, 2015, at full resolution: where the classifier skips pixels,
the layers behind are dilated instead (Giusti, Ciresan, Masci, Gambardella and Schmidhuber, Fast
image scanning with deep max-pooling convolutional neural networks, 2013).
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...ops import Sequential
from .._registry import register
from .._weights import load_weights

_POINTWISE = (nn.BatchNorm2d, nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.SiLU, nn.Tanh, nn.Identity)


def _margins(window: int, seen: int) -> tuple[int, int, int, int]:
    """Zeros left, right, above and below that give every pixel the first ``seen`` rows and columns
    of its patch."""
    before = window // 2
    after = seen - 1 - before
    return before, after, before, after


def sliding_window(
    classifier: Callable[[Tensor], Tensor], images: Tensor, window: int, batch_size: int = 256
) -> Tensor:
    """The scores of the patch around each pixel.

    Args:
        classifier: gives [B, classes] for patches [B, C, window, window].
        images: [N, C, H, W]; the patches of pixels near the border continue with zeros.
        window: size of the patches; the pixel is at ``window // 2``.
        batch_size: patches per call of the classifier.

    Returns:
        [N, classes, H, W].

    Raises:
        ValueError: ``images`` has not four dimensions or no pixels, or a number is not positive.
    """
    if images.dim() != 4 or images.numel() == 0:
        raise ValueError(f"images must be [N, C, H, W] and not empty, got {list(images.shape)}")
    if window < 1 or batch_size < 1:
        raise ValueError(f"window and batch_size must be positive, got {window} and {batch_size}")
    n, _, h, w = images.shape
    padded = F.pad(images, _margins(window, window))
    patches = padded.unfold(2, window, 1).unfold(3, window, 1).permute(0, 2, 3, 1, 4, 5)
    pixels = torch.arange(n * h * w, device=images.device)
    scores = [
        classifier(patches[i // (h * w), i // w % h, i % w]) for i in pixels.split(batch_size)
    ]
    return torch.cat(scores).view(n, h, w, -1).permute(0, 3, 1, 2).contiguous()


def fully_convolutional(classifier: nn.Sequential, window: int) -> Sequential:
    """The network that gives :func:`sliding_window`'s result in one pass, in evaluation.

    Linear layers become convolutions over what their window sees, strides become 1, and layers
    behind a stride of s are dilated by s.

    Args:
        classifier: a Sequential, possibly of Sequentials, of Conv2d and MaxPool2d without padding,
            BatchNorm2d, activations, Dropout, one Flatten, and Linear layers behind it.
        window: size of the classifier's patches.

    Returns:
        A network from [N, C, H, W] to [N, classes, H, W], with copies of the weights.

    Raises:
        ValueError: a layer is padded or not square, or the window does not fit the layers.
        TypeError: another kind of layer.
    """
    layers: list[nn.Module] = []
    size, step, flat = window, 1, False  # of the map in a patch; pixels per step of the map
    seen = 1  # pixels in either direction: strides can leave out the last ones of a patch
    for layer in _flattened(classifier):
        if isinstance(layer, (nn.Conv2d, nn.MaxPool2d)) and not flat:
            kernel, stride, dilation = _geometry(layer)
            size = (size - dilation * (kernel - 1) - 1) // stride + 1
            layers.append(_dilated(layer, dilation * step))
            seen += (kernel - 1) * dilation * step
            step *= stride
        elif isinstance(layer, nn.Linear) and flat:
            layers.append(_convolution(layer, size, step))
            seen += (size - 1) * step
            size = 1
        elif isinstance(layer, nn.Flatten):
            flat = True
        elif isinstance(layer, (nn.Dropout, *_POINTWISE)):
            layers.append(copy.deepcopy(layer))
        else:
            raise TypeError(f"classifier: no layer for every pixel instead of {layer}")
        if size < 1:
            raise ValueError(f"window={window} is too small for {layer}")
    return Sequential(nn.ZeroPad2d(_margins(window, seen)), *layers).train(classifier.training)


def _flattened(layers: nn.Sequential) -> Iterator[Any]:
    for layer in layers:
        if isinstance(layer, nn.Sequential):
            yield from _flattened(layer)
        else:
            yield layer


def _geometry(layer: Any) -> tuple[int, int, int]:
    """Kernel size, stride and dilation, of a layer that is square and not padded."""
    result = []
    for name in ("kernel_size", "stride", "dilation", "padding"):
        value = getattr(layer, name)
        sides = value if isinstance(value, tuple) else (value, value)
        if sides[0] != sides[1]:
            raise ValueError(f"classifier: {name} must be the same in both directions in {layer}")
        result.append(sides[0])
    if result.pop() != 0 or getattr(layer, "ceil_mode", False):
        raise ValueError(f"classifier: there must be no padding in {layer}")
    return result[0], result[1], result[2]


def _dilated(layer: nn.Module, dilation: int) -> nn.Module:
    """A copy of stride 1."""
    dense: Any = copy.deepcopy(layer)
    pair = isinstance(layer, nn.Conv2d)
    dense.stride = (1, 1) if pair else 1
    dense.dilation = (dilation, dilation) if pair else dilation
    return dense


def _convolution(linear: nn.Linear, size: int, dilation: int) -> nn.Conv2d:
    """The linear layer on [channels, size, size], at every pixel."""
    channels, rest = divmod(linear.in_features, size * size)
    if rest:
        raise ValueError(f"{linear} does not take maps of {size}x{size}, to which the window leads")
    conv = nn.Conv2d(
        channels, linear.out_features, size, dilation=dilation, bias=linear.bias is not None
    ).to(linear.weight)
    with torch.no_grad():
        conv.weight.copy_(linear.weight.view_as(conv.weight))
        if conv.bias is not None:
            conv.bias.copy_(linear.bias)
    return conv


@register("classification")
def patch_classifier(
    *, weights: Any = None, progress: bool = True, num_classes: int = 21
) -> Sequential:
    """A classifier of patches of 15x15 that :func:`fully_convolutional` takes:
    105,333 parameters, 1.50 M multiply-adds."""
    model = Sequential(
        *(nn.Conv2d(3, 32, 3, bias=False), nn.BatchNorm2d(32), nn.ReLU(inplace=True)),
        *(nn.Conv2d(32, 32, 3, bias=False), nn.BatchNorm2d(32), nn.ReLU(inplace=True)),
        nn.MaxPool2d(3, stride=2),
        *(nn.Conv2d(32, 64, 3, bias=False), nn.BatchNorm2d(64), nn.ReLU(inplace=True)),
        *(nn.Flatten(), nn.Linear(64 * 3 * 3, 128), nn.ReLU(inplace=True), nn.Dropout()),
        nn.Linear(128, num_classes),
    )
    return load_weights(model, "patch_classifier", weights, progress)
