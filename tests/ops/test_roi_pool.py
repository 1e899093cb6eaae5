"""RoIPool: every backend against torchvision, and against the reference in float64."""

from __future__ import annotations

import math

import pytest
import torch

from fastvision import ops, reference
from fastvision._memory_format import memory_format
from fastvision.testing import cases
from fastvision.testing.marks import LAYOUTS
from fastvision.testing.numerics import DTYPES, assert_matches
from fastvision.testing.roi_programs import assert_compiles
from fastvision.testing.tensors import dtype_id, leaf
from fastvision.testing.threads import same_for_threads

pytestmark = pytest.mark.usefixtures("poisoned_memory")
HAS_KERNEL = pytest.mark.only(lambda backend: backend.name != "triton")
LOWEST = torch.finfo(torch.float32).min


def features_with_ties(*shape: int, **options) -> torch.Tensor:
    """Few values, so that bins have several maxima."""
    return cases.feature_map(*shape, **options).mul(2).round()


# channels below, at and above the width of a vector and of a block of vectors; numbers of bins by
# which float32 and float64 divide alike
@HAS_KERNEL
@LAYOUTS
@pytest.mark.parametrize("dtype", DTYPES, ids=dtype_id)
@pytest.mark.parametrize(
    ("channels", "bins"), [(1, (1, 1)), (5, (4, 8)), (37, (2, 1)), (150, (1, 8)), (16, (32, 16))]
)
def test_forward_and_backward(backend, channels_last, dtype, channels, bins):
    x = features_with_ties(2, channels, 13, 21, dtype=dtype, channels_last=channels_last)
    x = leaf(x.to(backend.device))
    rois = cases.small_rois(40, 2, 13, 21, 0.25).to(backend.device)
    pooled = ops.roi_pool(x, rois, bins, 0.25, backend=backend.name)
    assert pooled.dtype == dtype
    assert pooled.is_contiguous(memory_format=memory_format(channels_last))
    grad = torch.randn(pooled.shape, generator=cases.generator(6)).to(pooled)
    pooled.backward(grad)
    with torch.no_grad():  # without positions
        assert torch.equal(ops.roi_pool(x, rois, bins, 0.25, backend=backend.name), pooled)

    exact = leaf(x.double())
    expected, _ = reference.roi_pool(exact, rois.double(), 0.25, *bins)
    expected.backward(grad.double())
    assert torch.equal(pooled.double(), expected)
    assert x.grad.is_contiguous(memory_format=memory_format(channels_last))
    assert_matches(x.grad, exact.grad, scale=8)


@HAS_KERNEL
@LAYOUTS
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=dtype_id)
@pytest.mark.parametrize("bins", [(7, 7), (3, 5), (1, 6), (9, 20), (40, 3)])
def test_agrees_with_torchvision(backend, torchvision, channels_last, dtype, bins):
    x = features_with_ties(3, 18, 25, 19, dtype=dtype, channels_last=channels_last)
    x[0, :, 3:6, 2:9] = math.nan
    x[1, :, 7:9] = -math.inf
    x[1, :, :, 4] = math.inf
    x = leaf(x.to(backend.device))
    rois = cases.small_rois(120, 3, 25, 19, 0.5).to(x)
    rois[::10, 3:] = rois[::10, 1:3] - 3  # reversed corners
    rois[5::10, 1:] = rois[5::10, 1:].round()  # scaled, halfway between two pixels
    theirs, positions = torch.ops.torchvision.roi_pool(x, rois, 0.5, *bins)
    ours = ops.roi_pool(x, rois, bins, 0.5, backend=backend.name)
    assert torch.equal(ours, theirs)
    if backend.name == "reference":
        argmax = reference.roi_pool(x, rois, 0.5, *bins)[1]
    else:
        argmax = torch.ops.fastvision.roi_pool(x, rois, 0.5, *bins, True)[1]
    assert torch.equal(argmax, positions)
    grad = cases.feature_map(*ours.shape, seed=6, dtype=dtype).to(x)
    (actual,) = torch.autograd.grad(ours, x, grad)
    (expected,) = torch.autograd.grad(theirs, x, grad)
    assert_matches(actual, expected, scale=10)


@HAS_KERNEL
def test_hand_checked(backend):
    """f(y, x) = x + 10 y is largest at the last pixel of a bin."""
    x = (torch.arange(6.0) + 10 * torch.arange(5.0)[:, None])[None, None].to(backend.device)

    def pool(roi, bins, scale=1.0):
        rois = torch.tensor([[0, *roi]], device=backend.device)
        return ops.roi_pool(x, rois, bins, scale, backend=backend.name)[0, 0].tolist()

    assert pool([1.0, 1, 4, 4], 2) == [[22, 24], [42, 44]]
    assert pool([1.0, 1, 3, 3], 2) == [[22, 23], [32, 33]]  # bins of 1.5 pixels share the middle
    assert pool([1.0, 1, 1, 1], 2) == [[11, 11], [11, 11]]  # one pixel for all
    assert pool([4.0, 4, 1, 1], 1) == [[44]]  # reversed: one pixel at the first corner
    assert pool([0.5, 0.5, 0.5, 0.5], 1) == [[11]]  # half away from zero
    assert pool([2.5, 2.5, 2.5, 2.5], 1) == [[33]]
    assert pool([-2.5, -2.5, 2.5, 2.5], (7, 1)) == [[0], [0], [0], [3], [13], [23], [33]]
    assert pool([5.0, 1, 7, 1], (1, 3)) == [[15, 0, 0]]  # bins outside
    assert pool([2.0, 2, 6, 6], 1, 0.5) == [[33]]


@HAS_KERNEL
def test_boxes_as_a_list(backend):
    x = cases.feature_map(2, 3, 8, 9).to(backend.device)
    rois = cases.small_rois(5, 2, 8, 9, 1.0).to(backend.device)
    rois = rois[rois[:, 0].argsort()]
    listed = [rois[rois[:, 0] == image, 1:] for image in range(2)]
    expected = ops.roi_pool(x, rois, 3, 1.0, backend=backend.name)
    assert torch.equal(ops.roi_pool(x, listed, 3, 1.0, backend=backend.name), expected)
    module = ops.RoIPool(3, 1.0)
    assert torch.equal(module(x, tuple(listed)), expected)
    assert "spatial_scale=1.0" in repr(module)


@HAS_KERNEL
@LAYOUTS
def test_bad_rois(backend, channels_last):
    """The table of the docstring: zeros for what has no answer, an error where it can be known."""
    x = cases.feature_map(2, 9, 6, 7, channels_last=channels_last)
    x = leaf(x.to(backend.device))
    good = [0, 1.0, 1, 5, 5]
    nan, inf = math.nan, math.inf
    harmless = [[1, nan, 1, 5, 5], [1, 1, -inf, 5, inf], [0, 1, 1, inf, 5], [0, 500, 500, 600, 600]]
    harmless += [[0, -3e38, 0, 3e38, 5], [0, 1e10, 1e10, 2e10, 2e10]]
    rois = torch.tensor([good, *harmless, good], device=backend.device)
    pooled = ops.roi_pool(x, rois, 2, 2.0, backend=backend.name)  # 6e38 is infinite in float32
    assert torch.equal(pooled[0], pooled[-1]) and pooled[0].ne(0).any()
    assert pooled[1:-1].eq(0).all()
    pooled.sum().backward()
    assert x.grad.isfinite().all() and x.grad[1].eq(0).all()

    huge = torch.tensor([[0, -1e30, -1e30, 1e30, 1e30], [0, -1e6, 0, 6, 6]], device=backend.device)
    pooled = ops.roi_pool(x, huge, 1, backend=backend.name)
    assert torch.equal(pooled[0].flatten(), x[0].flatten(1).max(1).values)
    assert torch.equal(pooled[1], pooled[0])
    for index in (-1.0, -0.5, 2.0, 1e30, nan):
        rois = torch.tensor([good, [index, 1, 1, 5, 5]], device=backend.device)
        if backend.device == "cpu":
            with pytest.raises(RuntimeError, match="batch index"):
                ops.roi_pool(x, rois, 2, backend=backend.name)
        else:
            assert ops.roi_pool(x, rois, 2, backend=backend.name)[1].eq(0).all()


@HAS_KERNEL
@LAYOUTS
@pytest.mark.parametrize("dtype", DTYPES, ids=dtype_id)
def test_pixels_that_do_not_count(backend, channels_last, dtype):
    x = torch.full((1, 20, 4, 12), math.nan, dtype=dtype)
    x[:, :, :, 4:8] = -math.inf
    x[:, :, 1, 8] = -1
    x[:, :, 2, 9] = math.inf
    x = leaf(x.contiguous(memory_format=memory_format(channels_last)).to(backend.device))
    rois = torch.tensor([[0, 0, 0, 11, 3.0]], device=backend.device)
    pooled = ops.roi_pool(x, rois, (1, 3), backend=backend.name)
    lowest = torch.tensor(LOWEST).to(dtype).item()
    assert lowest == (LOWEST if dtype.itemsize > 2 else -math.inf)
    assert pooled[0, :, 0].tolist() == [[lowest, lowest, math.inf]] * 20
    pooled.backward(torch.full_like(pooled, 3))
    expected = torch.zeros_like(x)
    expected[:, :, 2, 9] = 3
    assert torch.equal(x.grad, expected)


@HAS_KERNEL
@pytest.mark.parametrize(
    ("shape", "count", "bins"),
    [
        ((2, 3, 4, 5), 0, (2, 2)),
        ((0, 3, 4, 5), 0, (2, 2)),
        ((2, 0, 4, 5), 3, (2, 2)),
        ((2, 3, 4, 5), 3, (0, 2)),
        ((2, 3, 4, 5), 3, (2, 0)),
        ((2, 3, 0, 5), 3, (2, 2)),
        ((2, 3, 4, 0), 3, (2, 2)),
    ],
)
def test_empty(backend, shape, count, bins):
    x = leaf(torch.ones(shape, device=backend.device))
    rois = torch.tensor([[0, 0, 0, 3.0, 3]], device=backend.device).repeat(count, 1)
    pooled = ops.roi_pool(x, rois, bins, backend=backend.name)
    assert pooled.shape == (count, shape[1], *bins) and pooled.eq(0).all()
    pooled.sum().backward()
    assert x.grad.shape == shape and x.grad.eq(0).all()


@HAS_KERNEL
def test_strided_input_and_gradient(backend):
    x = cases.feature_map(4, 6, 10, 12).to(backend.device)
    rois = cases.small_rois(6, 2, 5, 12, 1.0).to(backend.device)
    view = leaf(x[::2, 1::2, ::2])
    wide = torch.zeros(6, 10, device=backend.device)
    wide[:, ::2] = rois
    actual = ops.roi_pool(view, wide[:, ::2], 3, backend=backend.name)
    dense = leaf(view.contiguous())
    expected = ops.roi_pool(dense, rois, 3, backend=backend.name)
    assert torch.equal(actual, expected)
    grad = cases.feature_map(*actual.shape).to(x)
    (strided,) = torch.autograd.grad(actual, view, grad.mT.contiguous().mT)
    assert torch.equal(strided, torch.autograd.grad(expected, dense, grad)[0])


@HAS_KERNEL
@pytest.mark.parametrize("rois_dtype", [torch.float16, torch.float64])
def test_boxes_of_another_dtype(backend, rois_dtype):
    x = cases.feature_map(1, 4, 9, 9).to(backend.device)
    rois = torch.tensor([[0, 1.5, 2, 6, 7]], device=backend.device)
    expected = ops.roi_pool(x, rois, 2, backend=backend.name)
    assert torch.equal(ops.roi_pool(x, rois.to(rois_dtype), 2, backend=backend.name), expected)


@HAS_KERNEL
@LAYOUTS
def test_second_and_forward_derivatives(backend, channels_last):
    x = cases.feature_map(1, 2, 5, 6, dtype=torch.float64, channels_last=channels_last)
    x = leaf(x.to(backend.device))
    rois = torch.tensor([[0, 0.5, 1, 4, 3.5], [0, 2, 2, 9, 9]], dtype=torch.float64)
    rois = rois.to(backend.device)

    def pool(x):
        return ops.roi_pool(x, rois, 2, backend=backend.name)

    assert torch.autograd.gradcheck(pool, x, check_forward_ad=True)
    assert torch.autograd.gradgradcheck(lambda x: pool(x).pow(3), x)


@HAS_KERNEL
def test_boxes_get_no_gradient(backend):
    rois = leaf(torch.tensor([[0, 0.5, 1, 4, 3.5]], device=backend.device))
    x = leaf(torch.ones(1, 2, 5, 5, device=backend.device))
    ops.roi_pool(x, rois, 2, backend=backend.name).sum().backward()
    assert x.grad is not None and (rois.grad is None or rois.grad.eq(0).all())


@LAYOUTS
def test_deterministic(cpu_level, channels_last):
    """Bit for bit the same for any number of threads."""
    x = leaf(cases.feature_map(2, 70, 50, 60, channels_last=channels_last))
    rois = cases.small_rois(200, 2, 50, 60, 0.5)

    def run():
        pooled = ops.roi_pool(x, rois, 7, 0.5, backend="cpp")
        return pooled, *torch.autograd.grad(pooled.sin().sum(), x)

    same_for_threads(run)


@LAYOUTS
def test_tiles_of_the_backward(cpu_level, channels_last):
    """A map whose gradient is made in several pieces, of rows and of channels."""
    x = features_with_ties(1, 40, 150, 500, channels_last=channels_last)
    rois = cases.small_rois(60, 1, 150, 500, 1.0)
    x, exact = leaf(x), leaf(x.double())
    pooled = ops.roi_pool(x, rois, 7, backend="cpp")
    grad = cases.feature_map(*pooled.shape)
    pooled.backward(grad)
    argmax = torch.ops.fastvision.roi_pool(x, rois, 1.0, 7, 7, True)[1]
    reference.pixels_at(exact, rois, argmax).backward(grad.double())
    assert_matches(x.grad, exact.grad, scale=8)


@LAYOUTS
@HAS_KERNEL
@pytest.mark.only(lambda backend: backend.name != "reference")  # which has no op of its own
@pytest.mark.parametrize("with_argmax", [False, True])
def test_opcheck(backend, channels_last, with_argmax):
    x = cases.feature_map(2, 5, 8, 9, channels_last=channels_last).to(backend.device)
    rois = cases.small_rois(4, 2, 8, 9, 0.5).to(backend.device)
    forward = torch.ops.fastvision.roi_pool.default
    torch.library.opcheck(forward, (x, rois, 0.5, 3, 2, with_argmax))
    if with_argmax:
        pooled, argmax = forward(x, rois, 0.5, 3, 2, True)
        backward = torch.ops.fastvision.roi_pool_backward.default
        torch.library.opcheck(backward, (pooled, rois, argmax, 0.5, [2, 8, 9], channels_last))


@pytest.mark.parametrize("compiler", ["eager", "aot_eager", "inductor"])
def test_compile(cpu_level, compiler):
    assert_compiles(lambda x, boxes: ops.roi_pool(x, boxes, (3, 4), 0.5), compiler)


def test_func_grad(cpu_level):
    x, rois = cases.feature_map(1, 3, 6, 7), torch.tensor([[0, 1.0, 1, 5, 4]])

    def loss(x):
        return ops.roi_pool(x, rois, 2).square().sum()

    y = leaf(x)
    assert_matches(torch.func.grad(loss)(x), torch.autograd.grad(loss(y), y)[0])


@LAYOUTS
def test_more_than_2_31_elements(cpu_level, channels_last):
    """Pages that nobody touches cost nothing, so the map is only as large as its addresses."""
    size, channels = 16500, 8
    assert channels * size * size > 2**31
    if channels_last:
        x = torch.zeros(1, size, size, channels, dtype=torch.bfloat16).permute(0, 3, 1, 2)
    else:
        x = torch.zeros(1, channels, size, size, dtype=torch.bfloat16)
    x[:, :, -1, -2] = torch.arange(1.0, channels + 1)
    rois = torch.tensor([[0, size - 3.0, size - 3, size - 1, size - 1]])
    pooled, argmax = torch.ops.fastvision.roi_pool(x, rois, 1.0, 1, 1, True)
    assert torch.equal(pooled.flatten(), torch.arange(1.0, channels + 1, dtype=torch.bfloat16))
    assert argmax.eq(size * size - 2).all()


def test_more_pixels_than_positions(cpu_level):
    x = torch.zeros(1, 1, 50000, 50000, dtype=torch.bfloat16)
    rois = torch.tensor([[0, 49990.0, 49990, 49999, 49999]])
    assert ops.roi_pool(x, rois, 2, backend="cpp").eq(0).all()
    with pytest.raises(RuntimeError, match="int32.* 50000 x 50000"):
        ops.roi_pool(leaf(x), rois, 2, backend="cpp")


def test_bad_arguments():
    x, rois = torch.ones(1, 2, 4, 4), torch.zeros(1, 5)
    for call, error, text in [
        (lambda: ops.roi_pool(x[0], rois, 2), ValueError, r"input.*\[2, 4, 4\]"),
        (lambda: ops.roi_pool(x.int(), rois, 2), TypeError, "input.*int32"),
        (lambda: ops.roi_pool(None, rois, 2), TypeError, "input.*NoneType"),
        (lambda: ops.roi_pool(x.to_sparse(), rois, 2), NotImplementedError, "input.*sparse"),
        (lambda: ops.roi_pool(x, rois[:, 1:], 2), AssertionError, r"boxes.*\[1, 4\]"),
        (lambda: ops.roi_pool(x, [rois], 2), AssertionError, r"boxes\[0\].*\[1, 5\]"),
        (lambda: ops.roi_pool(x, [rois[:, 1:]] * 2, 2), ValueError, "boxes.*1 at most, got 2"),
        (lambda: ops.roi_pool(x, 3, 2), AssertionError, "boxes.*int"),
        (lambda: ops.roi_pool(x, rois.int(), 2), TypeError, "boxes.*int32"),
        (lambda: ops.roi_pool(x, rois, (2, 2, 2)), ValueError, "output_size"),
        (lambda: ops.roi_pool(x, rois, 2.5), TypeError, "output_size.*2.5"),
        (lambda: ops.roi_pool(x, rois, -1), ValueError, "output_size.*-1"),
        (lambda: ops.roi_pool(x, rois, 2, math.inf), ValueError, "spatial_scale.*inf"),
        (lambda: ops.roi_pool(x, rois, 2, "1"), TypeError, "spatial_scale.*'1'"),
        (lambda: ops.roi_pool(x, rois, 2, backend="gpu"), ValueError, "gpu.*expected"),
        (lambda: ops.roi_pool(x, rois, 2, backend="cuda"), ValueError, "cuda.*CUDA tensors"),
    ]:
        with pytest.raises(error, match=text):
            call()


def test_raw_op_refuses_what_is_unsafe(cpu_level):
    x, rois = torch.ones(1, 2, 4, 4), torch.zeros(1, 5)
    forward = torch.ops.fastvision.roi_pool
    for features, boxes, bins in [
        (x[0], rois, 2),
        (x, rois[0], 2),
        (x, rois.double(), 2),
        (x.int(), rois, 2),
        (x, rois, -2),
    ]:
        with pytest.raises(RuntimeError):
            forward(features, boxes, 1.0, bins, 2, True)
    backward = torch.ops.fastvision.roi_pool_backward
    grad, argmax = torch.ones(1, 2, 2, 2), torch.zeros(1, 2, 2, 2, dtype=torch.int32)
    for pooled_grad, positions, sizes in [
        (grad[0], argmax[0], [1, 4, 4]),
        (grad, argmax, [1, 4]),
        (grad, argmax, [1, -4, 4]),
        (grad, argmax.long(), [1, 4, 4]),
        (grad, argmax[:, :1], [1, 4, 4]),
        (grad[:0], argmax[:0], [1, 4, 4]),
    ]:
        with pytest.raises(RuntimeError):
            backward(pooled_grad, rois, positions, 1.0, sizes, False)
    for position in (-(2**31), -7, 16, 2**31 - 1):  # of no pixel
        outside = torch.full_like(argmax, position)
        assert backward(grad, rois, outside, 1.0, [1, 4, 4], False).eq(0).all()


def test_meta_tensors():
    x, rois = torch.empty(2, 3, 8, 9, device="meta"), torch.empty(4, 5, device="meta")
    assert ops.roi_pool(x, rois, (2, 1)).shape == (4, 3, 2, 1)
