"""AlexNet.

Krizhevsky, One weird trick for parallelizing convolutional neural networks, 2014: the variant of
one tower of Krizhevsky, Sutskever and Hinton, ImageNet classification with deep convolutional
neural networks, 2012.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ..ops import Sequential
from ._images import enter
from ._registry import register
from ._weights import load_weights


class AlexNet(nn.Module):
    """Five convolutions with three poolings between them, and a classifier of three linear layers.

    torchvision's constructor, initialization and state dict.

    Args:
        num_classes: outputs of the classifier.
        dropout: probability in front of the first two linear layers.
    """

    def __init__(self, num_classes: int = 1000, dropout: float = 0.5) -> None:
        super().__init__()
        self.features = Sequential(
            nn.Conv2d(3, 64, 11, stride=4, padding=2),
            nn.ReLU(inplace=True),
            nn.MaxPool2d(3, stride=2),
            nn.Conv2d(64, 192, 5, padding=2),
            nn.ReLU(inplace=True),
            nn.MaxPool2d(3, stride=2),
            nn.Conv2d(192, 384, 3, padding=1),
            nn.ReLU(inplace=True),
            nn.Conv2d(384, 256, 3, padding=1),
            nn.ReLU(inplace=True),
            nn.Conv2d(256, 256, 3, padding=1),
            nn.ReLU(inplace=True),
            nn.MaxPool2d(3, stride=2),
        )
        self.avgpool = nn.AdaptiveAvgPool2d((6, 6))
        self.classifier = Sequential(
            nn.Dropout(dropout),
            nn.Linear(256 * 6 * 6, 4096),
            nn.ReLU(inplace=True),
            nn.Dropout(dropout),
            nn.Linear(4096, 4096),
            nn.ReLU(inplace=True),
            nn.Linear(4096, num_classes),
        )

    def forward(self, images: Tensor) -> Tensor:
        """Scores [N, num_classes] of images [N, 3, H, W], normalized as in training."""
        x = self.avgpool(self.features(enter(images)))
        return self.classifier(torch.flatten(x, 1))


@register("classification")
def alexnet(*, weights: Any = None, progress: bool = True, **options: Any) -> AlexNet:
    """AlexNet (Krizhevsky 2014): 61,100,840 parameters, 0.71 G multiply-adds at 224x224."""
    return load_weights(AlexNet(**options), "alexnet", weights, progress)
