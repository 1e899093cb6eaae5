"""U-Net.

Ronneberger, Fischer and Brox, U-Net: convolutional networks for biomedical image segmentation,
2015.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ...ops import Sequential, conv_norm_act
from .._images import enter, leave
from .._registry import register
from .._weights import load_weights

_LEVELS = 5


class UNet(nn.Module):
    """Pairs of 3x3 convolutions at five resolutions, down and up again, joined at each resolution.

    The paper's convolutions are not padded, so its result is 184 pixels smaller than the image.
    Padded ones keep the size, whatever it is: pooling rounds up, and upsampled maps are cropped.

    Args:
        num_classes: scores per pixel.
        base_width: channels at the first resolution; twice as many at each of the next.
        in_channels: of the images.
        padded: whether convolutions keep the size. If not, maps are cropped around their centre to
            be joined, and each map to be pooled must have an even height and width: sides of 16 n
            + 60 pixels, from 188 on.
        dropout: probability at the last two resolutions of the way down.
        batch_norm: whether a batch normalization follows each 3x3 convolution; the paper has none.
    """

    def __init__(
        self,
        num_classes: int = 21,
        base_width: int = 64,
        in_channels: int = 3,
        padded: bool = True,
        dropout: float = 0.5,
        batch_norm: bool = False,
    ) -> None:
        super().__init__()
        widths = [base_width * 2**level for level in range(_LEVELS)]
        self.padded = padded
        inputs = in_channels
        self.down = nn.ModuleList()
        for level, width in enumerate(widths):
            drop = dropout if level >= _LEVELS - 2 else 0.0
            self.down.append(_pair(inputs, width, padded, batch_norm, drop))
            inputs = width
        self.pool = nn.MaxPool2d(2, ceil_mode=padded)
        self.expand, self.up = nn.ModuleList(), nn.ModuleList()
        for width in reversed(widths[:-1]):
            self.expand.append(nn.ConvTranspose2d(2 * width, width, 2, stride=2))
            self.up.append(_pair(2 * width, width, padded, batch_norm, 0.0))
        self.head = nn.Conv2d(base_width, num_classes, 1)
        for module in self.modules():
            if isinstance(module, (nn.Conv2d, nn.ConvTranspose2d)):
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """{"out": scores [N, num_classes, H, W]} of images [N, in_channels, H, W]; without padding
        [N, num_classes, H - 184, W - 184]."""
        x, skipped = enter(images), []
        for level, layers in enumerate(self.down):
            x = layers(x if level == 0 else self.pool(x))
            skipped.append(x)
        for expand, layers, skip in zip(self.expand, self.up, skipped[-2::-1], strict=True):
            x = conv_norm_act(x, expand)
            if self.padded:
                x = x[:, :, : skip.shape[2], : skip.shape[3]]
            else:
                skip = _centre(skip, x)
            x = layers(torch.cat([skip, x], 1))
        return {"out": leave(conv_norm_act(x, self.head), images)}


def _pair(
    inputs: int,
    outputs: int,
    padded: bool,
    batch_norm: bool,
    dropout: float,
) -> Sequential:
    """Two 3x3 convolutions, each with its ReLU."""
    layers: list[nn.Module] = []
    for channels in (inputs, outputs):
        layers.append(nn.Conv2d(channels, outputs, 3, padding=int(padded), bias=not batch_norm))
        if batch_norm:
            layers.append(nn.BatchNorm2d(outputs))
        layers.append(nn.ReLU(inplace=True))
    if dropout > 0:
        layers.append(nn.Dropout(dropout))
    return Sequential(*layers)


def _centre(x: Tensor, like: Tensor) -> Tensor:
    """The part of ``x`` around its centre with the height and width of ``like``."""
    height, width = like.shape[2:]
    top, left = (x.shape[2] - height) // 2, (x.shape[3] - width) // 2
    return x[:, :, top : top + height, left : left + width]


@register("segmentation")
def unet(*, weights: Any = None, progress: bool = True, **options: Any) -> UNet:
    """U-Net (Ronneberger et al. 2015): 31,033,045 parameters with 21 classes, 48.25 G
    multiply-adds at 256x256.

    The paper's takes ``in_channels=1, num_classes=2, padded=False``. By default convolutions are
    padded, so that the result has the images' size.
    """
    return load_weights(UNet(**options), "unet", weights, progress)
