"""LeNet-5.

LeCun, Bottou, Bengio and Haffner, Gradient-based learning applied to document recognition, 1998.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from ..ops import Sequential
from ._images import enter
from ._registry import register
from ._weights import load_weights


class LeNet5(nn.Module):
    """Two 5x5 convolutions, each averaged down by two, and three linear layers.

    Differs from the paper: every map of the second convolution sees all six maps of the first
    (the paper connects a subset, to save work), averages have no trainable scale and bias, the
    hyperbolic tangent is not stretched, and the last layer is linear instead of radial basis
    functions.

    Args:
        num_classes: outputs of the classifier.
        in_channels: of the images.
        activation_layer: called without arguments; with ``nn.ReLU`` layers and activations run
            fused.
    """

    def __init__(
        self,
        num_classes: int = 10,
        in_channels: int = 1,
        activation_layer: Callable[[], nn.Module] = nn.Tanh,
    ) -> None:
        super().__init__()
        self.features = Sequential(
            nn.Conv2d(in_channels, 6, 5, padding=2),  # the paper pads images of 28x28 to 32x32
            activation_layer(),
            nn.AvgPool2d(2),
            nn.Conv2d(6, 16, 5),
            activation_layer(),
            nn.AvgPool2d(2),
        )
        self.classifier = Sequential(
            nn.Linear(16 * 5 * 5, 120),
            activation_layer(),
            nn.Linear(120, 84),
            activation_layer(),
            nn.Linear(84, num_classes),
        )

    def forward(self, images: Tensor) -> Tensor:
        """Scores [N, num_classes] of images [N, in_channels, 28, 28]."""
        return self.classifier(torch.flatten(self.features(enter(images)), 1))


@register("classification")
def lenet5(*, weights: Any = None, progress: bool = True, **options: Any) -> LeNet5:
    """LeNet-5 (LeCun et al. 1998): 61,706 parameters, 417 k multiply-adds at 28x28."""
    return load_weights(LeNet5(**options), "lenet5", weights, progress)
