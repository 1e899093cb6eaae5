"""Transposed convolution by its definition: copies of the filter, weighted by the input, summed
where they overlap."""

import pytest
import torch

from fastvision import ops
from fastvision.testing.numerics import assert_matches


def copies_of_the_filter(x, weight, stride):
    """[H, W] by [K, K]: each copy begins ``stride`` pixels after the one before."""
    (H, W), (KH, KW) = x.shape, weight.shape
    plane = torch.zeros((H - 1) * stride + KH, (W - 1) * stride + KW)
    for i in range(H):
        for j in range(W):
            plane[i * stride : i * stride + KH, j * stride : j * stride + KW] += x[i, j] * weight
    return plane


def test_one_dimension(backend):
    """Input (a, b) and filter (x, y, z) at stride 2: (ax, ay, az + bx, by, bz), where one pixel is
    cropped so that the result is twice as large as the input."""
    a, b, x, y, z = 2.0, 3.0, 5.0, 7.0, 11.0
    line = torch.tensor([a, b], device=backend.device).view(1, 1, 1, 2)
    weight = torch.tensor([x, y, z], device=backend.device).view(1, 1, 1, 3)
    full = ops.conv_transpose2d(line, weight, stride=(1, 2), backend=backend.name)
    assert full.flatten().tolist() == [a * x, a * y, a * z + b * x, b * y, b * z]
    crop = {"padding": (0, 1), "output_padding": (0, 1)}
    cropped = ops.conv_transpose2d(line, weight, stride=(1, 2), **crop, backend=backend.name)
    assert cropped.flatten().tolist() == [a * y, a * z + b * x, b * y, b * z]


@pytest.mark.parametrize(("kernel", "stride"), [(3, 2), (4, 2), (3, 1), (2, 2), (2, 3)])
def test_two_dimensions(backend, kernel, stride):
    g = torch.Generator().manual_seed(0)
    x, weight = torch.randn(2, 3, generator=g), torch.randn(kernel, kernel, generator=g)
    full = copies_of_the_filter(x, weight, stride)
    maps = x[None, None].to(backend.device), weight[None, None].to(backend.device)
    result = ops.conv_transpose2d(*maps, stride=stride, backend=backend.name)
    assert_matches(result[0, 0].cpu(), full)
    if (kernel, stride) == (3, 2):  # one pixel cropped at the top and left: 2x2 becomes 4x4
        crop = {"padding": 1, "output_padding": 1}
        result = ops.conv_transpose2d(*maps, stride=stride, **crop, backend=backend.name)
        assert result.shape[2:] == (4, 6)
        assert_matches(result[0, 0].cpu(), full[1:, 1:])
