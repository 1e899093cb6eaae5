"""deform_conv2d: every backend against torchvision, and against the reference in float64."""

from __future__ import annotations

import math

import pytest
import torch

from fastvision import ops, reference
from fastvision._memory_format import memory_format
from fastvision.testing import cases
from fastvision.testing.deform_conv2d import Problem, leaves
from fastvision.testing.marks import LAYOUTS, needs_library
from fastvision.testing.numerics import DTYPES, assert_matches
from fastvision.testing.tensors import dtype_id, leaf
from fastvision.testing.threads import same_for_threads

pytestmark = pytest.mark.usefixtures("poisoned_memory")

SMALL = Problem((2, 4, 5, 6), 3)
PROBLEMS = [
    SMALL,
    Problem((1, 6, 5, 7), 4, (3, 2), (2, 1), (1, 0), (2, 1), groups=2, offset_groups=3, bias=False),
    Problem((1, 40, 9, 8), 24, (1, 3), (1, 2), (0, 2), (1, 2), mask=False),
    # offset groups that are narrower than a vector, and groups that share one
    Problem((2, 48, 6, 7), 32, groups=4, offset_groups=8),
    Problem((1, 24, 7, 7), 24, groups=24),
    Problem((1, 16, 6, 5), 8, groups=8, offset_groups=2, mask=False),
    # several vectors and blocks of channels, several tiles and segments
    Problem((1, 70, 25, 23), 150, padding=(0, 3)),
    Problem((3, 8, 33, 16), 70, (2, 2), (1, 1), (3, 0), offset_groups=2),
]
SOME = pytest.mark.only(
    lambda backend, channels_last, dtype, problem: (
        (backend.name != "triton" or dtype != torch.float64)
        and (
            not backend.interpreted
            or (problem == SMALL and not channels_last)
            or (problem in PROBLEMS[:3] and channels_last and dtype == torch.float32)
        )
    )
)
# in Triton's interpreter a backward pass takes seconds
ONE_LAYOUT = pytest.mark.only(
    lambda backend, channels_last: not (backend.interpreted and channels_last)
)


def gradients(result, tensors, grad):
    wanted = leaves(tensors)
    return torch.autograd.grad(result, wanted, grad.to(result))


@LAYOUTS
@pytest.mark.parametrize("dtype", DTYPES, ids=dtype_id)
@pytest.mark.parametrize("problem", PROBLEMS, ids=str)
@SOME
def test_forward_and_backward(backend, channels_last, dtype, problem):
    tensors = problem.tensors(dtype, backend.device, channels_last=channels_last, gradients=True)
    result = problem.call(ops.deform_conv2d, tensors, backend=backend.name)
    assert result.dtype == dtype
    assert result.is_contiguous(memory_format=memory_format(channels_last))
    grad = cases.feature_map(*result.shape, seed=9)
    found = gradients(result, tensors, grad)
    with torch.no_grad():  # without the Function
        again = problem.call(ops.deform_conv2d, tensors, backend=backend.name)
        assert torch.equal(again, result)

    exact = [None if t is None else leaf(t.double()) for t in tensors]
    expected = problem.call(ops.deform_conv2d, exact, backend="reference")
    assert_matches(result, expected, scale=2)
    wanted = gradients(expected, exact, grad.to(dtype))
    for actual, g, tensor in zip(found, wanted, leaves(tensors), strict=True):
        assert actual.dtype == dtype and actual.shape == tensor.shape
        assert_matches(actual, g, scale=2 * max(1.0, g.abs().max().item()))


@LAYOUTS
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=dtype_id)
@pytest.mark.parametrize("problem", PROBLEMS, ids=str)
@pytest.mark.only(
    lambda backend, dtype: (
        not backend.interpreted and (backend.name != "triton" or dtype != torch.float64)
    )
)
def test_agrees_with_torchvision(backend, torchvision, channels_last, dtype, problem):
    """Also at borders: many samples are on them, or up to one pixel outside."""
    tensors = problem.tensors(dtype, backend.device, channels_last=channels_last, gradients=True)
    theirs = problem.call(torchvision.ops.deform_conv2d, tensors)
    ours = problem.call(ops.deform_conv2d, tensors, backend=backend.name)
    assert_matches(ours, theirs)
    grad = cases.feature_map(*ours.shape, seed=9)
    for actual, expected in zip(
        gradients(ours, tensors, grad), gradients(theirs, tensors, grad), strict=True
    ):
        assert_matches(actual, expected, scale=2 * max(1.0, expected.abs().max().item()))


def test_without_offsets_it_is_a_convolution(backend):
    problem = Problem((1, 6, 7, 8), 4, (3, 2), (2, 1), (1, 1), (1, 2), groups=2)
    x, offset, weight, bias, mask = problem.tensors(device=backend.device)
    ones = torch.ones_like(mask)
    window = (problem.stride, problem.padding, problem.dilation)
    expected = torch.nn.functional.conv2d(x, weight, bias, *window, groups=2)
    for factors in (None, ones, 2 * ones):
        zeros = torch.zeros_like(offset)
        y = ops.deform_conv2d(x, zeros, weight, bias, *window, factors, backend=backend.name)
        scale = 1 if factors is None else factors[0, 0, 0, 0]
        assert_matches(y, (expected - bias[:, None, None]) * scale + bias[:, None, None])


def test_hand_checked(backend):
    """f(y, x) = x + 10 y, a tap of 1x1, and the gradients of one sample each."""
    x = (torch.arange(4.0) + 10 * torch.arange(3.0)[:, None])[None, None].to(backend.device)

    def sample(y, x_):
        """Value, and derivatives by y and x, of the sample at (y, x)."""
        offset = torch.tensor([y, x_], device=backend.device).view(1, 2, 1, 1).expand(1, 2, 3, 4)
        offset = leaf(offset.clone())
        weight = torch.ones(1, 1, 1, 1, device=backend.device)
        value = ops.deform_conv2d(x, offset, weight, backend=backend.name)[0, 0, 0, 0]
        (grad,) = torch.autograd.grad(value, offset)
        return [value.item(), *grad[0, :, 0, 0].tolist()]

    assert sample(1.0, 2.0) == [12, 10, 1]
    assert sample(1.5, 2.25) == [17.25, 10, 1]
    assert sample(1.0, 3.5) == [6.5, 5, -13]  # halfway out of the right border
    assert sample(-0.5, 2.0) == [1, 2, 0.5]
    assert sample(-1.0, 2.0) == [0, 2, 0]  # on the edge: no value, but a derivative
    assert sample(2.0, -1.0) == [0, 0, 20]
    assert sample(3.0, 2.0) == sample(1.0, 4.0) == sample(-1.25, 2.0) == [0, 0, 0]


@LAYOUTS
@ONE_LAYOUT
def test_positions_that_are_no_numbers(backend, channels_last):
    """Samples there are 0, and nothing outside of the image is read."""
    problem = Problem((1, 20, 6, 5), 8)
    tensors = problem.tensors(device=backend.device, channels_last=channels_last)
    x, offset, weight, bias, mask = tensors
    bad = [math.nan, math.inf, -math.inf, 3e38, -3e38, 2.0**31, -(2.0**31), 2.0**63]
    for i, value in enumerate(bad):
        offset[0, 2 * i + i % 2] = value
    away = offset.clone()
    away[0, : 2 * len(bad)] = -100.0
    leaf_at = [leaf(t) for t in (x, offset, weight, bias, mask)]
    result = problem.call(ops.deform_conv2d, leaf_at, backend=backend.name)
    expected = ops.deform_conv2d(x, away, weight, bias, 1, 1, 1, mask, backend=backend.name)
    assert torch.equal(result, expected) and result.isfinite().all()
    result.sum().backward()
    for tensor in leaf_at:
        assert tensor.grad.isfinite().all()
    assert leaf_at[1].grad[0, : 2 * len(bad)].eq(0).all()
    assert leaf_at[4].grad[0, : len(bad)].eq(0).all()


@LAYOUTS
@ONE_LAYOUT
@pytest.mark.parametrize("value", [math.inf, math.nan])
def test_pixels_that_are_not_finite(backend, torchvision, channels_last, value):
    """They reach the samples next to them, in all gradients, and no others."""
    problem = Problem((1, 5, 5, 6), 3, offset_groups=1)
    tensors = problem.tensors(device=backend.device, channels_last=channels_last)
    tensors[0][0, :, 0, 2] = value
    tensors[0][0, 4, 4, 5] = value
    tensors[1][:, :, ::2] = 0  # many samples of the padding are at -1 exactly
    tensors = [leaf(t) for t in tensors]
    result = problem.call(ops.deform_conv2d, tensors, backend=backend.name)
    expected = problem.call(torchvision.ops.deform_conv2d, tensors)
    assert torch.equal(result.isfinite(), expected.isfinite())
    assert 0 < result.isfinite().sum() < result.numel()
    grad = cases.feature_map(*result.shape, seed=9)
    for name, actual, wanted in zip(
        ("input", "offset", "weight", "bias", "mask"),
        gradients(result, tensors, grad),
        gradients(expected, tensors, grad),
        strict=True,
    ):
        if backend.name == "reference" and name == "offset":
            # at -1 exactly, autograd finds no derivative towards such a pixel
            assert not (wanted.isfinite() & ~actual.isfinite()).any()
        else:
            assert torch.equal(actual.isfinite(), wanted.isfinite()), name


def test_infinite_mask(backend):
    x = torch.ones(1, 2, 3, 3, device=backend.device)
    offset = torch.zeros(1, 2, 3, 3, device=backend.device)
    offset[..., 2] = 9  # outside
    mask = torch.full((1, 1, 3, 3), math.inf, device=backend.device)
    weight = torch.ones(1, 2, 1, 1, device=backend.device)
    y = ops.deform_conv2d(x, offset, weight, mask=mask, backend=backend.name)
    assert y[..., :2].eq(math.inf).all() and y[..., 2].isnan().all()


@pytest.mark.parametrize(
    "problem",
    [
        Problem((0, 4, 5, 6), 3),
        Problem((2, 4, 5, 6), 0),
        Problem((1, 4, 0, 6), 3, padding=(2, 1)),
        Problem((1, 4, 0, 0), 3, (1, 1), mask=False),
    ],
    ids=str,
)
def test_empty(backend, problem):
    tensors = problem.tensors(device=backend.device, gradients=True)
    result = problem.call(ops.deform_conv2d, tensors, backend=backend.name)
    assert result.shape == (problem.shape[0], problem.filters, *problem.size)
    bias = tensors[3]
    assert torch.equal(result, bias.view(-1, 1, 1).expand_as(result))
    for tensor, grad in zip(leaves(tensors), gradients(result, tensors, result + 1), strict=True):
        assert grad.shape == tensor.shape
        assert grad.eq(0).all() or tensor is bias


@pytest.mark.parametrize("wanted", range(5))
@pytest.mark.only(lambda backend, wanted: not backend.interpreted or wanted in (0, 3))
def test_one_gradient_alone(backend, wanted):
    tensors = SMALL.tensors(device=backend.device)
    alone = [leaf(t) if i == wanted else t for i, t in enumerate(tensors)]
    together = [leaf(t) for t in tensors]
    results = [SMALL.call(ops.deform_conv2d, t, backend=backend.name) for t in (alone, together)]
    grad = cases.feature_map(*results[0].shape, seed=9).to(results[0])
    (single,) = torch.autograd.grad(results[0], alone[wanted], grad)
    assert_matches(single, torch.autograd.grad(results[1], together, grad)[wanted])


def test_strided_tensors(backend):
    """Views, and an expanded gradient."""
    tensors = SMALL.tensors(device=backend.device)
    views = [torch.stack([t, 2 * t], -1)[..., 0] for t in tensors]
    assert not any(v.is_contiguous() for v in views)
    views, tensors = [leaf(t) for t in views], [leaf(t) for t in tensors]
    a, b = (SMALL.call(ops.deform_conv2d, t, backend=backend.name) for t in (views, tensors))
    assert torch.equal(a, b)
    for grad, expected in zip(
        torch.autograd.grad(a.sum(), views),
        torch.autograd.grad(b, tensors, torch.ones_like(b)),
        strict=True,
    ):
        assert_matches(grad, expected)


def test_derivatives(backend):
    if backend.name == "triton":
        with pytest.raises(ValueError, match="the Triton kernel has no float64"):
            SMALL.call(ops.deform_conv2d, SMALL.tensors(torch.float64), backend="triton")
        return
    problem = Problem((1, 4, 3, 3), 2, (2, 2), groups=2, offset_groups=2)
    tensors = problem.tensors(torch.float64, backend.device)
    tensors[1] = tensors[1].add(1 / 3)  # away from pixels, where there are kinks
    tensors = [leaf(t) for t in tensors]

    def convolve(*tensors):
        return problem.call(ops.deform_conv2d, list(tensors), backend=backend.name)

    assert torch.autograd.gradcheck(
        convolve, tensors, check_forward_ad=True, check_batched_grad=True
    )
    assert torch.autograd.gradgradcheck(convolve, tensors)


@needs_library
@LAYOUTS
@pytest.mark.parametrize("shape", [(1, 20, 40, 30), (3, 9, 20, 17), (40, 4, 5, 6)], ids=str)
def test_deterministic(cpu_level, channels_last, shape):
    """Bit for bit the same for any number of threads."""
    problem = Problem(shape, 24, offset_groups=1)
    tensors = problem.tensors(channels_last=channels_last, gradients=True)
    grad = cases.feature_map(shape[0], 24, *problem.size, seed=9)

    def run():
        result = problem.call(ops.deform_conv2d, tensors, backend="cpp")
        return result, *gradients(result, tensors, grad)

    same_for_threads(run, (1, 2, 5))


def test_the_reference_takes_its_gradients_from_autograd():
    x, offset, weight, bias, mask = SMALL.tensors(torch.float64, gradients=True)
    options = ((1,) * 6, 1, 1)
    result = reference.deform_conv2d(x, offset, mask, weight, bias, *options)
    grad = torch.randn_like(result)
    expected = torch.autograd.grad(result, (x, offset, mask, weight, bias), grad)
    found = reference.deform_conv2d_backward(grad, x, offset, mask, weight, *options, 31)
    for a, b in zip(found, expected, strict=True):
        assert_matches(a, b)
    *rest, bias_grad = reference.deform_conv2d_backward(grad, x, offset, None, weight, *options, 16)
    assert all(g.numel() == 0 for g in rest)
    assert_matches(bias_grad, grad.sum((0, 2, 3)))
