"""Inception-ResNet-v2.

Szegedy, Ioffe, Vanhoucke and Alemi, Inception-v4, Inception-ResNet and the impact of residual
connections on learning, 2017.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ..ops import ConvBNReLU2d, FrozenBatchNorm2d, conv_norm_act
from ._images import enter
from ._registry import register
from ._weights import load_weights


def _conv(
    inputs: int,
    outputs: int,
    kernel_size: int | tuple[int, int],
    stride: int = 1,
    same: bool = True,
) -> ConvBNReLU2d:
    """Convolution, normalization and ReLU; padded to the input's size unless not ``same``."""
    size = (kernel_size, kernel_size) if isinstance(kernel_size, int) else kernel_size
    padding = (size[0] // 2, size[1] // 2) if same else (0, 0)
    return ConvBNReLU2d(inputs, outputs, kernel_size, stride, padding, eps=1e-3)


def _scaling(channels: int, scale: float) -> FrozenBatchNorm2d:
    """Multiplies by ``scale``; as a normalization it is folded into the convolution before it."""
    norm = FrozenBatchNorm2d(channels, eps=0.0)
    nn.init.constant_(norm.weight, scale)
    for name, buffer in list(norm.named_buffers()):
        norm.register_buffer(name, buffer, persistent=False)
    return norm


class _Mixed(nn.Module):
    """Branches whose results are concatenated: ``branch0``, ``branch1`` and so on."""

    def __init__(self, *branches: nn.Module) -> None:
        super().__init__()
        for i, branch in enumerate(branches):
            self.add_module(f"branch{i}", branch)

    def _concatenated(self, x: Tensor) -> Tensor:
        branches = (m for name, m in self.named_children() if name.startswith("branch"))
        return torch.cat([branch(x) for branch in branches], 1)

    def forward(self, x: Tensor) -> Tensor:
        return self._concatenated(x)


class ResidualMixed(_Mixed):
    """Branches, a 1x1 convolution of their results, and the input plus that times ``scale``.

    Args:
        branches: of the block.
        inputs: channels of the input and the result.
        channels: of the concatenated branches.
        scale: small numbers keep the training of wide networks stable (section 3.3).
        activation: whether a ReLU follows the sum.
    """

    def __init__(
        self,
        *branches: nn.Module,
        inputs: int,
        channels: int,
        scale: float,
        activation: bool = True,
    ) -> None:
        super().__init__(*branches)
        self.conv2d = nn.Conv2d(channels, inputs, 1)
        self.scaling = _scaling(inputs, scale)
        self.act = nn.ReLU() if activation else None

    def forward(self, x: Tensor) -> Tensor:
        z = self._concatenated(x)
        return conv_norm_act(z, self.conv2d, self.scaling, self.act, residual=x)


def _mixed_5b() -> _Mixed:
    """35x35, 192 to 320 channels."""
    return _Mixed(
        _conv(192, 96, 1),
        nn.Sequential(_conv(192, 48, 1), _conv(48, 64, 5)),
        nn.Sequential(_conv(192, 64, 1), _conv(64, 96, 3), _conv(96, 96, 3)),
        nn.Sequential(nn.AvgPool2d(3, 1, 1, count_include_pad=False), _conv(192, 64, 1)),
    )


def _block35() -> ResidualMixed:
    return ResidualMixed(
        _conv(320, 32, 1),
        nn.Sequential(_conv(320, 32, 1), _conv(32, 32, 3)),
        nn.Sequential(_conv(320, 32, 1), _conv(32, 48, 3), _conv(48, 64, 3)),
        inputs=320,
        channels=128,
        scale=0.17,
    )


def _mixed_6a() -> _Mixed:
    """35x35 to 17x17, 320 to 1088 channels."""
    return _Mixed(
        _conv(320, 384, 3, 2, same=False),
        nn.Sequential(_conv(320, 256, 1), _conv(256, 256, 3), _conv(256, 384, 3, 2, same=False)),
        nn.MaxPool2d(3, 2),
    )


def _block17() -> ResidualMixed:
    return ResidualMixed(
        _conv(1088, 192, 1),
        nn.Sequential(_conv(1088, 128, 1), _conv(128, 160, (1, 7)), _conv(160, 192, (7, 1))),
        inputs=1088,
        channels=384,
        scale=0.10,
    )


def _mixed_7a() -> _Mixed:
    """17x17 to 8x8, 1088 to 2080 channels."""
    return _Mixed(
        nn.Sequential(_conv(1088, 256, 1), _conv(256, 384, 3, 2, same=False)),
        nn.Sequential(_conv(1088, 256, 1), _conv(256, 288, 3, 2, same=False)),
        nn.Sequential(_conv(1088, 256, 1), _conv(256, 288, 3), _conv(288, 320, 3, 2, same=False)),
        nn.MaxPool2d(3, 2),
    )


def _block8(scale: float = 0.20, activation: bool = True) -> ResidualMixed:
    return ResidualMixed(
        _conv(2080, 192, 1),
        nn.Sequential(_conv(2080, 192, 1), _conv(192, 224, (1, 3)), _conv(224, 256, (3, 1))),
        inputs=2080,
        channels=448,
        scale=scale,
        activation=activation,
    )


class InceptionResNetV2(nn.Module):
    """A stem and residual inception blocks at three resolutions, with two reductions between.

    Constructor, initialization and state dict are those of timm's ``inception_resnet_v2``.

    Args:
        num_classes: outputs of the classifier.
        in_chans: channels of the images.
        drop_rate: dropout in front of the classifier.
    """

    def __init__(self, num_classes: int = 1000, in_chans: int = 3, drop_rate: float = 0.0) -> None:
        super().__init__()
        self.conv2d_1a = _conv(in_chans, 32, 3, 2, same=False)
        self.conv2d_2a = _conv(32, 32, 3, same=False)
        self.conv2d_2b = _conv(32, 64, 3)
        self.maxpool_3a = nn.MaxPool2d(3, 2)
        self.conv2d_3b = _conv(64, 80, 1)
        self.conv2d_4a = _conv(80, 192, 3, same=False)
        self.maxpool_5a = nn.MaxPool2d(3, 2)
        self.mixed_5b = _mixed_5b()
        self.repeat = nn.Sequential(*(_block35() for _ in range(10)))
        self.mixed_6a = _mixed_6a()
        self.repeat_1 = nn.Sequential(*(_block17() for _ in range(20)))
        self.mixed_7a = _mixed_7a()
        self.repeat_2 = nn.Sequential(*(_block8() for _ in range(9)))
        self.block8 = _block8(scale=1.0, activation=False)
        self.conv2d_7b = _conv(2080, 1536, 1)
        self.global_pool = nn.AdaptiveAvgPool2d((1, 1))
        self.head_drop = nn.Dropout(drop_rate)
        self.classif = nn.Linear(1536, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        """Scores [N, num_classes] of images [N, in_chans, H, W], 299x299 in the paper."""
        x = self.conv2d_2b(self.conv2d_2a(self.conv2d_1a(enter(images))))
        x = self.conv2d_4a(self.conv2d_3b(self.maxpool_3a(x)))
        x = self.repeat(self.mixed_5b(self.maxpool_5a(x)))
        x = self.repeat_1(self.mixed_6a(x))
        x = self.repeat_2(self.mixed_7a(x))
        x = self.conv2d_7b(self.block8(x))
        return self.classif(self.head_drop(torch.flatten(self.global_pool(x), 1)))


@register("classification")
def inception_resnet_v2(
    *, weights: Any = None, progress: bool = True, **options: Any
) -> InceptionResNetV2:
    """Inception-ResNet-v2 (Szegedy et al. 2017): 55,843,464 parameters, 13.16 G multiply-adds at
    299x299."""
    model = InceptionResNetV2(**options)
    return load_weights(model, "inception_resnet_v2", weights, progress)
