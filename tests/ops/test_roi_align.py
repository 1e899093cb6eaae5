"""RoIAlign of one map and of a pyramid: every backend against the reference in float64."""

from __future__ import annotations

import math
import subprocess
import sys

import pytest
import torch

from fastvision import ops, reference
from fastvision._memory_format import memory_format
from fastvision.testing import cases
from fastvision.testing.marks import LAYOUTS
from fastvision.testing.numerics import DTYPES, assert_matches
from fastvision.testing.roi_align import EMPTY
from fastvision.testing.tensors import dtype_id, leaf

pytestmark = pytest.mark.usefixtures("poisoned_memory")


# the sizes: channels below, at and above the width of a vector and of a block of vectors
@LAYOUTS
@pytest.mark.parametrize("dtype", DTYPES, ids=dtype_id)
@pytest.mark.parametrize(
    ("channels", "bins", "sampling_ratio", "aligned"),
    [(1, (1, 1), 1, False), (5, (7, 7), 2, True), (37, (3, 2), 0, True), (150, (2, 9), 3, False)],
)
# Triton's interpreter is slow: the tests of the kernels have the others
@pytest.mark.only(
    lambda backend, channels, dtype: (
        not backend.interpreted or (channels < 150 and dtype in (torch.float32, torch.bfloat16))
    )
)
def test_forward_and_backward(
    backend, channels_last, dtype, channels, bins, sampling_ratio, aligned
):
    count = 4 if backend.interpreted else 40
    x = cases.feature_map(2, channels, 13, 21, dtype=dtype, channels_last=channels_last)
    x = leaf(x.to(backend.device))
    rois = cases.small_rois(count, 2, 13, 21, 0.25).to(backend.device)
    args = (bins, 0.25, sampling_ratio, aligned)
    pooled = ops.roi_align(x, rois, *args, backend=backend.name)
    assert pooled.dtype == dtype
    format = memory_format(channels_last)
    assert pooled.is_contiguous(memory_format=format)
    grad = torch.randn(pooled.shape, generator=cases.generator(6)).to(pooled)
    pooled.backward(grad)

    exact = leaf(x.double())
    # the boxes keep their values: only the rounding of sample positions differs
    expected = reference.roi_align(exact, rois.double(), 0.25, *bins, sampling_ratio, aligned)
    expected.backward(grad.double())
    assert_matches(pooled, expected, scale=2)
    assert x.grad.is_contiguous(memory_format=format)
    assert_matches(x.grad, exact.grad, scale=4)


def test_hand_checked(backend):
    """f(y, x) = x + 10 y is linear, so a bin's average is its value at the bin's centre."""
    ramp = torch.arange(6.0) + 10 * torch.arange(5.0)[:, None]
    x = ramp[None, None].to(backend.device)
    rois = torch.tensor([[0, 1.0, 1, 3, 3]])
    rois = rois.to(backend.device)
    for sampling_ratio in (1, 2, 0):
        shifted = ops.roi_align(x, rois, 2, 1.0, sampling_ratio, True, backend=backend.name)
        assert_matches(shifted[0, 0].cpu(), torch.tensor([[11.0, 12.0], [21.0, 22.0]]))
        legacy = ops.roi_align(x, rois, 2, 1.0, sampling_ratio, False, backend=backend.name)
        assert_matches(legacy[0, 0].cpu(), torch.tensor([[16.5, 17.5], [26.5, 27.5]]))
    # samples at -1 <= y < 0 read row 0, samples further out count as nothing
    outside = torch.tensor([[0, -1.0, -4, 1, 0]], device=backend.device)
    pooled = ops.roi_align(x + 1, outside, (4, 1), 1.0, 1, backend=backend.name)
    assert_matches(pooled[0, 0].cpu(), torch.tensor([[0.0], [0.0], [0.0], [1.0]]))


@pytest.mark.parametrize("aligned", [False, True])
@pytest.mark.parametrize("sampling_ratio", [-1, 0, 1, 2, 5])
# Triton's interpreter is slow, and is compared with the reference
@pytest.mark.only(lambda backend: not backend.interpreted)
def test_agrees_with_torchvision(backend, torchvision, sampling_ratio, aligned):
    x = leaf(cases.feature_map(3, 18, 25, 19).to(backend.device))
    rois = cases.small_rois(120, 3, 25, 19, 0.5).to(backend.device)
    rois[::10, 3:] = rois[::10, 1:3] - 3  # reversed corners
    args = (rois, (5, 6), 0.5, sampling_ratio, aligned)
    ours = ops.roi_align(x, *args, backend=backend.name)
    theirs = torchvision.ops.roi_align(x, *args)
    assert_matches(ours, theirs)
    (grad,) = torch.autograd.grad(ours.square().sum(), x)
    (expected,) = torch.autograd.grad(theirs.square().sum(), x)
    assert_matches(grad, expected, scale=10)


def test_boxes_as_a_list(backend):
    x = cases.feature_map(2, 3, 8, 9).to(backend.device)
    rois = cases.small_rois(5, 2, 8, 9, 1.0).to(backend.device)
    rois = rois[rois[:, 0].argsort()]
    listed = [rois[rois[:, 0] == image, 1:] for image in range(2)]
    args = (3, 1.0, 2, True)
    expected = ops.roi_align(x, rois, *args, backend=backend.name)
    assert torch.equal(ops.roi_align(x, listed, *args, backend=backend.name), expected)
    module = ops.RoIAlign(*args)
    assert_matches(module(x, listed), expected)
    assert "sampling_ratio=2" in repr(module)


@LAYOUTS
def test_bad_rois(backend, channels_last):
    """The table of the docstring: zeros for what has no answer, an error where it can be known."""
    x = leaf(cases.feature_map(2, 9, 6, 7, channels_last=channels_last).to(backend.device))
    good = [0, 1.0, 1, 5, 5]
    nan, inf = math.nan, math.inf
    harmless = [[1, nan, 1, 5, 5], [1, 1, -inf, 5, inf], [0, 1, 1, inf, 5], [0, 500, 500, 600, 600]]
    harmless.append([0, -3e38, 0, 3e38, 5])  # its width is infinite
    rois = torch.tensor([good, *harmless, good], device=backend.device)
    pooled = ops.roi_align(x, rois, 2, 1.0, 2, backend=backend.name)
    assert torch.equal(pooled[0], pooled[-1]) and pooled[0].ne(0).any()
    assert pooled[1:-1].eq(0).all()
    pooled.sum().backward()
    assert x.grad.isfinite().all() and x.grad[1].eq(0).all()

    for index in (-1.0, -0.5, 2.0, 1e30, nan):
        rois = torch.tensor([good, [index, 1, 1, 5, 5]], device=backend.device)
        if backend.device == "cpu" and backend.name != "triton":
            with pytest.raises(RuntimeError, match="batch index"):
                ops.roi_align(x, rois, 2, backend=backend.name)
        else:
            assert ops.roi_align(x, rois, 2, backend=backend.name)[1].eq(0).all()
    huge = torch.tensor([good, [0, 0, 0, 1e9, 1e9]], device=backend.device)
    if backend.device == "cpu" and backend.name != "triton":
        with pytest.raises(RuntimeError, match=r"2\*\*20 samples per bin and axis; pass a smaller"):
            ops.roi_align(x, huge, 2, backend=backend.name)
    else:
        assert ops.roi_align(x, huge, 2, backend=backend.name)[1].eq(0).all()


@pytest.mark.parametrize(("shape", "count", "bins"), EMPTY)
def test_empty(backend, shape, count, bins):
    x = leaf(torch.ones(shape, device=backend.device))
    rois = torch.tensor([[0, 0, 0, 3.0, 3]], device=backend.device).repeat(count, 1)
    pooled = ops.roi_align(x, rois, bins, backend=backend.name)
    assert pooled.shape == (count, shape[1], *bins) and pooled.eq(0).all()
    pooled.sum().backward()
    assert x.grad.shape == shape and x.grad.eq(0).all()


def test_strided_input(backend):
    x = cases.feature_map(4, 6, 10, 12).to(backend.device)
    rois = cases.small_rois(6, 2, 5, 12, 1.0).to(backend.device)
    view = x[::2, 1::2, ::2]
    wide = torch.zeros(6, 10, device=backend.device)
    wide[:, ::2] = rois
    actual = ops.roi_align(view, wide[:, ::2], 3, backend=backend.name)
    assert torch.equal(actual, ops.roi_align(view.contiguous(), rois, 3, backend=backend.name))


@pytest.mark.parametrize("rois_dtype", [torch.float16, torch.float64])
def test_boxes_of_another_dtype(backend, rois_dtype):
    x = cases.feature_map(1, 4, 9, 9).to(backend.device)
    rois = torch.tensor([[0, 1.5, 2, 6, 7]], device=backend.device)
    expected = ops.roi_align(x, rois, 2, backend=backend.name)
    assert torch.equal(ops.roi_align(x, rois.to(rois_dtype), 2, backend=backend.name), expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=dtype_id)
@LAYOUTS
def test_multiscale(backend, channels_last, dtype):
    channels, size = (3, 64) if backend.interpreted else (33, 256)
    maps, scales = cases.pyramid(
        2, channels, height=size, width=size, levels=3, dtype=dtype, channels_last=channels_last
    )
    maps = [leaf(m.to(backend.device)) for m in maps]
    count = 4 if backend.interpreted else 60
    rois = cases.rois(count, 2, height=size, width=size, min_size=4, max_size=size)
    rois[1, 3:] = rois[1, 1:3]  # no area: finest level
    rois[2, 3] = rois[2, 1] - 9  # negative area: no level at all
    rois[3, 1:] = torch.tensor([0, 0, size, size])  # canonical size: coarsest level
    rois = rois.to(backend.device)
    args = (2, scales, 2)
    rule = {"canonical_scale": size, "canonical_level": 4}
    pooled = ops.multiscale_roi_align(maps, rois, *args, **rule, backend=backend.name)
    exact = [leaf(m.double()) for m in maps]
    expected = reference.multiscale_roi_align(
        exact, rois.double(), scales, 2, 2, 2, False, float(size), 4.0, 2
    )
    assert set(reference.assign_levels(rois, 3, size, 4, 2).tolist()) >= {-1, 0, 2}
    assert pooled[2].eq(0).all()
    assert_matches(pooled, expected, scale=2)
    grad = torch.randn(pooled.shape, generator=cases.generator(7)).to(pooled)
    pooled.backward(grad)
    expected.backward(grad.double())
    for ours, theirs in zip(maps, exact, strict=True):
        assert_matches(ours.grad, theirs.grad, scale=4)


def test_multiscale_module_agrees_with_torchvision(torchvision):
    maps, _ = cases.pyramid(2, 8, height=256, width=320)
    features = dict(zip("abcd", maps, strict=True))
    rois = cases.rois(200, 2, height=256, width=320, min_size=1, max_size=250)
    boxes = [rois[rois[:, 0] == image, 1:] for image in range(2)]
    sizes = [(250, 320), (256, 300)]
    args = (["a", "b", "c", "d"], (5, 7), 2)
    expected = torchvision.ops.MultiScaleRoIAlign(*args)(features, boxes, sizes)
    ours = ops.MultiScaleRoIAlign(*args)
    assert_matches(ours(features, boxes, sizes), expected)
    # only named maps count, and the scales follow the input
    assert_matches(
        ops.MultiScaleRoIAlign(["b"], 7, 2)(features, boxes, sizes),
        torchvision.ops.MultiScaleRoIAlign(["b"], 7, 2)(features, boxes, sizes),
    )
    double = {name: nn_upsample(feature) for name, feature in features.items()}
    expected = torchvision.ops.MultiScaleRoIAlign(*args)(double, boxes, sizes)
    assert_matches(ours(double, boxes, sizes), expected)


def nn_upsample(x: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.interpolate(x, scale_factor=2)


@LAYOUTS
def test_more_than_2_31_elements(cpu_level, channels_last):
    """Pages that nobody touches cost nothing, so the map is only as large as its addresses."""
    size, channels = 16500, 8
    assert channels * size * size > 2**31
    if channels_last:
        x = torch.zeros(1, size, size, channels, dtype=torch.bfloat16).permute(0, 3, 1, 2)
    else:
        x = torch.zeros(1, channels, size, size, dtype=torch.bfloat16)
    x[:, :, -2:, -2:] = torch.arange(1.0, channels + 1)[:, None, None]
    rois = torch.tensor([[0, size - 2.0, size - 2, size - 1, size - 1]])
    pooled = ops.roi_align(x, rois, 1, 1.0, 1, backend="cpp")
    assert torch.equal(pooled.flatten(), torch.arange(1.0, channels + 1, dtype=torch.bfloat16))


def test_bad_arguments():
    x, rois = torch.ones(1, 2, 4, 4), torch.zeros(1, 5)
    for call, error, text in [
        (lambda: ops.roi_align(x[0], rois, 2), ValueError, r"input.*\[2, 4, 4\]"),
        (lambda: ops.roi_align(x.int(), rois, 2), TypeError, "input.*int32"),
        (lambda: ops.roi_align(None, rois, 2), TypeError, "input.*NoneType"),
        (lambda: ops.roi_align(x, rois[:, 1:], 2), AssertionError, r"boxes.*\[1, 4\]"),
        (lambda: ops.roi_align(x, [rois], 2), AssertionError, r"boxes\[0\].*\[1, 5\]"),
        (lambda: ops.roi_align(x, [rois[:, 1:]] * 2, 2), ValueError, "boxes.*1 at most, got 2"),
        (lambda: ops.roi_align(x, 3, 2), AssertionError, "boxes.*int"),
        (lambda: ops.roi_align(x, rois.int(), 2), TypeError, "boxes.*int32"),
        (lambda: ops.roi_align(x, rois, (2, 2, 2)), ValueError, "output_size"),
        (lambda: ops.roi_align(x, rois, 2.5), TypeError, "output_size.*2.5"),
        (lambda: ops.roi_align(x, rois, -1), ValueError, "output_size.*-1"),
        (lambda: ops.roi_align(x, rois, 2, backend="gpu"), ValueError, "gpu.*expected"),
        (lambda: ops.roi_align(x, rois, 2, backend="cuda"), ValueError, "cuda.*CUDA tensors"),
        (lambda: ops.multiscale_roi_align([], rois, 2, []), ValueError, "features.*0"),
        (lambda: ops.multiscale_roi_align([x], rois, 2, []), ValueError, "spatial_scales.*0"),
        (
            lambda: ops.multiscale_roi_align([x, x[:, :1]], rois, 2, [1, 0.5]),
            ValueError,
            r"features\[1\].*\[1, 1, 4, 4\]",
        ),
        (lambda: ops.MultiScaleRoIAlign(["a"], 2, 2)({"a": x}, [rois], []), ValueError, "image"),
    ]:
        with pytest.raises(error, match=text):
            call()


def test_raw_op_refuses_what_is_unsafe(cpu_level):
    x, rois = torch.ones(1, 2, 4, 4), torch.zeros(1, 5)
    op = torch.ops.fastvision.roi_align
    for features, boxes, scales in [
        ([x[0]], rois, [1.0]),
        ([x], rois[0], [1.0]),
        ([x], rois.double(), [1.0]),
        ([x.int()], rois, [1.0]),
        ([x, x.double()], rois, [1.0, 1.0]),
        ([x, x[:, :1]], rois, [1.0, 1.0]),
        ([x], rois, []),
        ([], rois, []),
        ([x] * 9, rois, [1.0] * 9),
    ]:
        with pytest.raises(RuntimeError):
            op(features, boxes, scales, 2, 2, 2, False, 224.0, 4.0, 2)
    with pytest.raises(RuntimeError):
        op([x], rois, [1.0], -2, 2, 2, False, 224.0, 4.0, 2)
    backward = torch.ops.fastvision.roi_align_backward
    grad = torch.ones(1, 2, 2, 2)
    for pooled_grad, sizes in [
        (grad[0], [1, 4, 4]),
        (grad, [1, 4]),
        (grad, [1, -4, 4]),
        (grad[:0], [1, 4, 4]),
    ]:
        with pytest.raises(RuntimeError):
            backward(pooled_grad, rois, sizes, [1.0], 2, False, 0.0, 0.0, 0, False)


MEMORY_SCRIPT = """
import re, torch
from fastvision import ops
from fastvision.testing import cases

def peak():  # getrusage's would be the one of the process that started this one
    return int(re.search(r"VmHWM:\\s+(\\d+)", open("/proc/self/status").read())[1]) * 1024

x = torch.empty(1, 256, 512, 512)
rois = cases.rois(50, 1, height=512, width=512)
args = (rois, [1, 512, 512], [1.0], 2, False, 0.0, 0.0, 0, False)
backward, grad = torch.ops.fastvision.roi_align_backward, torch.ones(50, 256, 7, 7)
backward(grad[:, :1].clone(), *args)  # code and small pools are in memory now
before = peak()
held = backward(grad, *args)
print((peak() - before) / x.nbytes)
"""


def test_memory_of_the_backward(cpu_level):
    """Nothing of the gradient's size beside the gradient."""
    run = subprocess.run(
        [sys.executable, "-c", MEMORY_SCRIPT], capture_output=True, text=True, check=True
    )
    assert 0.9 < float(run.stdout) < 1.25


def test_shorter_lists_and_other_integers(cpu_level, torchvision):
    """Forms that torchvision takes."""
    x, boxes = cases.feature_map(2, 3, 8, 9), torch.tensor([[1.0, 1, 6, 7]])
    expected = torchvision.ops.roi_align(x, [boxes], 2)
    assert_matches(ops.roi_align(x, (boxes,), [2]), expected)
    assert_matches(ops.roi_align(x, [boxes], torch.Size([2, 2])), expected)
    meta = ops.roi_align(x.to("meta"), torch.empty(4, 5, device="meta"), 2)
    assert meta.shape == (4, 3, 2, 2)


def test_level_of_huge_numbers(backend):
    """The level's index is exact where float32 no longer counts by one."""
    maps = [torch.full((1, 1, 2, 2), float(level), device=backend.device) for level in range(8)]
    rois = torch.tensor([[0, 0, 0, 1.0, 1]], device=backend.device)
    pooled = ops.multiscale_roi_align(
        maps, rois, 1, [1.0] * 8, 1, min_level=2**25, canonical_level=2**25 + 100,
        backend=backend.name,
    )  # fmt: skip
    assert pooled.item() == 7
