"""What PSRoIAlign and PSRoIPool have in common, of every backend."""

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
BOTH = pytest.mark.parametrize("name", ["ps_roi_align", "ps_roi_pool"])


def pool(name, x, rois, bins, scale=1.0, **options):
    return getattr(ops, name)(x, rois, bins, scale, **options)


def reference_of(name, x, rois, bins, scale):
    options = (-1,) if name == "ps_roi_align" else ()
    return getattr(reference, name)(x, rois, scale, *bins, *options)


# channels below, at and above the width of a vector; planes that are copied and planes that are not
@BOTH
@HAS_KERNEL
@LAYOUTS
@pytest.mark.parametrize("dtype", DTYPES, ids=dtype_id)
@pytest.mark.parametrize(
    ("channels", "bins", "size", "count"),
    [
        (1, (1, 1), (13, 21), 40),
        (5, (2, 4), (13, 21), 40),
        (16, (2, 1), (60, 50), 7),
        (35, (1, 2), (13, 2), 40),
        (2, (4, 16), (9, 9), 7),
    ],
)
def test_forward_and_backward(backend, name, channels_last, dtype, channels, bins, size, count):
    C = channels * bins[0] * bins[1]
    x = cases.feature_map(2, C, *size, dtype=dtype, channels_last=channels_last)
    x = leaf(x.to(backend.device))
    rois = cases.small_rois(count, 2, *size, 0.25).to(backend.device)
    pooled = pool(name, x, rois, bins, 0.25, backend=backend.name)
    assert pooled.dtype == dtype and pooled.shape == (count, channels, *bins)
    assert pooled.is_contiguous(memory_format=memory_format(channels_last))
    grad = torch.randn(pooled.shape, generator=cases.generator(6)).to(pooled)
    pooled.backward(grad)

    exact = leaf(x.double())
    expected = reference_of(name, exact, rois.double(), bins, 0.25)
    expected.backward(grad.double())
    assert_matches(pooled, expected)
    assert x.grad.is_contiguous(memory_format=memory_format(channels_last))
    assert_matches(x.grad, exact.grad, scale=8)


@BOTH
@HAS_KERNEL
@LAYOUTS
def test_other_bins_do_not_matter(backend, name, channels_last):
    """A NaN in the channels of one bin stays there, and outside of the boxes nobody sees it."""
    x = cases.feature_map(1, 12, 8, 9, channels_last=channels_last)
    x[:, 1::6] = math.nan  # bin (0, 1)
    x[:, :, 7] = math.inf
    rois = torch.tensor([[0, 1.0, 1, 6, 5]])
    x, rois = x.to(backend.device), rois.to(backend.device)
    pooled = pool(name, x, rois, (2, 3), backend=backend.name)
    assert pooled[:, :, 0, 1].isnan().all()
    assert pooled.isfinite().sum() == 2 * 5


@BOTH
@HAS_KERNEL
def test_boxes_as_a_list(backend, name):
    x = cases.feature_map(2, 18, 8, 9).to(backend.device)
    rois = cases.small_rois(5, 2, 8, 9, 1.0).to(backend.device)
    rois = rois[rois[:, 0].argsort()]
    listed = [rois[rois[:, 0] == image, 1:] for image in range(2)]
    expected = pool(name, x, rois, 3, backend=backend.name)
    assert torch.equal(pool(name, x, listed, 3, backend=backend.name), expected)
    assert torch.equal(pool(name, x, tuple(listed), (3,), backend=backend.name), expected)


@BOTH
@HAS_KERNEL
@LAYOUTS
def test_indices_of_images(backend, name, channels_last):
    x = cases.feature_map(2, 8, 6, 7, channels_last=channels_last).to(backend.device)
    good = [0, 1.0, 1, 5, 5]
    for index in (-1.0, -0.5, 2.0, 1e30, math.nan):
        rois = torch.tensor([good, [index, 1, 1, 5, 5]], device=backend.device)
        if backend.device == "cpu":
            with pytest.raises(RuntimeError, match="batch index"):
                pool(name, x, rois, 2, backend=backend.name)
        else:
            assert pool(name, x, rois, 2, backend=backend.name)[1].eq(0).all()


@BOTH
@HAS_KERNEL
@LAYOUTS
@pytest.mark.parametrize(
    ("shape", "count"),
    [((2, 12, 4, 5), 0), ((0, 12, 4, 5), 0), ((2, 0, 4, 5), 3), ((2, 12, 0, 5), 3),
     ((2, 12, 4, 0), 3), ((2, 12, 1, 1), 3)],
)  # fmt: skip
def test_empty(backend, name, channels_last, shape, count):
    x = torch.ones(shape, device=backend.device)
    x = leaf(x.contiguous(memory_format=memory_format(channels_last)))
    rois = torch.tensor([[0, 7, 7, 9.0, 9]], device=backend.device).repeat(count, 1)
    pooled = pool(name, x, rois, (2, 3), backend=backend.name)
    assert pooled.shape == (count, shape[1] // 6, 2, 3) and pooled.eq(0).all()
    pooled.sum().backward()
    assert x.grad.shape == shape and x.grad.eq(0).all()


@BOTH
@HAS_KERNEL
def test_strided_input_and_gradient(backend, name):
    x = cases.feature_map(4, 8, 10, 12).to(backend.device)
    rois = cases.small_rois(6, 2, 5, 12, 1.0).to(backend.device)
    view = leaf(x[::2, ::2, ::2])
    wide = torch.zeros(6, 10, device=backend.device)
    wide[:, ::2] = rois
    actual = pool(name, view, wide[:, ::2], 2, backend=backend.name)
    dense = leaf(view.contiguous())
    expected = pool(name, dense, rois, 2, backend=backend.name)
    assert torch.equal(actual, expected)
    grad = cases.feature_map(*actual.shape).to(x)
    (strided,) = torch.autograd.grad(actual, view, grad.mT.contiguous().mT)
    assert torch.equal(strided, torch.autograd.grad(expected, dense, grad)[0])


@BOTH
@HAS_KERNEL
@LAYOUTS
def test_second_and_forward_derivatives(backend, name, channels_last):
    x = cases.feature_map(1, 4, 5, 6, dtype=torch.float64, channels_last=channels_last)
    x = leaf(x.to(backend.device))
    rois = torch.tensor([[0, 0.5, 1, 4, 3.5], [0, 2, 2, 9, 9]], dtype=torch.float64)
    rois = rois.to(backend.device)

    def call(x):
        return pool(name, x, rois, 2, backend=backend.name)

    assert torch.autograd.gradcheck(call, x, check_forward_ad=True)
    assert torch.autograd.gradgradcheck(lambda x: call(x).pow(3), x)


@BOTH
@LAYOUTS
def test_deterministic(cpu_level, name, channels_last):
    """Bit for bit the same for any number of threads."""
    x = leaf(cases.feature_map(2, 20 * 9, 50, 60, channels_last=channels_last))
    rois = cases.small_rois(200, 2, 50, 60, 0.5)

    def run():
        pooled = pool(name, x, rois, 3, 0.5, backend="cpp")
        return pooled, *torch.autograd.grad(pooled.sin().sum(), x)

    same_for_threads(run)


@BOTH
@LAYOUTS
def test_tiles_of_the_backward(cpu_level, name, channels_last):
    """A map whose gradient is made in several pieces of rows and columns."""
    x = leaf(cases.feature_map(1, 4, 400, 300, channels_last=channels_last))
    rois = cases.small_rois(40, 1, 400, 300, 1.0)
    pooled = pool(name, x, rois, 2, backend="cpp")
    grad = cases.feature_map(*pooled.shape)
    pooled.backward(grad)
    exact = leaf(x.double())
    reference_of(name, exact, rois.double(), (2, 2), 1.0).backward(grad.double())
    assert_matches(x.grad, exact.grad, scale=8)


@BOTH
@LAYOUTS
@HAS_KERNEL
@pytest.mark.only(lambda backend: backend.name != "reference")  # which has no op of its own
def test_opcheck(backend, name, channels_last):
    x = cases.feature_map(2, 12, 8, 9, channels_last=channels_last).to(backend.device)
    rois = cases.small_rois(4, 2, 8, 9, 0.5).to(backend.device)
    options = (2,) if name == "ps_roi_align" else ()
    forward = getattr(torch.ops.fastvision, name).default
    torch.library.opcheck(forward, (x, rois, 0.5, 3, 2, *options))
    backward = getattr(torch.ops.fastvision, f"{name}_backward").default
    grad = forward(x, rois, 0.5, 3, 2, *options)
    torch.library.opcheck(backward, (grad, rois, 0.5, [2, 8, 9], *options, channels_last))


@BOTH
@pytest.mark.parametrize("compiler", ["eager", "aot_eager", "inductor"])
def test_compile(cpu_level, name, compiler):
    assert_compiles(lambda x, boxes: pool(name, x, boxes, (3, 4), 0.5), compiler, channels=24)


@BOTH
def test_func_grad(cpu_level, name):
    x, rois = cases.feature_map(1, 8, 6, 7), torch.tensor([[0, 1.0, 1, 5, 4]])

    def loss(x):
        return pool(name, x, rois, 2).square().sum()

    y = leaf(x)
    assert_matches(torch.func.grad(loss)(x), torch.autograd.grad(loss(y), y)[0])


@BOTH
@LAYOUTS
def test_more_than_2_31_elements(cpu_level, name, channels_last):
    """Pages that nobody touches cost nothing, so the map is only as large as its addresses."""
    size, channels = 16500, 8
    assert channels * size * size > 2**31
    if channels_last:
        x = torch.zeros(1, size, size, channels, dtype=torch.bfloat16).permute(0, 3, 1, 2)
    else:
        x = torch.zeros(1, channels, size, size, dtype=torch.bfloat16)
    x[:, :, -2, -2] = torch.arange(1.0, channels + 1)
    if name == "ps_roi_align":  # one sample, at the pixel
        rois = torch.tensor([[0, size - 2.0, size - 2, size - 1, size - 1]])
    else:
        rois = torch.tensor([[0, size - 2.0, size - 2, size - 2, size - 2]])
    pooled = pool(name, x, rois, (4, 1))
    sums = x[0, :, -2, -2].view(2, 4)
    if name == "ps_roi_align":
        assert torch.isfinite(pooled).all() and pooled[0].sum() > 0
    else:
        assert torch.equal(pooled.flatten(1).view(2, 4), sums)


@BOTH
def test_bad_arguments(name):
    x, rois = torch.ones(1, 8, 4, 4), torch.zeros(1, 5)
    for call, error, text in [
        (lambda: pool(name, x[0], rois, 2), ValueError, r"input.*\[8, 4, 4\]"),
        (lambda: pool(name, x.int(), rois, 2), TypeError, "input.*int32"),
        (lambda: pool(name, None, rois, 2), TypeError, "input.*NoneType"),
        (lambda: pool(name, x.to_sparse(), rois, 2), NotImplementedError, "input.*sparse"),
        (lambda: pool(name, x, rois[:, 1:], 2), AssertionError, r"boxes.*\[1, 4\]"),
        (lambda: pool(name, x, [rois], 2), AssertionError, r"boxes\[0\].*\[1, 5\]"),
        (lambda: pool(name, x, 3, 2), AssertionError, "boxes.*int"),
        (lambda: pool(name, x, rois.int(), 2), TypeError, "boxes.*int32"),
        (lambda: pool(name, x, rois, 3), ValueError, "input.*3 x 3 channels, got 8"),
        (lambda: pool(name, x, rois, (2, 2, 2)), ValueError, "output_size"),
        (lambda: pool(name, x, rois, 2.5), TypeError, "output_size.*2.5"),
        (lambda: pool(name, x, rois, -1), ValueError, "output_size.*-1"),
        (lambda: pool(name, x, rois, (0, 2)), ValueError, r"output_size.*\(0, 2\)"),
        (lambda: pool(name, x, rois, 2, math.inf), ValueError, "spatial_scale.*inf"),
        (lambda: pool(name, x, rois, 2, "1"), TypeError, "spatial_scale.*'1'"),
        (lambda: pool(name, x, rois, 2, backend="gpu"), ValueError, "gpu.*expected"),
        (lambda: pool(name, x, rois, 2, backend="cuda"), ValueError, "cuda.*CUDA tensors"),
        (
            lambda: pool(name, x, rois, 2, backend="triton"),
            ValueError,
            f"{name} has no Triton|not installed",
        ),
    ]:
        with pytest.raises(error, match=text):
            call()


@BOTH
def test_raw_op_refuses_what_is_unsafe(cpu_level, name):
    x, rois = torch.ones(1, 8, 4, 4), torch.zeros(1, 5)
    options = (2,) if name == "ps_roi_align" else ()
    forward = getattr(torch.ops.fastvision, name)
    for features, boxes, bins in [
        (x[0], rois, 2),
        (x, rois[0], 2),
        (x, rois.double(), 2),
        (x.int(), rois, 2),
        (x, rois, -2),
        (x, rois, 0),
        (x, rois, 3),
        (x[:, :0], rois, 1 << 40),
    ]:
        with pytest.raises(RuntimeError):
            forward(features, boxes, 1.0, bins, bins, *options)
    backward = getattr(torch.ops.fastvision, f"{name}_backward")
    grad = torch.ones(1, 2, 2, 2)
    for pooled_grad, sizes in [
        (grad[0], [1, 4, 4]),
        (grad, [1, 4]),
        (grad, [1, -4, 4]),
        (grad[:0], [1, 4, 4]),
    ]:
        with pytest.raises(RuntimeError):
            backward(pooled_grad, rois, 1.0, sizes, *options, False)


@BOTH
def test_meta_tensors(name):
    x, rois = torch.empty(2, 8, 8, 9, device="meta"), torch.empty(4, 5, device="meta")
    assert pool(name, x, rois, (2, 1)).shape == (4, 4, 2, 1)
