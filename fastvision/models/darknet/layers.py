"""Layers that Darknet has and torch has not."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...ops import Sequential

ACTIVATIONS: dict[str, Callable[[], nn.Module] | None] = {
    "leaky": partial(nn.LeakyReLU, 0.1),
    "linear": None,
    "logistic": nn.Sigmoid,
    "mish": nn.Mish,
    "relu": nn.ReLU,
    "relu6": nn.ReLU6,
    "swish": nn.SiLU,
    "tanh": nn.Tanh,
}


class MaxPool(nn.Module):
    """Max pooling over windows that begin ``padding // 2`` before the map and may end behind it.

    The result has (H + padding - size) // stride + 1 rows, so that a window of 2 and a stride of 1
    keep the size.

    Args:
        size: of the windows.
        stride: of the windows.
        padding: of both sides together; ``size - 1`` in Darknet unless given.
    """

    def __init__(self, size: int, stride: int, padding: int) -> None:
        super().__init__()
        self.size, self.stride = size, stride
        self.before, self.after = padding // 2, padding - padding // 2

    def forward(self, x: Tensor) -> Tensor:
        if (self.size, self.stride, self.after) == (2, 2, 1):
            return F.max_pool2d(x, 2, 2, ceil_mode=True)  # the same without a copy
        if self.before == self.after:
            return F.max_pool2d(x, self.size, self.stride, self.before)
        x = F.pad(x, (self.before, self.after) * 2, value=float("-inf"))
        return F.max_pool2d(x, self.size, self.stride)

    def rows(self, height: int) -> int:
        """Of the result for a map of this height."""
        return (height + self.before + self.after - self.size) // self.stride + 1

    def extra_repr(self) -> str:
        return f"{self.size}, stride={self.stride}, padding=({self.before}, {self.after})"


class Reorg(nn.Module):
    """The passthrough layer of YOLOv2: every block of stride x stride pixels into channels.

    Redmon and Farhadi, YOLO9000: better, faster, stronger, 2017, section 2. The order of the
    channels is Darknet's, which takes the pixels of the blocks from the map as it lies in memory
    with a stride²-th of its channels.

    Args:
        stride: of the blocks; [N, C, H, W] becomes [N, C · stride², H / stride, W / stride].
    """

    def __init__(self, stride: int) -> None:
        super().__init__()
        self.stride = stride

    def forward(self, x: Tensor) -> Tensor:
        n, c, h, w = x.shape
        s = self.stride
        blocks = x.reshape(n, c * h // (s * s), s, w, s).permute(0, 2, 4, 1, 3)
        return blocks.reshape(n, c * s * s, h // s, w // s)

    def extra_repr(self) -> str:
        return f"stride={self.stride}"


class Route(nn.Module):
    """Several maps as channels of one.

    Args:
        groups: into how many parts of equal size the channels of each map are divided.
        group: which of the parts is taken.
    """

    def __init__(self, groups: int = 1, group: int = 0) -> None:
        super().__init__()
        self.groups, self.group = groups, group

    def forward(self, *maps: Tensor) -> Tensor:
        if self.groups > 1:
            maps = tuple(x.chunk(self.groups, 1)[self.group] for x in maps)
        return maps[0] if len(maps) == 1 else torch.cat(maps, 1)

    def extra_repr(self) -> str:
        return f"groups={self.groups}, group={self.group}" if self.groups > 1 else ""


class Shortcut(nn.Module):
    """The sum of two maps, and an activation.

    Args:
        activation: None for none.
    """

    def __init__(self, activation: nn.Module | None) -> None:
        super().__init__()
        self.activation = activation

    def forward(self, x: Tensor, other: Tensor) -> Tensor:
        x = x + other
        return x if self.activation is None else self.activation(x)


class Connected(Sequential):
    """A linear layer of everything in a map, with normalization and activation: [N, K, 1, 1]."""

    def forward(self, input: Any) -> Any:
        return super().forward(input.flatten(1))[:, :, None, None]


class Local(nn.Module):
    """A convolution that has other weights in every place, and an activation.

    Args:
        in_shape: (C, H, W) of the maps.
        filters: channels of the result.
        size: of the windows.
        stride: of the windows.
        padding: zeros on each side.
        activation: None for none.
    """

    def __init__(
        self,
        in_shape: Sequence[int],
        filters: int,
        size: int,
        stride: int,
        padding: int,
        activation: nn.Module | None,
    ) -> None:
        super().__init__()
        channels, *sides = in_shape
        self.size, self.stride, self.padding = size, stride, padding
        self.rows, self.columns = ((n + 2 * padding - size) // stride + 1 for n in sides)
        places = self.rows * self.columns
        self.weight = nn.Parameter(torch.empty(places, filters, channels * size * size))
        self.bias = nn.Parameter(torch.zeros(filters, places))
        self.activation = activation
        nn.init.normal_(self.weight, std=(2 / self.weight.shape[2]) ** 0.5)

    def forward(self, x: Tensor) -> Tensor:
        windows = F.unfold(x, self.size, padding=self.padding, stride=self.stride)
        z = torch.einsum("pkc,ncp->nkp", self.weight, windows) + self.bias
        z = z.unflatten(2, (self.rows, self.columns))
        return z if self.activation is None else self.activation(z)

    def extra_repr(self) -> str:
        places, filters, _ = self.weight.shape
        return f"{filters} in {places} places, {self.size}, stride={self.stride}"


class GlobalAverage(nn.Module):
    """The mean of each channel: [N, C, 1, 1]."""

    def forward(self, x: Tensor) -> Tensor:
        return x.mean((2, 3), keepdim=True)


class Softmax(nn.Module):
    """Softmax over all values of an image, or over each of ``groups`` parts of equal size."""

    def __init__(self, groups: int = 1) -> None:
        super().__init__()
        self.groups = groups

    def forward(self, x: Tensor) -> Tensor:
        return x.reshape(x.shape[0], self.groups, -1).softmax(2).reshape(x.shape)


class Output(nn.Module):
    """Where a network ends in predictions of boxes, of which a detector knows the meaning."""

    def forward(self, x: Tensor) -> Tensor:
        return x
