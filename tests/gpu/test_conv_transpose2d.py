"""Transposed convolution on a CUDA device: by Triton's kernels, or left to cuDNN."""

import pytest
import torch
from torch.nn import functional as F

from fastvision import ops, reference
from fastvision.testing import cases
from fastvision.testing.conv_transpose2d import FACTORS, upsampler
from fastvision.testing.marks import LAYOUTS
from fastvision.testing.numerics import CONVOLUTION_DTYPES, assert_matches
from fastvision.testing.tensors import dtype_id

pytestmark = pytest.mark.gpu
# N, C, K, size, kernel, stride, padding, output padding, groups, dilation
SHAPES = [
    (100, 256, 256, 14, 2, 2, 0, 0, 1, 1),
    (8, 512, 256, 8, 4, 2, 1, 0, 1, 1),
    (2, 64, 64, 65, 3, 2, 1, 1, 1, 1),
    (4, 512, 17, 14, 4, 2, 1, 0, 1, 1),
    (2, 48, 96, 9, 3, 3, 1, 1, 4, 2),
    (2, 96, 96, 17, 4, 2, 1, 0, 96, 1),
    (0, 256, 256, 14, 2, 2, 0, 0, 1, 1),
]


@pytest.fixture(autouse=True)
def without_tf32(monkeypatch):
    """Products in float32, so that the tolerance of that type holds."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)


@pytest.mark.parametrize("backend", ["triton", None])
@LAYOUTS
@pytest.mark.parametrize("dtype", CONVOLUTION_DTYPES, ids=dtype_id)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_fused(shape, dtype, channels_last, backend):
    N, C, K, size, kernel, stride, padding, extra, groups, dilation = shape
    x = cases.feature_map(N, C, size, size, dtype=dtype, channels_last=channels_last).cuda()
    g = cases.generator(1)
    weight = torch.randn(C, K // groups, kernel, kernel, generator=g) * (groups / C) ** 0.5 / kernel
    bias, scale, shift, mean, variance = (torch.rand(5, K, generator=g) + 0.5).cuda()
    weight = weight.cuda().to(dtype).requires_grad_()
    options = (stride, padding, extra, groups, dilation)
    exact = x.double(), weight.detach().double().requires_grad_(), bias.double()
    expected = F.conv_transpose2d(*exact, *options)
    residual = torch.rand(expected.shape, generator=g).cuda().to(dtype)
    expected = F.batch_norm(expected, *(t.double() for t in (mean, variance, scale, shift)))
    expected = reference.activate(expected + residual, "relu")

    def run():
        return ops.conv_transpose2d_bn_relu(
            *(x, weight, bias.to(dtype)),
            **{"bn_weight": scale, "bn_bias": shift, "running_mean": mean, "running_var": variance},
            **{"stride": stride, "padding": padding, "output_padding": extra, "groups": groups},
            **{"dilation": dilation, "residual": residual, "backend": backend},
        )

    with torch.no_grad():
        y = run()
    assert y.dtype == dtype
    assert_matches(y, expected, scale=4)
    y = run()
    assert_matches(y, expected, scale=4)
    if N > 0:
        y.sum().backward()
        expected.sum().backward()
        assert weight.grad.isfinite().all()
        error = (weight.grad.double() - exact[1].grad).norm() / exact[1].grad.norm()
        assert error < 0.05  # the mask of a rounded zero may differ


@LAYOUTS
@pytest.mark.parametrize("dtype", CONVOLUTION_DTYPES, ids=dtype_id)
@pytest.mark.parametrize("factor", FACTORS)
def test_bilinear(factor, dtype, channels_last):
    weight = upsampler(21, factor, depthwise=False, dtype=dtype).cuda()
    stride, padding = factor, factor // 2
    x = cases.feature_map(2, 21, 16, 17, dtype=dtype, channels_last=channels_last).cuda()
    expected = F.conv_transpose2d(x.double(), weight.double(), None, stride, padding)
    for backend in ("triton", None):
        y = ops.conv_transpose2d(x, weight, None, stride, padding, backend=backend)
        assert_matches(y, expected, scale=2)


def test_in_a_graph():
    x = cases.feature_map(4, 64, 14, 14, dtype=torch.bfloat16, channels_last=True).cuda()
    weight = torch.randn(64, 64, 2, 2, generator=cases.generator(1)).cuda().bfloat16() / 8
    with torch.no_grad():
        expected = ops.conv_transpose2d(x, weight, None, 2)  # prepares the weight
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            y = ops.conv_transpose2d(x, weight, None, 2)
    graph.replay()
    assert torch.equal(y, expected)


def test_beyond_32_bit_offsets():
    x = torch.zeros(33, 16, 1024, 1024, dtype=torch.bfloat16, device="cuda")
    x = x.to(memory_format=torch.channels_last)
    x[-1, :, -1, -1] = 1
    weight = torch.ones(16, 16, 2, 2, dtype=torch.bfloat16, device="cuda")
    weight[0, 1] = 0
    with torch.no_grad():
        y = ops.conv_transpose2d(x, weight, None, 2, backend="triton")
    assert y.numel() > 2**31
    assert y[-1, 0, -2:, -2:].eq(16).all() and not y[-1, :, -3].any()
