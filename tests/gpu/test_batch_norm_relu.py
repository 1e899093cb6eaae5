"""batch_norm_relu and training convolutions as a CUDA device runs them."""

import pytest
import torch
from torch import nn

from fastvision import ops
from fastvision._memory_format import memory_format
from fastvision.testing.marks import LAYOUTS
from fastvision.testing.numerics import DTYPES, assert_matches

pytestmark = pytest.mark.gpu


@LAYOUTS
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(8, 64, 56, 56), (4, 300, 7, 7), (2, 3, 224, 224), (64, 1000)])
@pytest.mark.only(lambda shape, channels_last: not channels_last or len(shape) == 4)
def test_training_step(shape, dtype, channels_last):
    format = memory_format(channels_last)
    x, residual, grad = (
        torch.randn(shape, device="cuda").to(dtype).contiguous(memory_format=format)
        for _ in range(3)
    )
    wide = torch.promote_types(dtype, torch.float32)
    weight, bias = torch.randn(2, shape[1], device="cuda", dtype=wide)

    def step(function_dtype, backend):
        tensors = [t.detach().clone().to(function_dtype) for t in (x, residual)]
        tensors += [t.detach().clone().to(torch.promote_types(function_dtype, wide))
                    for t in (weight, bias)]  # fmt: skip
        tensors = [t.requires_grad_() for t in tensors]
        mean, var = torch.zeros_like(tensors[3]), torch.ones_like(tensors[3])
        y = ops.batch_norm_relu(
            tensors[0], mean, var, *tensors[2:], True,
            residual=tensors[1], activation="silu", backend=backend,
        )  # fmt: skip
        grads = torch.autograd.grad(y, tensors, grad.to(function_dtype))
        return [y.detach(), mean.detach(), var.detach(), *grads]

    actual, expected = step(dtype, "triton"), step(torch.float64, "reference")
    for a, b in zip(actual, expected, strict=True):
        assert_matches(a, b, scale=100 if a.dim() == 1 else 8)
    again = step(dtype, "triton")
    assert all(torch.equal(a, b) for a, b in zip(actual, again, strict=True))


def test_default_backend_is_triton():
    x = torch.randn(2, 3, 4, 5, device="cuda")
    ones = torch.ones(3, device="cuda")
    with torch.profiler.profile() as profile:
        ops.batch_norm_relu(x, ones, ones)
    names = {event.key for event in profile.key_averages()}
    assert "fastvision::batch_norm_relu_triton" in names


def test_beyond_32_bit_offsets():
    x = torch.zeros(1, 2, 2**15, 2**15 + 8, dtype=torch.float16, device="cuda")
    x[0, 1, -1, -8:] = 1
    y = ops.batch_norm_relu(x, None, None, training=True, activation="none", backend="triton")
    assert (y[0, 1, -1, -8:] > 100).all()
    assert not y[0, 0].any()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_autocast_step(dtype):
    fused = ops.Conv2dNormActivation(16, 24).cuda().to(memory_format=torch.channels_last)
    layers = nn.Sequential(*fused)
    x = torch.randn(4, 16, 28, 28, device="cuda")
    gradients = []
    for module in (fused, layers):
        module.zero_grad()
        with torch.autocast("cuda", dtype=dtype):
            y = module(x)
        assert y.dtype == dtype
        y.float().square().mean().backward()
        gradients.append([p.grad.clone() for p in fused.parameters()])
    for a, b in zip(*gradients, strict=True):
        assert (a - b).norm() <= 3e-2 * b.norm() + 1e-3
