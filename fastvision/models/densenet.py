"""DenseNet.

Huang, Liu, van der Maaten and Weinberger, Densely connected convolutional networks, 2017 (the
variant DenseNet-BC). Pleiss, Chen, Huang, Li, van der Maaten and Weinberger, Memory-efficient
implementation of DenseNets, 2017.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from ..ops import Sequential, conv_norm_act, norm_act
from ..ops.chain import can_call_conv
from ._images import enter
from ._registry import register
from ._weights import load_weights, read_weights

# torchvision's files have the names that modules had when names could have dots
_OLD_KEY = re.compile(r"(denselayer\d+\.(?:norm|relu|conv))\.([12]\.)")


class DenseLayer(nn.Module):
    """A 3x3 convolution behind one of 1x1, each after a normalization and an activation."""

    def __init__(
        self,
        num_input_features: int,
        growth_rate: int,
        bn_size: int,
        drop_rate: float,
        memory_efficient: bool = False,
    ) -> None:
        super().__init__()
        width = bn_size * growth_rate
        self.norm1 = nn.BatchNorm2d(num_input_features)
        self.relu1 = nn.ReLU(inplace=True)
        self.conv1 = nn.Conv2d(num_input_features, width, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(width)
        self.relu2 = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(width, growth_rate, 3, padding=1, bias=False)
        self.drop_rate = float(drop_rate)
        self.memory_efficient = memory_efficient

    def _activated(self, *maps: Tensor) -> Tensor:
        x = maps[0] if len(maps) == 1 else torch.cat(maps, 1)
        return norm_act(x, self.norm1, self.relu1)

    def _bottleneck(self, *maps: Tensor) -> Tensor:
        return conv_norm_act(self._activated(*maps), self.conv1)

    def forward(self, input: Tensor | list[Tensor]) -> Tensor:
        """New features [N, growth_rate, H, W] of all before: one map, or those to concatenate."""
        maps = input if isinstance(input, (list, tuple)) else [input]
        if self.memory_efficient and any(x.requires_grad for x in maps):
            x = checkpoint(self._bottleneck, *maps, use_reentrant=False)
            x = norm_act(x, self.norm2, self.relu2)
        else:
            x = conv_norm_act(self._activated(*maps), self.conv1, self.norm2, self.relu2)
        x = conv_norm_act(x, self.conv2)
        return F.dropout(x, self.drop_rate, self.training) if self.drop_rate > 0 else x


class DenseBlock(nn.ModuleDict):
    """Layers each of which sees the features of all before it."""

    def __init__(
        self,
        num_layers: int,
        num_input_features: int,
        bn_size: int,
        growth_rate: int,
        drop_rate: float,
        memory_efficient: bool = False,
    ) -> None:
        super().__init__()
        self.memory_efficient = memory_efficient
        for i in range(num_layers):
            inputs = num_input_features + i * growth_rate
            self[f"denselayer{i + 1}"] = DenseLayer(
                inputs, growth_rate, bn_size, drop_rate, memory_efficient
            )

    def forward(self, features: Tensor) -> Tensor:
        """The features and those of all layers, [N, C, H, W]."""
        if self.memory_efficient and torch.is_grad_enabled():
            maps = [features]  # concatenated in the checkpoints, which keep none of the results
            for layer in self.values():
                maps.append(layer(maps))
            return torch.cat(maps, 1)
        for layer in self.values():
            features = torch.cat((features, layer(features)), 1)
        return features


class Transition(Sequential):
    """Halves the channels and the resolution."""

    def __init__(self, num_input_features: int, num_output_features: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(num_input_features)
        self.relu = nn.ReLU(inplace=True)
        self.conv = nn.Conv2d(num_input_features, num_output_features, 1, bias=False)
        self.pool = nn.AvgPool2d(2, stride=2)

    def forward(self, input: Any) -> Any:
        if not self._can_pool_first(input):
            return super().forward(input)
        # a mean commutes with a 1x1 convolution, which then has a quarter of the pixels
        return conv_norm_act(self.pool(norm_act(input, self.norm, self.relu)), self.conv)

    def _can_pool_first(self, input: Any) -> bool:
        conv, pool = self.conv, self.pool
        return (
            can_call_conv(input, conv, None, pool)
            and (type(pool), pool.padding) == (nn.AvgPool2d, 0)
            and (conv.kernel_size, conv.stride, conv.padding) == ((1, 1), (1, 1), (0, 0))
            and list(self._modules) == ["norm", "relu", "conv", "pool"]
        )


class DenseNet(nn.Module):
    """A 7x7 stem, dense blocks with transitions between them, and a linear classifier.

    torchvision's constructor, initialization and state dict.

    Args:
        growth_rate: features that each layer adds (k in the paper).
        block_config: number of layers in each of the blocks.
        num_init_features: channels of the stem.
        bn_size: channels of the 1x1 convolutions are bn_size * growth_rate.
        drop_rate: probability of dropout after each layer.
        num_classes: outputs of the classifier.
        memory_efficient: concatenates and normalizes again in the backward pass instead of keeping
            the results; the running statistics then move twice in a step, as in torchvision.
    """

    def __init__(
        self,
        growth_rate: int = 32,
        block_config: Sequence[int] = (6, 12, 24, 16),
        num_init_features: int = 64,
        bn_size: int = 4,
        drop_rate: float = 0,
        num_classes: int = 1000,
        memory_efficient: bool = False,
    ) -> None:
        super().__init__()
        self.features = Sequential()
        stem = nn.Conv2d(3, num_init_features, 7, stride=2, padding=3, bias=False)
        self.features.add_module("conv0", stem)
        self.features.add_module("norm0", nn.BatchNorm2d(num_init_features))
        self.features.add_module("relu0", nn.ReLU(inplace=True))
        self.features.add_module("pool0", nn.MaxPool2d(3, stride=2, padding=1))
        channels = num_init_features
        for i, layers in enumerate(block_config, 1):
            block = DenseBlock(layers, channels, bn_size, growth_rate, drop_rate, memory_efficient)
            self.features.add_module(f"denseblock{i}", block)
            channels += layers * growth_rate
            if i < len(block_config):
                self.features.add_module(f"transition{i}", Transition(channels, channels // 2))
                channels //= 2
        self.features.add_module("norm5", nn.BatchNorm2d(channels))
        self.classifier = nn.Linear(channels, num_classes)
        self._initialize()

    def _initialize(self) -> None:
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight)
            elif isinstance(module, nn.BatchNorm2d):
                nn.init.ones_(module.weight)
                nn.init.zeros_(module.bias)
            elif isinstance(module, nn.Linear):
                nn.init.zeros_(module.bias)

    def forward(self, images: Tensor) -> Tensor:
        """Scores [N, num_classes] of images [N, 3, H, W], normalized as in training."""
        x = F.relu(self.features(enter(images)))
        return self.classifier(torch.flatten(F.adaptive_avg_pool2d(x, (1, 1)), 1))


def _load(model: DenseNet, name: str, weights: Any, progress: bool) -> DenseNet:
    if weights is None:
        return model
    state = read_weights(name, weights, progress)
    renamed = {_OLD_KEY.sub(r"\1\2", key): value for key, value in state.items()}
    return load_weights(model, name, renamed)


@register("classification")
def densenet121(*, weights: Any = None, progress: bool = True, **options: Any) -> DenseNet:
    """DenseNet-121 (Huang et al. 2017): 7,978,856 parameters, 2.83 G multiply-adds at 224x224."""
    model = DenseNet(32, (6, 12, 24, 16), 64, **options)
    return _load(model, "densenet121", weights, progress)


@register("classification")
def densenet161(*, weights: Any = None, progress: bool = True, **options: Any) -> DenseNet:
    """DenseNet-161 (Huang et al. 2017): 28,681,000 parameters, 7.73 G multiply-adds at 224x224."""
    model = DenseNet(48, (6, 12, 36, 24), 96, **options)
    return _load(model, "densenet161", weights, progress)


@register("classification")
def densenet169(*, weights: Any = None, progress: bool = True, **options: Any) -> DenseNet:
    """DenseNet-169 (Huang et al. 2017): 14,149,480 parameters, 3.36 G multiply-adds at 224x224."""
    model = DenseNet(32, (6, 12, 32, 32), 64, **options)
    return _load(model, "densenet169", weights, progress)


@register("classification")
def densenet201(*, weights: Any = None, progress: bool = True, **options: Any) -> DenseNet:
    """DenseNet-201 (Huang et al. 2017): 20,013,928 parameters, 4.29 G multiply-adds at 224x224."""
    model = DenseNet(32, (6, 12, 48, 32), 64, **options)
    return _load(model, "densenet201", weights, progress)
