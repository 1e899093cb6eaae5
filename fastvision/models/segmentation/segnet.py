"""SegNet: an encoder as VGG-16, and a decoder that unpools with the encoder's indices.

Badrinarayanan, Kendall and Cipolla, SegNet: a deep convolutional encoder-decoder architecture for
image segmentation, 2017. Layers are named as in the authors' Caffe model.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from ...ops import MaxPool2d, MaxUnpool2d, conv_norm_act
from .._images import enter, leave
from .._registry import register
from .._weights import load_weights

_DEPTHS = (2, 2, 3, 3, 3)  # convolutions in each block


class SegNet(nn.Module):
    """Five blocks that end in max pooling, and their mirror image that begins in max unpooling.

    Any height and width from 32 on, since each unpooling restores the size before its pooling.

    Args:
        num_classes: scores per pixel.
        base_width: channels of the first block; the others are multiples of it, as in VGG-16,
            which has 64.
    """

    def __init__(self, num_classes: int = 12, base_width: int = 64) -> None:
        super().__init__()
        widths = [base_width * min(2**block, 8) for block in range(len(_DEPTHS))]
        inputs = 3
        for block, depth in enumerate(_DEPTHS, 1):
            for i in range(1, depth + 1):
                self._add(f"conv{block}_{i}", inputs, widths[block - 1])
                inputs = widths[block - 1]
        for block in range(len(_DEPTHS), 0, -1):
            for i in range(_DEPTHS[block - 1], 0, -1):
                last = (block, i) == (1, 1)
                # the last convolution of a block has the width of the next one
                outputs = num_classes if last else widths[block - (2 if i == 1 else 1)]
                self._add(f"conv{block}_{i}_D", inputs, outputs, norm=not last)
                inputs = outputs
        self.relu = nn.ReLU(inplace=True)
        self.pool = MaxPool2d(2, return_indices=True)
        self.unpool = MaxUnpool2d(2)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
                nn.init.zeros_(module.bias)  # type: ignore[arg-type]

    def _add(self, name: str, inputs: int, outputs: int, norm: bool = True) -> None:
        self.add_module(name, nn.Conv2d(inputs, outputs, 3, padding=1))
        if norm:
            self.add_module(f"{name}_bn", nn.BatchNorm2d(outputs))

    def _run(self, name: str, x: Tensor) -> Tensor:
        return conv_norm_act(x, getattr(self, name), getattr(self, f"{name}_bn"), self.relu)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """{"out": scores [N, num_classes, H, W]} of images [N, 3, H, W]."""
        x, pooled = enter(images), []
        for block, depth in enumerate(_DEPTHS, 1):
            for i in range(1, depth + 1):
                x = self._run(f"conv{block}_{i}", x)
            size = x.shape[2:]
            x, indices = self.pool(x)
            pooled.append((indices, size))
        for block in range(len(_DEPTHS), 0, -1):
            x = self.unpool(x, *pooled[block - 1])
            for i in range(_DEPTHS[block - 1], 0, -1):
                if (block, i) != (1, 1):
                    x = self._run(f"conv{block}_{i}_D", x)
        return {"out": leave(conv_norm_act(x, self.conv1_1_D), images)}


@register("segmentation")
def segnet(*, weights: Any = None, progress: bool = True, **options: Any) -> SegNet:
    """SegNet (Badrinarayanan et al. 2017): 29,449,932 parameters with 12 classes, 40.43 G
    multiply-adds at 256x256."""
    return load_weights(SegNet(**options), "segnet", weights, progress)
