"""The weight gradient of 3x3 convolutions by Winograd's algorithm, against torch in float64."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from fastvision import ops
from fastvision.ops.conv import cpu, gradient
from fastvision.testing import cases
from fastvision.testing.marks import needs_library
from fastvision.testing.threads import same_for_threads

pytestmark = [needs_library, pytest.mark.usefixtures("poisoned_memory")]
_LAST = torch.channels_last
# left, right, top, bottom
SHAPES = {
    "whole vectors": ((2, 32, 16, 20), 64, (1, 1, 1, 1)),
    "parts of vectors": ((2, 37, 9, 14), 83, (1, 1, 1, 1)),
    "without padding": ((1, 33, 11, 10), 16, (0, 0, 0, 0)),
    "padded by two": ((1, 40, 7, 6), 20, (2, 2, 2, 2)),
    "one-sided": ((3, 32, 8, 9), 17, (0, 2, 1, 0)),
    "less than a tile": ((1, 1, 3, 3), 1, (0, 0, 0, 0)),
    "several chunks": ((2, 32, 90, 94), 48, (1, 1, 1, 1)),
}


def problem(shape, filters, sides):
    """Gradient and input in float32 channels_last, the op's options, and the exact result."""
    g = cases.generator(3)
    left, right, top, bottom = sides
    x = torch.randn(shape, generator=g)
    padded = F.pad(x.double(), sides)
    weight = torch.zeros(filters, shape[1], 3, 3, dtype=torch.float64, requires_grad=True)
    y = F.conv2d(padded, weight)
    grad = torch.randn(y.shape, generator=g)
    (exact,) = torch.autograd.grad(y, weight, grad.double())
    options = cpu.conv_options(filters, 3, 3, 1, 1, left, right, top, bottom, 1, 1, 1, 0)
    return grad.contiguous(memory_format=_LAST), x.contiguous(memory_format=_LAST), options, exact


@pytest.mark.parametrize("shape", SHAPES)
def test_gradient_of_the_weight(cpu_level, shape):
    grad, x, options, exact = problem(*SHAPES[shape])
    actual = torch.ops.fastvision.conv_winograd_gradient(grad, x, options)
    assert actual.dtype == torch.float32 and actual.is_contiguous()
    assert (actual - exact).norm() <= 2e-6 * exact.norm()


def test_it_does_not_depend_on_threads():
    grad, x, options, _ = problem(*SHAPES["several chunks"])
    operator = torch.ops.fastvision.conv_winograd_gradient
    same_for_threads(lambda: operator(grad, x, options), (1, 3))


@pytest.mark.parametrize(
    "change",
    [
        {"grad": torch.zeros(2, 16, 9, 9)},
        {"grad": torch.zeros(2, 17, 9, 9).contiguous(memory_format=_LAST)},
        {"grad": torch.zeros(1, 16, 9, 9).contiguous(memory_format=_LAST)},
        {"grad": torch.zeros(2, 16, 10, 9).contiguous(memory_format=_LAST)},
        {"grad": torch.zeros(2, 16, 9, 9).double().contiguous(memory_format=_LAST)},
        {"input": torch.zeros(2, 0, 9, 9).contiguous(memory_format=_LAST)},
        {"options": cpu.conv_options(16, 3, 3, 2, 1, 1, 1, 1, 1, 1, 1, 1, 0)},
        {"options": cpu.conv_options(16, 5, 3, 1, 1, 1, 1, 2, 2, 1, 1, 1, 0)},
        {"options": torch.zeros(13, dtype=torch.int64)},
    ],
    ids=str,
)
def test_bad_arguments(change):
    arguments = {
        "grad": torch.zeros(2, 16, 9, 9).contiguous(memory_format=_LAST),
        "input": torch.zeros(2, 4, 9, 9).contiguous(memory_format=_LAST),
        "options": cpu.conv_options(16, 3, 3, 1, 1, 1, 1, 1, 1, 1, 1, 1, 0),
    }
    with pytest.raises(RuntimeError, match="must"):
        torch.ops.fastvision.conv_winograd_gradient(**(arguments | change))


@pytest.mark.parametrize("with_bias", [False, True])
@pytest.mark.parametrize("is_dense", [False, True], ids=["a slice", "dense"])
def test_a_layer_uses_it(with_bias, is_dense, monkeypatch):
    """All gradients of a layer, whose own gradient may be a part of a larger tensor."""
    used = []
    decide = gradient._winograd_gradient_wins
    monkeypatch.setattr(
        gradient, "_winograd_gradient_wins", lambda *args: used.append(decide(*args)) or used[-1]
    )
    g = cases.generator(4)
    x = torch.randn(2, 32, 40, 52, generator=g).contiguous(memory_format=_LAST)
    weight, bias = torch.randn(48, 32, 3, 3, generator=g) / 9, torch.randn(48, generator=g)
    grad = torch.randn(2, 40, 52, 50, generator=g)[..., :48].permute(0, 3, 1, 2)
    grad = grad.contiguous(memory_format=_LAST) if is_dense else grad
    tensors = [x, weight, *[bias] * with_bias]

    def gradients(run, dtype):
        inputs = [t.to(dtype).requires_grad_() for t in tensors]
        return torch.autograd.grad(run(*inputs).relu(), inputs, grad.to(dtype))

    actual = gradients(lambda *t: ops.conv_bn_relu(*t, padding=1, activation="none"), torch.float32)
    expected = gradients(lambda *t: F.conv2d(*t, padding=1), torch.float64)
    assert used == [True]
    for a, b in zip(actual, expected, strict=True):
        # an element near zero may fall on either side of it
        assert (a.double() - b).norm() <= 1e-3 * b.norm()
