"""ShuffleNetV2.

Ma, Zhang, Zheng and Sun, ShuffleNet V2: practical guidelines for efficient CNN architecture
design, 2018.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from .._memory_format import is_channels_last
from ..ops import Sequential
from ._images import enter
from ._registry import register
from ._weights import load_weights


def _conv(inputs: int, outputs: int) -> list[nn.Module]:
    conv = nn.Conv2d(inputs, outputs, 1, bias=False)
    return [conv, nn.BatchNorm2d(outputs), nn.ReLU(inplace=True)]


def _depthwise(channels: int, stride: int) -> list[nn.Module]:
    conv = nn.Conv2d(channels, channels, 3, stride, 1, groups=channels, bias=False)
    return [conv, nn.BatchNorm2d(channels)]


def interleave(a: Tensor, b: Tensor) -> Tensor:
    """Channels a0, b0, a1, b1, ...: the concatenation of both with its channels shuffled.

    Args:
        a, b: [N, C, H, W].

    Returns:
        [N, 2 C, H, W] in the memory format of ``b``, written in one pass.
    """
    if isinstance(b, Tensor) and is_channels_last(b):
        rows = torch.stack((a.permute(0, 2, 3, 1), b.permute(0, 2, 3, 1)), -1)
        return rows.flatten(3).permute(0, 3, 1, 2)
    return torch.stack((a, b), 2).flatten(1, 2)


class InvertedResidual(nn.Module):
    """A depthwise convolution on one half of the channels, and a shuffle of both halves.

    With a stride both branches see all channels.
    """

    def __init__(self, inp: int, oup: int, stride: int) -> None:
        super().__init__()
        if not 1 <= stride <= 3:
            raise ValueError(f"stride must be 1, 2 or 3, got {stride}")
        width = oup // 2
        if stride == 1 and inp != 2 * width:
            raise ValueError(
                f"with stride 1, inp must be the even number oup, got inp {inp} and oup {oup}"
            )
        self.stride = stride
        shortcut = [*_depthwise(inp, stride), *_conv(inp, width)] if stride > 1 else []
        self.branch1 = Sequential(*shortcut)
        self.branch2 = Sequential(
            *_conv(inp if stride > 1 else width, width),
            *_depthwise(width, stride),
            *_conv(width, width),
        )

    def forward(self, x: Tensor) -> Tensor:
        if self.stride == 1:
            kept, changed = x.chunk(2, 1)
            if isinstance(x, Tensor) and is_channels_last(x):  # which its half is no longer
                changed = changed.contiguous(memory_format=torch.channels_last)
            return interleave(kept, self.branch2(changed))
        return interleave(self.branch1(x), self.branch2(x))


class ShuffleNetV2(nn.Module):
    """A stem, three stages of inverted residual blocks, and a linear classifier.

    torchvision's constructor, initialization and state dict.

    Args:
        stages_repeats: number of blocks in each of the three stages.
        stages_out_channels: channels of the stem, the stages and the last convolution.
        num_classes: outputs of the classifier.
        inverted_residual: called with input channels, output channels and stride of a block.

    Raises:
        ValueError: ``stages_repeats`` has not three elements or ``stages_out_channels`` not five.
    """

    def __init__(
        self,
        stages_repeats: Sequence[int],
        stages_out_channels: Sequence[int],
        num_classes: int = 1000,
        inverted_residual: Callable[..., nn.Module] = InvertedResidual,
    ) -> None:
        super().__init__()
        if len(stages_repeats) != 3:
            raise ValueError(f"stages_repeats must have 3 elements, got {stages_repeats}")
        if len(stages_out_channels) != 5:
            raise ValueError(f"stages_out_channels must have 5 elements, got {stages_out_channels}")
        stem, *widths, last = stages_out_channels
        self.conv1 = Sequential(
            nn.Conv2d(3, stem, 3, stride=2, padding=1, bias=False),
            nn.BatchNorm2d(stem),
            nn.ReLU(inplace=True),
        )
        self.maxpool = nn.MaxPool2d(3, stride=2, padding=1)
        stages = []
        for inputs, width, blocks in zip((stem, *widths), widths, stages_repeats):  # noqa: B905
            layers = [inverted_residual(inputs, width, 2)]
            layers += [inverted_residual(width, width, 1) for _ in range(blocks - 1)]
            stages.append(nn.Sequential(*layers))
        self.stage2, self.stage3, self.stage4 = stages
        self.conv5 = Sequential(*_conv(widths[-1], last))
        self.fc = nn.Linear(last, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        """Scores [N, num_classes] of images [N, 3, H, W], normalized as in training."""
        x = self.maxpool(self.conv1(enter(images)))
        x = self.conv5(self.stage4(self.stage3(self.stage2(x))))
        return self.fc(x.mean([2, 3]))


@register("classification")
def shufflenet_v2_x0_5(
    *, weights: Any = None, progress: bool = True, **options: Any
) -> ShuffleNetV2:
    """ShuffleNetV2 of half the width (Ma et al. 2018): 1,366,792 parameters, 0.04 G
    multiply-adds at 224x224."""
    model = ShuffleNetV2((4, 8, 4), (24, 48, 96, 192, 1024), **options)
    return load_weights(model, "shufflenet_v2_x0_5", weights, progress)


@register("classification")
def shufflenet_v2_x1_0(
    *, weights: Any = None, progress: bool = True, **options: Any
) -> ShuffleNetV2:
    """ShuffleNetV2 (Ma et al. 2018): 2,278,604 parameters, 0.14 G multiply-adds at 224x224."""
    model = ShuffleNetV2((4, 8, 4), (24, 116, 232, 464, 1024), **options)
    return load_weights(model, "shufflenet_v2_x1_0", weights, progress)


@register("classification")
def shufflenet_v2_x1_5(
    *, weights: Any = None, progress: bool = True, **options: Any
) -> ShuffleNetV2:
    """ShuffleNetV2 of 1.5 times the width (Ma et al. 2018): 3,503,624 parameters, 0.30 G
    multiply-adds at 224x224."""
    model = ShuffleNetV2((4, 8, 4), (24, 176, 352, 704, 1024), **options)
    return load_weights(model, "shufflenet_v2_x1_5", weights, progress)


@register("classification")
def shufflenet_v2_x2_0(
    *, weights: Any = None, progress: bool = True, **options: Any
) -> ShuffleNetV2:
    """ShuffleNetV2 of twice the width (Ma et al. 2018): 7,393,996 parameters, 0.58 G
    multiply-adds at 224x224."""
    model = ShuffleNetV2((4, 8, 4), (24, 244, 488, 976, 2048), **options)
    return load_weights(model, "shufflenet_v2_x2_0", weights, progress)
