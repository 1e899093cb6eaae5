"""Extraction, Darknet-19 and Darknet-53 as sections, for classifiers and detectors."""

from __future__ import annotations

from .._blocks import make_divisible
from .config import Section, section


class Layers(list[Section]):
    """Sections of a network whose numbers of channels are multiples of a width.

    Args:
        height, width: of the images.
        width_mult: factor of all numbers of channels; they are rounded to multiples of 8.
        norm: whether convolutions have a batch normalization.
    """

    def __init__(self, height: int, width: int, width_mult: float = 1.0, norm: bool = True) -> None:
        super().__init__([section("net", height=height, width=width, channels=3)])
        self.width_mult = width_mult
        self.norm = norm

    def add(self, kind: str, **options: object) -> None:
        self.append(section(kind, **options))

    def conv(self, channels: int, size: int = 3, stride: int = 1) -> None:
        """A convolution, a normalization and a leaky ReLU."""
        norm = {"batch_normalize": 1} if self.norm else {}
        filters = make_divisible(channels * self.width_mult)
        options = {"filters": filters, "size": size, "stride": stride, "pad": 1}
        self.add("convolutional", **norm, **options, activation="leaky")

    def scores(self, channels: int) -> None:
        """A 1x1 convolution with bias, of this number of channels whatever the width."""
        self.add("convolutional", filters=channels, size=1, stride=1, pad=1, activation="linear")

    def pool(self, stride: int = 2) -> None:
        self.add("maxpool", size=2, stride=stride)

    def residual(self, channels: int, blocks: int) -> None:
        """Blocks of a 1x1 and a 3x3 convolution and a shortcut."""
        for _ in range(blocks):
            self.conv(channels // 2, 1)
            self.conv(channels)
            self.add("shortcut", from_=-3, activation="linear")


def extraction_body(layers: Layers) -> None:
    """The first 20 convolutions of YOLOv1 (Redmon et al. 2016, figure 3), which learn to classify
    before they learn to detect (section 2.2)."""
    layers.conv(64, 7, 2)
    layers.pool()
    layers.conv(192)
    for blocks in (
        ((128, 1), (256, 3), (256, 1), (512, 3)),
        ((256, 1), (512, 3)) * 4 + ((512, 1), (1024, 3)),
        ((512, 1), (1024, 3)) * 2,
    ):
        layers.pool()
        for channels, kernel in blocks:
            layers.conv(channels, kernel)


def darknet19_body(layers: Layers) -> None:
    """18 convolutions (Redmon and Farhadi 2017, table 6, without the classifier)."""
    layers.conv(32)
    layers.pool()
    layers.conv(64)
    for channels, depth in ((128, 3), (256, 3), (512, 5), (1024, 5)):
        layers.pool()
        for i in range(depth):
            layers.conv(channels // (1 + i % 2), 3 - 2 * (i % 2))


def darknet53_body(layers: Layers) -> None:
    """52 convolutions (Redmon and Farhadi 2018, table 1, without the classifier)."""
    layers.conv(32)
    for channels, blocks in ((64, 1), (128, 2), (256, 8), (512, 8), (1024, 4)):
        layers.conv(channels, stride=2)
        layers.residual(channels, blocks)
