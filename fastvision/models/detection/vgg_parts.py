"""What detectors on VGG-16 share: its convolutions, RoI pooling, and its linear layers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ...ops import Sequential, roi_pool
from ...ops.chain import run_layers
from ..vgg import VGG, vgg16, vgg16_bn

_STRIDE = 16  # of the last convolution


def vgg(weights: Any, progress: bool, base_width: int, batch_norm: bool, dropout: float) -> VGG:
    """VGG-16, whose last layer detectors replace."""
    build = vgg16_bn if batch_norm else vgg16
    return build(weights=weights, progress=progress, base_width=base_width, dropout=dropout)


def convolutions(network: VGG) -> Sequential:
    """All of the network's but the last pooling; maps [N, out_channels, H / 16, W / 16]."""
    features: Any = network.features
    classifier: Any = network.classifier
    layers = Sequential(*list(features)[:-1])
    layers.out_channels = classifier[0].in_features // 49
    return layers


class RoIPooling(nn.Module):
    """:func:`fastvision.ops.roi_pool` of proposals on the map of :func:`convolutions`.

    Args:
        output_size: bins in each direction.
    """

    def __init__(self, output_size: int = 7) -> None:
        super().__init__()
        self.output_size = output_size

    def forward(
        self,
        x: dict[str, Tensor],
        boxes: Sequence[Tensor],
        image_shapes: Sequence[tuple[int, int]],
    ) -> Tensor:
        """[sum of L, C, bins, bins].

        Args:
            x: one map [N, C, H, W].
            boxes: [L, 4] of each image in its pixels.
            image_shapes: not used.
        """
        (features,) = x.values()
        return roi_pool(features, list(boxes), self.output_size, 1 / _STRIDE)


class VGGBoxHead(nn.Module):
    """VGG's first two linear layers, on what was pooled.

    Args:
        network: whose layers and dropout are taken.
    """

    def __init__(self, network: VGG) -> None:
        super().__init__()
        self.fc6, _, self.drop, self.fc7, *_ = network.classifier
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        """[n, D] of [n, C, h, w]."""
        layers: list[nn.Module] = []
        for layer in (self.fc6, self.fc7):  # each one layer, or two of truncated_svd
            layers += [*(layer if isinstance(layer, nn.Sequential) else (layer,))]
            layers += [self.relu, self.drop]
        return run_layers(layers, x.flatten(1))


def truncated_svd(linear: nn.Linear, rank: int) -> Sequential:
    """Two linear layers that are the closest to one of all of a rank (Girshick, Fast R-CNN, 2015,
    section 3.1).

    Args:
        rank: outputs of the first layer, which has no bias.

    Raises:
        ValueError: ``rank`` is not between 1 and the number of the layer's inputs and outputs.
    """
    limit = min(linear.weight.shape)
    if not 1 <= rank <= limit:
        raise ValueError(f"rank must be from 1 to {limit}, got {rank}")
    u, s, vh = torch.linalg.svd(linear.weight.detach(), full_matrices=False)
    first = nn.Linear(linear.in_features, rank, bias=False).to(linear.weight)
    second = nn.Linear(rank, linear.out_features, bias=linear.bias is not None).to(linear.weight)
    with torch.no_grad():
        first.weight.copy_(s[:rank, None] * vh[:rank])
        second.weight.copy_(u[:, :rank])
        if linear.bias is not None:
            second.bias.copy_(linear.bias)
    return Sequential(first, second)
