"""roi_align with pool_mode="max": every backend against the reference in float64."""

from __future__ import annotations

import math

import pytest
import torch

from fastvision import ops, reference
from fastvision._memory_format import memory_format
from fastvision.testing import cases
from fastvision.testing.marks import LAYOUTS
from fastvision.testing.numerics import DTYPES, assert_matches
from fastvision.testing.roi_align import EMPTY
from fastvision.testing.roi_programs import assert_compiles
from fastvision.testing.tensors import dtype_id, leaf
from fastvision.testing.threads import same_for_threads

pytestmark = pytest.mark.usefixtures("poisoned_memory")
HAS_KERNEL = pytest.mark.only(lambda backend: backend.name != "triton")
LOWEST = torch.finfo(torch.float32).min
ONE_LEVEL = (0.0, 0.0, 0)


def pool(x, rois, *args, backend):
    rois = torch.as_tensor(rois, dtype=torch.float32, device=backend.device)
    return ops.roi_align(x, rois, *args, pool_mode="max", backend=backend.name)


def raw(backend, features, rois, scales, options, level_rule=ONE_LEVEL):
    """Samples and their numbers, as the backend finds them."""
    rois = rois.to(torch.promote_types(features[0].dtype, torch.float32))
    if backend.name == "reference":
        return reference.roi_align_max(features, rois, scales, *options, *level_rule)
    return torch.ops.fastvision.roi_align_max(features, rois, scales, *options, *level_rule, True)


# channels below, at and above the width of a vector and of a block of vectors; bins of more samples
# than are looked at together
@HAS_KERNEL
@LAYOUTS
@pytest.mark.parametrize("dtype", DTYPES, ids=dtype_id)
@pytest.mark.parametrize(
    ("channels", "bins", "sampling_ratio", "aligned"),
    [
        (1, (1, 1), 1, False),
        (5, (7, 7), 2, True),
        (37, (3, 2), 0, True),
        (150, (2, 9), 3, False),
        (16, (1, 2), 11, True),
    ],
)
def test_forward_and_backward(
    backend, channels_last, dtype, channels, bins, sampling_ratio, aligned
):
    x = cases.feature_map(2, channels, 13, 21, dtype=dtype, channels_last=channels_last)
    x = leaf(x.to(backend.device))
    rois = cases.small_rois(40, 2, 13, 21, 0.25).to(backend.device)
    options = (*bins, sampling_ratio, aligned)
    pooled = pool(x, rois, bins, 0.25, sampling_ratio, aligned, backend=backend)
    assert pooled.dtype == dtype
    format = memory_format(channels_last)
    assert pooled.is_contiguous(memory_format=format)
    grad = torch.randn(pooled.shape, generator=cases.generator(6)).to(pooled)
    pooled.backward(grad)
    with torch.no_grad():  # without numbers of samples
        assert torch.equal(
            pool(x, rois, bins, 0.25, sampling_ratio, aligned, backend=backend), pooled
        )

    exact, exact_rois = leaf(x.double()), rois.double()
    expected, _ = reference.roi_align_max([exact], exact_rois, [0.25], *options, *ONE_LEVEL)
    assert_matches(pooled, expected, scale=2)
    # where two samples are nearly equal rounding decides, so the gradient is of those found
    found, argmax = raw(backend, [x.detach()], rois, [0.25], options)
    assert torch.equal(found, pooled) and argmax.dtype == torch.int32
    assert argmax.is_contiguous(memory_format=format)
    samples = reference.samples_at([exact], exact_rois, argmax, ([0.25], *options, *ONE_LEVEL))
    assert_matches(pooled, samples, scale=2)
    samples.backward(grad.double())
    assert x.grad.is_contiguous(memory_format=format)
    assert_matches(x.grad, exact.grad, scale=8)


@HAS_KERNEL
@LAYOUTS
@pytest.mark.parametrize("dtype", DTYPES, ids=dtype_id)
@pytest.mark.parametrize("sampling_ratio", [0, 1, 2, 4, 10])
def test_first_of_equal_samples(backend, channels_last, dtype, sampling_ratio):
    """Whole numbers and positions in quarters of a pixel, in which all computing is exact."""
    x = cases.feature_map(2, 20, 12, 14).mul(1.5).round().to(dtype)
    x = x.contiguous(memory_format=memory_format(channels_last)).to(backend.device)
    g = cases.generator(3)
    corner = torch.randint(-3, 11, (40, 2), generator=g)
    size = 2 ** torch.randint(1, 4, (40, 2), generator=g)
    rois = torch.cat([torch.arange(40)[:, None] % 2, corner, corner + size], 1).float()
    if sampling_ratio == 10:
        rois[:, 3:] = rois[:, 1:3] + 10  # 20 samples on 10 pixels
    options = (2, 2, sampling_ratio, False)
    pooled, argmax = raw(backend, [x], rois.to(backend.device), [1.0], options)
    expected, positions = reference.roi_align_max(
        [x.cpu().double()], rois.double(), [1.0], *options, *ONE_LEVEL
    )
    assert torch.equal(pooled.cpu().double(), expected)
    assert torch.equal(argmax.cpu(), positions)
    assert (positions == -1).any() and (positions == 0).any()
    if sampling_ratio > 1:
        assert (positions == sampling_ratio**2 - 1).any()


@HAS_KERNEL
def test_hand_checked(backend):
    """f(y, x) = x + 10 y is largest at the last sample of a bin; -f at the first."""
    x = (torch.arange(6.0) + 10 * torch.arange(5.0)[:, None])[None, None].to(backend.device)

    def of(x, roi, *args):
        return pool(x, [[0, *roi]], *args, backend=backend)[0, 0].tolist()

    # samples at 1.5, 2.5 and 3.5, 4.5
    assert of(x, [1, 1, 5, 5], 2, 1.0, 2, False) == [[27.5, 29.5], [42.5, 44.5]]
    assert of(-x, [1, 1, 5, 5], 2, 1.0, 2, False) == [[-16.5, -18.5], [-36.5, -38.5]]
    assert of(x, [2, 2, 4, 4], 1, 1.0, 1, True) == [[27.5]]
    # past the last row a sample has that row's value, and beyond one pixel 0
    assert of(-x, [0, 4, 2, 6], (2, 1), 1.0, 1, False) == [[-41], [0]]
    # the gradient of the sample at (2.5, 2.5) is shared by four pixels
    y = leaf(x)
    pool(y, [[0, 1, 1, 3, 3]], 1, 1.0, 2, backend=backend).sum().backward()
    expected = torch.zeros(5, 6)
    expected[2:4, 2:4] = 0.25
    assert torch.equal(y.grad[0, 0].cpu(), expected)


@HAS_KERNEL
@LAYOUTS
@pytest.mark.parametrize("dtype", DTYPES, ids=dtype_id)
def test_samples_that_do_not_count(backend, channels_last, dtype):
    x = torch.full((1, 20, 4, 12), math.nan, dtype=dtype)
    x[:, :, :, 4:8] = -math.inf
    x[:, :, 1, 8] = -1
    x[:, :, 2, 10] = math.inf
    x = leaf(x.contiguous(memory_format=memory_format(channels_last)).to(backend.device))
    rois = [[0, -0.5, -0.5, 11.5, 3.5]]  # with a sample on every pixel
    pooled = pool(x, rois, (1, 3), 1.0, 4, False, backend=backend)
    lowest = torch.tensor(LOWEST).to(dtype).item()
    assert pooled[0, :, 0].tolist() == [[lowest, lowest, math.inf]] * 20
    pooled.backward(torch.full_like(pooled, 3))
    expected = torch.zeros_like(x)
    expected[:, :, 2, 10] = 3
    assert torch.equal(x.grad, expected)


@HAS_KERNEL
@LAYOUTS
def test_bad_rois(backend, channels_last):
    """The table of the docstring: zeros for what has no answer, an error where it can be known."""
    x = cases.feature_map(2, 9, 6, 7, channels_last=channels_last).abs()
    x = leaf(x.to(backend.device))
    good = [0, 1.0, 1, 5, 5]
    nan, inf = math.nan, math.inf
    zeros = [[1, nan, 1, 5, 5], [1, 1, -inf, 5, inf], [0, 1, 1, inf, 5], [0, 500, 500, 600, 600]]
    rois = torch.tensor([good, *zeros, [0, -3e38, 0, 3e38, 5], good])
    for ratio in (0, 2):
        usable = rois if ratio else rois[[0, 1, 2, 3, 4, 6]]
        pooled = pool(x, usable, 2, 2.0, ratio, backend=backend)
        assert torch.equal(pooled[0], pooled[-1]) and pooled[0].ne(0).any()
        assert pooled[1:-1].eq(0).all()
        x.grad = None
        pooled.sum().backward()
        assert x.grad.isfinite().all() and x.grad[1].eq(0).all() and x.grad[0].ne(0).any()
    reversed_box = [[0, 5, 5, 1, 1]]
    assert pool(x, reversed_box, 2, 1.0, 0, True, backend=backend).eq(0).all()
    mirrored = pool(x, reversed_box, 2, 1.0, 2, True, backend=backend).flip(2, 3)
    assert_matches(mirrored, pool(x, [good], 2, 1.0, 2, True, backend=backend), scale=4)

    def refused(roi, ratio, message):
        if backend.device == "cpu":
            with pytest.raises(RuntimeError, match=message):
                pool(x, [good, roi], 2, 1.0, ratio, backend=backend)
        else:
            assert pool(x, [good, roi], 2, 1.0, ratio, backend=backend)[1].eq(0).all()

    for index in (-1.0, -0.5, 2.0, 1e30, nan):
        refused([index, 1, 1, 5, 5], 2, "batch index")
    too_many = "2\\*\\*20 samples per bin and axis, or 2\\*\\*24 per bin; pass a smaller"
    refused([0, 1, 1, 3e6, 5], 0, too_many)
    refused([0, 1, 1, 1e4, 1e4], 0, too_many)  # on both axes together
    refused(good, 5000, too_many)


@HAS_KERNEL
@LAYOUTS
def test_long_rows_of_samples(backend, channels_last):
    """Only the samples near the map are looked at, and none of those in it is left out."""
    x = cases.feature_map(1, 4, 9, 11, channels_last=channels_last)
    x = leaf(x.to(backend.device))
    rois = torch.tensor(
        [[0, -440, 3, 450, 8], [0, 2, -300, 9, 600.0], [0, -800, 5, 7, 8], [0, 450, 3, -440, 8]]
    )
    for ratio in (0, 200):
        pooled, argmax = raw(
            backend, [x.detach()], rois.to(backend.device), [1.0], (2, 2, ratio, True)
        )
        exact = leaf(x.double())
        expected, _ = reference.roi_align_max(
            [exact], rois.to(exact), [1.0], 2, 2, ratio, True, *ONE_LEVEL
        )
        assert pooled.gt(0).any()
        assert_matches(pooled, expected, scale=30)  # positions are far from 0
        ours = pool(x, rois, 2, 1.0, ratio, True, backend=backend)
        grad = cases.feature_map(*pooled.shape).to(x)
        (actual,) = torch.autograd.grad(ours, x, grad)
        options = ([1.0], 2, 2, ratio, True, *ONE_LEVEL)
        samples = reference.samples_at([exact], rois.to(exact), argmax, options)
        assert_matches(actual, torch.autograd.grad(samples, exact, grad.double())[0], scale=30)


@HAS_KERNEL
@LAYOUTS
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=dtype_id)
def test_multiscale(backend, channels_last, dtype):
    maps, scales = cases.pyramid(
        2, 5, height=64, width=96, levels=3, dtype=dtype, channels_last=channels_last
    )
    maps = [leaf(m.to(backend.device)) for m in maps]
    rois = cases.rois(30, 2, height=64, width=96, min_size=4, max_size=60).to(backend.device)
    rois[3, 1:] = torch.tensor([9.0, 9, 1, 30])  # of negative area: no level
    options, rule = (3, 2, 2, True), (32.0, 4.0, 2)
    pooled = ops.multiscale_roi_align(
        maps, rois, (3, 2), scales, 2, True, canonical_scale=32, min_level=2, pool_mode="max",
        backend=backend.name,
    )  # fmt: skip
    assert pooled.is_contiguous(memory_format=memory_format(channels_last))
    assert pooled[3].eq(0).all()
    grad = torch.randn(pooled.shape, generator=cases.generator(6)).to(pooled)
    grads = torch.autograd.grad(pooled, maps, grad)
    _, argmax = raw(backend, [m.detach() for m in maps], rois, scales, options, rule)
    exact = [leaf(m.double()) for m in maps]
    expected, _ = reference.roi_align_max(exact, rois.double(), scales, *options, *rule)
    assert_matches(pooled, expected, scale=2)
    samples = reference.samples_at(exact, rois.double(), argmax, (scales, *options, *rule))
    for actual, wanted in zip(
        grads, torch.autograd.grad(samples, exact, grad.double()), strict=True
    ):
        assert wanted.ne(0).any()
        assert_matches(actual, wanted, scale=8)


@pytest.mark.only(lambda backend: backend.name == "cpp" and backend.device == "cpu")
def test_maximum_of_a_map_of_more_than_2_31_pixels(backend):
    """Samples are numbered within their bin; only roi_pool's pixels have to fit 32 bits."""
    x = torch.empty(0, 1, 2**16, 2**15 + 1)  # no image, so that the map takes no memory
    rois = torch.tensor([[0.0, 1, 1, 5, 5]])
    with pytest.raises(RuntimeError, match="batch index"):
        raw(backend, [x], rois, [1.0], (2, 2, 2, True))
    with pytest.raises(RuntimeError, match="position of a maximum is int32"):
        ops.roi_pool(x.requires_grad_(), rois, 2, backend="cpp")


def test_modules(cpu_level):
    x = {"0": cases.feature_map(1, 3, 16, 24), "1": cases.feature_map(1, 3, 8, 12)}
    rois = cases.rois(5, 1, height=64, width=96, max_size=60)
    module = ops.RoIAlign(3, 0.25, 2, pool_mode="max")
    expected = ops.roi_align(x["0"], rois, 3, 0.25, 2, pool_mode="max")
    assert torch.equal(module(x["0"], rois), expected)
    assert "pool_mode='max'" in repr(module)
    assert not torch.equal(expected, ops.roi_align(x["0"], rois, 3, 0.25, 2))
    pooler = ops.MultiScaleRoIAlign(["0", "1"], 3, 2, pool_mode="max")
    expected = ops.multiscale_roi_align(
        list(x.values()), rois, 3, [1 / 4, 1 / 8], 2, pool_mode="max"
    )
    assert torch.equal(pooler(x, [rois[:, 1:]], [(64, 96)]), expected)
    assert "pool_mode='max'" in repr(pooler)
    for averages in (ops.RoIAlign(3, 0.25, 2), ops.MultiScaleRoIAlign(["0", "1"], 3, 2)):
        assert "pool_mode" not in repr(averages)
        state = averages.__getstate__()
        del state["pool_mode"]  # as modules pickled before there was one
        old = type(averages).__new__(type(averages))
        old.__setstate__(state)
        assert old.pool_mode == "avg" and repr(old) == repr(averages)
    with pytest.raises(ValueError, match="pool_mode must be .* got 'mean'"):
        ops.roi_align(x["0"], rois, 3, pool_mode="mean")
    with pytest.raises(ValueError, match="backend='triton' cannot run"):
        ops.roi_align(x["0"], rois, 3, pool_mode="max", backend="triton")


@HAS_KERNEL
@pytest.mark.parametrize(("shape", "count", "bins"), EMPTY)
def test_empty(backend, shape, count, bins):
    x = leaf(torch.ones(shape, device=backend.device))
    rois = torch.tensor([[0, 0, 0, 3.0, 3]]).repeat(count, 1)
    pooled = pool(x, rois, bins, backend=backend)
    assert pooled.shape == (count, shape[1], *bins) and pooled.eq(0).all()
    pooled.sum().backward()
    assert x.grad.shape == shape and x.grad.eq(0).all()


@HAS_KERNEL
@LAYOUTS
def test_second_and_forward_derivatives(backend, channels_last):
    x = cases.feature_map(1, 2, 5, 6, dtype=torch.float64, channels_last=channels_last)
    x = leaf(x.to(backend.device))
    rois = torch.tensor([[0, 0.5, 1, 4, 3.5], [0, 2, 2, 9, 9]], dtype=torch.float64)
    rois = rois.to(backend.device)

    def largest(x):
        return ops.roi_align(x, rois, 2, pool_mode="max", backend=backend.name)

    assert torch.autograd.gradcheck(largest, x, check_forward_ad=True)
    assert torch.autograd.gradgradcheck(lambda x: largest(x).pow(3), x)


@LAYOUTS
def test_deterministic(cpu_level, channels_last):
    """Bit for bit the same for any number of threads."""
    x = leaf(cases.feature_map(2, 70, 50, 60, channels_last=channels_last))
    rois = cases.small_rois(80, 2, 50, 60, 0.5)

    def run():
        pooled = ops.roi_align(x, rois, 7, 0.5, 2, pool_mode="max", backend="cpp")
        return pooled, *torch.autograd.grad(pooled.sin().sum(), x)

    same_for_threads(run)


@HAS_KERNEL
@LAYOUTS
@pytest.mark.only(lambda backend: backend.name != "reference")  # which has no op of its own
@pytest.mark.parametrize("with_argmax", [False, True])
def test_opcheck(backend, channels_last, with_argmax):
    x = cases.feature_map(2, 5, 8, 9, channels_last=channels_last).to(backend.device)
    rois = cases.small_rois(4, 2, 8, 9, 0.5).to(backend.device)
    forward = torch.ops.fastvision.roi_align_max.default
    options = ([0.5], 3, 2, 2, True, *ONE_LEVEL)
    torch.library.opcheck(forward, ([x], rois, *options, with_argmax))
    if with_argmax:
        pooled, argmax = forward([x], rois, *options, True)
        backward = torch.ops.fastvision.roi_align_max_backward.default
        rest = ([2, 8, 9], [0.5], 2, True, *ONE_LEVEL, channels_last)
        torch.library.opcheck(backward, (pooled, rois, argmax, *rest))


@pytest.mark.parametrize("compiler", ["eager", "aot_eager", "inductor"])
def test_compile(cpu_level, compiler):
    assert_compiles(
        lambda x, boxes: ops.roi_align(x, boxes, (3, 4), 0.5, pool_mode="max"), compiler
    )


def test_func_grad_and_export(cpu_level):
    x, rois = cases.feature_map(1, 3, 6, 7), torch.tensor([[0, 1.0, 1, 5, 4]])

    def loss(x):
        return ops.roi_align(x, rois, 2, pool_mode="max").square().sum()

    y = leaf(x)
    assert_matches(torch.func.grad(loss)(x), torch.autograd.grad(loss(y), y)[0])
    module = ops.RoIAlign(2, 1.0, 2, pool_mode="max")
    program = torch.export.export(module, (x, rois))
    assert torch.equal(program.module()(x, rois), module(x, rois))
