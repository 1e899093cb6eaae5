"""Fully convolutional networks on VGG-16: FCN-32s, FCN-16s and FCN-8s.

Long, Shelhamer and Darrell, Fully convolutional networks for semantic segmentation, 2015. Layers
are named as in the authors' Caffe models.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ...ops import conv_norm_act
from .._images import enter, leave
from .._registry import register
from .._weights import load_weights

_DEPTHS = (2, 2, 3, 3, 3)  # convolutions in each of VGG-16's blocks
_BORDER = 100  # around the image: the map is then never smaller than the 7x7 filter of fc6


def bilinear_filter(size: int) -> Tensor:
    """[size, size] weights with which a transposed convolution of half the stride interpolates."""
    factor = (size + 1) // 2
    centre = factor - 1 if size % 2 else factor - 0.5
    line = 1 - (torch.arange(size) - centre).abs() / factor
    return line[:, None] * line


class _FCN(nn.Module):
    """VGG-16 whose linear layers are convolutions, and a score for each class.

    Args:
        num_classes: scores per pixel, background included.
        base_width: channels of the first block; the others are multiples of it, as in VGG-16,
            which has 64.
        dropout: probability after fc6 and fc7.
        batch_norm: whether a batch normalization follows each convolution but the scores; the
            paper has none, and begins with VGG-16 trained on ImageNet.
        border: whether images get the paper's border of 100 pixels, which small images mostly
            consist of then. Without it, fc6 is padded.
        fc_width: channels of fc6 and fc7; ``64 * base_width`` if None.
    """

    def __init__(
        self,
        num_classes: int = 21,
        base_width: int = 64,
        dropout: float = 0.5,
        batch_norm: bool = False,
        border: bool = True,
        fc_width: int | None = None,
    ) -> None:
        super().__init__()
        self.border = border
        inputs = 3
        for block, depth in enumerate(_DEPTHS, 1):
            outputs = base_width * min(2 ** (block - 1), 8)
            for i in range(1, depth + 1):
                padding = _BORDER if border and (block, i) == (1, 1) else 1
                self.add_module(f"conv{block}_{i}", nn.Conv2d(inputs, outputs, 3, padding=padding))
                inputs = outputs
        wide = 64 * base_width if fc_width is None else fc_width
        self.fc6 = nn.Conv2d(inputs, wide, 7, padding=0 if border else 3)
        self.fc7 = nn.Conv2d(wide, wide, 1)
        if batch_norm:
            for name, layer in list(self.named_children()):
                assert isinstance(layer, nn.Conv2d)
                self.add_module(f"{name}_bn", nn.BatchNorm2d(layer.out_channels))
        self.score_fr = nn.Conv2d(wide, num_classes, 1)
        self.relu = nn.ReLU(inplace=True)
        self.pool = nn.MaxPool2d(2, ceil_mode=True)
        self.drop = nn.Dropout(dropout)
        self.num_classes = num_classes

    def _layer(self, name: str, x: Tensor) -> Tensor:
        norm = getattr(self, f"{name}_bn", None)
        return conv_norm_act(x, getattr(self, name), norm, self.relu)

    def _upsampling(self, factor: int) -> nn.ConvTranspose2d:
        kernel = 2 * factor
        return nn.ConvTranspose2d(
            self.num_classes, self.num_classes, kernel, stride=factor, bias=False
        )

    def _initialize(self) -> None:
        """The filters are He's, scores begin as zero and upsampling is bilinear."""
        for name, module in self.named_children():
            if isinstance(module, nn.ConvTranspose2d):
                nn.init.zeros_(module.weight)
                classes = range(self.num_classes)
                with torch.no_grad():
                    module.weight[classes, classes] = bilinear_filter(module.kernel_size[0])
            elif isinstance(module, nn.Conv2d):
                if name.startswith("score"):
                    nn.init.zeros_(module.weight)
                else:
                    nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
                nn.init.zeros_(module.bias)  # type: ignore[arg-type]

    def _pools(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """pool3, pool4 and the scores of fc7: strides of 8, 16 and 32 pixels."""
        x, pools = enter(images), []
        for block, depth in enumerate(_DEPTHS, 1):
            for i in range(1, depth + 1):
                x = self._layer(f"conv{block}_{i}", x)
            x = self.pool(x)
            pools.append(x)
        x = self.drop(self._layer("fc6", x))
        x = self.drop(self._layer("fc7", x))
        return pools[2], pools[3], conv_norm_act(x, self.score_fr)

    def _joined(self, scores: Tensor, skipped: Tensor, offset: int) -> Tensor:
        """The sum of two maps; with a border, ``skipped`` is the larger one by ``offset``."""
        if self.border:
            return scores + _crop(skipped, offset, scores)
        return _crop(scores, 1, skipped) + skipped

    def _result(self, x: Tensor, offset: int, stride: int, images: Tensor) -> dict[str, Tensor]:
        """Upsampled scores; ``offset`` is that with a border."""
        x = _crop(x, offset if self.border else stride // 2, images)
        return {"out": leave(x, images)}


def _crop(x: Tensor, offset: int, like: Tensor) -> Tensor:
    """The part of ``x`` of the height and width of ``like``, ``offset`` pixels from the corner."""
    height, width = like.shape[-2:]
    return x[:, :, offset : offset + height, offset : offset + width]


class FCN32s(_FCN):
    """Scores at a stride of 32 pixels, upsampled at once.

    Args:
        num_classes: scores per pixel, background included.
        base_width: channels of the first block (VGG-16: 64), of which the others are multiples.
        dropout: probability after fc6 and fc7.
        batch_norm: whether a batch normalization follows each convolution but the scores.
        border: whether images get the paper's border of 100 pixels.
    """

    def __init__(self, num_classes: int = 21, base_width: int = 64, **options: Any) -> None:
        super().__init__(num_classes, base_width, **options)
        self.upscore = self._upsampling(32)
        self._initialize()

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """{"out": scores [N, num_classes, H, W]} of images [N, 3, H, W]."""
        _, _, scores = self._pools(images)
        return self._result(conv_norm_act(scores, self.upscore), 19, 32, images)


class FCN16s(_FCN):
    """The scores of :class:`FCN32s` refined by those of pool4, at a stride of 16 pixels.

    Args:
        num_classes, base_width, dropout, batch_norm, border: see :class:`FCN32s`.
    """

    def __init__(self, num_classes: int = 21, base_width: int = 64, **options: Any) -> None:
        super().__init__(num_classes, base_width, **options)
        self.score_pool4 = nn.Conv2d(8 * base_width, num_classes, 1)
        self.upscore2 = self._upsampling(2)
        self.upscore16 = self._upsampling(16)
        self._initialize()

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """{"out": scores [N, num_classes, H, W]} of images [N, 3, H, W]."""
        _, pool4, scores = self._pools(images)
        scores = conv_norm_act(scores, self.upscore2)
        scores = self._joined(scores, conv_norm_act(pool4, self.score_pool4), 5)
        return self._result(conv_norm_act(scores, self.upscore16), 27, 16, images)


class FCN8s(_FCN):
    """The scores of :class:`FCN16s` refined by those of pool3, at a stride of 8 pixels.

    Args:
        num_classes, base_width, dropout, batch_norm, border: see :class:`FCN32s`.
    """

    def __init__(self, num_classes: int = 21, base_width: int = 64, **options: Any) -> None:
        super().__init__(num_classes, base_width, **options)
        self.score_pool3 = nn.Conv2d(4 * base_width, num_classes, 1)
        self.score_pool4 = nn.Conv2d(8 * base_width, num_classes, 1)
        self.upscore2 = self._upsampling(2)
        self.upscore_pool4 = self._upsampling(2)
        self.upscore8 = self._upsampling(8)
        self._initialize()

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """{"out": scores [N, num_classes, H, W]} of images [N, 3, H, W]."""
        pool3, pool4, scores = self._pools(images)
        scores = conv_norm_act(scores, self.upscore2)
        scores = self._joined(scores, conv_norm_act(pool4, self.score_pool4), 5)
        scores = conv_norm_act(scores, self.upscore_pool4)
        scores = self._joined(scores, conv_norm_act(pool3, self.score_pool3), 9)
        return self._result(conv_norm_act(scores, self.upscore8), 31, 8, images)


@register("segmentation")
def fcn32s_vgg16(*, weights: Any = None, progress: bool = True, **options: Any) -> FCN32s:
    """FCN-32s (Long et al. 2015): 136,152,917 parameters with 21 classes, 73.47 G multiply-adds at
    256x256."""
    return load_weights(FCN32s(**options), "fcn32s_vgg16", weights, progress)


@register("segmentation")
def fcn16s_vgg16(*, weights: Any = None, progress: bool = True, **options: Any) -> FCN16s:
    """FCN-16s (Long et al. 2015): 134,815,994 parameters with 21 classes, 73.51 G multiply-adds at
    256x256."""
    return load_weights(FCN16s(**options), "fcn16s_vgg16", weights, progress)


@register("segmentation")
def fcn8s_vgg16(*, weights: Any = None, progress: bool = True, **options: Any) -> FCN8s:
    """FCN-8s (Long et al. 2015): 134,489,759 parameters with 21 classes, 73.55 G multiply-adds at
    256x256."""
    return load_weights(FCN8s(**options), "fcn8s_vgg16", weights, progress)
