"""conv_transpose2d + bias + ReLU on the layers of well-known models, against torch's."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

import fastvision
from benchmarks import work
from benchmarks.harness import (
    COMPILED,
    EAGER,
    EAGER_CHANNELS_LAST,
    Case,
    Providers,
    backends,
    compiled,
)
from fastvision.testing import cases
from fastvision.testing.conv_transpose2d import upsampler
from fastvision.testing.numerics import assert_matches

# (images, input channels, filters, input height and width), (kernel, stride, padding, output
# padding)
Shape = tuple[int, int, int, int]
Window = tuple[int, int, int, int]
LEARNED: dict[str, tuple[Shape, Window]] = {
    "Mask R-CNN, mask head": ((100, 256, 256, 14), (2, 2, 0, 0)),
    "DCGAN, first layer": ((16, 100, 1024, 1), (4, 1, 0, 0)),
    "DCGAN, second layer": ((16, 512, 256, 8), (4, 2, 1, 0)),
    "DCGAN, fourth layer": ((16, 128, 64, 32), (4, 2, 1, 0)),
    "decoder": ((4, 64, 64, 128), (3, 2, 1, 1)),
    "decoder, stride 1": ((4, 128, 128, 28), (3, 1, 1, 0)),
    "U-Net, second up-convolution": ((4, 512, 256, 28), (2, 2, 0, 0)),
    "Keypoint R-CNN": ((100, 512, 17, 14), (4, 2, 1, 0)),
    "FCN-8s, learned": ((1, 21, 21, 32), (16, 8, 4, 0)),
}
BILINEAR: dict[str, tuple[Shape, Window]] = {
    "FCN, bilinear": ((1, 21, 21, 34), (4, 2, 1, 0)),
    "FCN-8s, bilinear": ((1, 21, 21, 64), (16, 8, 4, 0)),
    "FCN-32s, bilinear": ((1, 21, 21, 16), (64, 32, 16, 0)),
}
QUICK = ("Mask R-CNN, mask head", "FCN-32s, bilinear")


def transposed_case(name: str, shape: Shape, window: Window, is_bilinear: bool, last: bool) -> Case:
    N, C, K, size = shape
    kernel, *options = window
    stride = window[1]

    def weights(device: torch.device) -> tuple[Tensor, Tensor]:
        g = cases.generator(11)
        weight = torch.randn(C, K, kernel, kernel, generator=g) * (stride / kernel / C**0.5)
        if is_bilinear:
            weight = upsampler(C, stride, depthwise=False)
        return weight.to(device), torch.randn(K, generator=g).to(device)

    def inputs(device: torch.device) -> tuple[Tensor]:
        return (cases.feature_map(N, C, size, size, channels_last=last).to(device),)

    def layers(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return F.relu(F.conv_transpose2d(x, weight, bias, *options), inplace=True)

    def providers(device: torch.device) -> Providers:
        weight, bias = weights(device)
        nchw: dict[int, Tensor] = {}  # the input in the other format, converted beforehand

        @torch.inference_mode()
        def eager(x: Tensor) -> Tensor:
            if id(x) not in nchw:
                nchw[id(x)] = x.contiguous()
            return layers(nchw[id(x)], weight, bias)

        @torch.inference_mode()
        def channels_last(x: Tensor) -> Tensor:
            return layers(x, weight, bias)

        @torch.inference_mode()
        def run(x: Tensor, *, backend: str) -> Tensor:
            padding, output_padding = options[1:]
            return fastvision.ops.conv_transpose2d_bn_relu(
                x,
                weight,
                bias,
                stride=stride,
                padding=padding,
                output_padding=output_padding,
                backend=backend,
            )

        # the input's format decides the result's: channels_last is no peer where NCHW is wanted
        peers: dict[str, Any] = {EAGER: eager}
        if last:
            peers[EAGER_CHANNELS_LAST] = channels_last
        if last and name in QUICK:
            step = compiled(layers)
            peers[COMPILED] = lambda x: step(x, weight, bias)
        return peers | backends(run, device, reference=False)

    images = f"{N}x" if N > 1 else ""
    layout = "channels_last" if last else "contiguous"
    return Case(
        "conv_transpose2d",
        f"{name}, {images}{C}->{K} {kernel}x{kernel} stride {stride}, {size}x{size}, {layout}",
        inputs=inputs,
        providers=providers,
        check=lambda y, expected: assert_matches(y, expected, scale=8),
        work=lambda tensors, y: work.transposed_convolution(
            tensors[0],
            weights(torch.device("cpu"))[0],
            y,
            separable_stride=stride if is_bilinear else None,
        ),
        quick=name in QUICK and last,
        most_seconds=3,
    )


CASES = [
    transposed_case(name, *spec, table is BILINEAR, last)
    for table in (LEARNED, BILINEAR)
    for name, spec in table.items()
    for last in (True, False)
]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_conv_transpose2d(case: Case, compare) -> None:
    compare(case)
