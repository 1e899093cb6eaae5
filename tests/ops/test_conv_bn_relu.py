"""conv_bn_relu without gradients: every backend against the reference in float64."""

from __future__ import annotations

import functools
import itertools

import pytest
import torch
from torch.nn import functional as F

from fastvision import _extension, ops, reference
from fastvision._memory_format import memory_format
from fastvision.reference import ACTIVATIONS
from fastvision.testing import cases
from fastvision.testing.backends import LEVELS
from fastvision.testing.conv_bn_relu import Sample
from fastvision.testing.marks import LAYOUTS, needs_library
from fastvision.testing.numerics import DTYPES, assert_matches
from fastvision.testing.tensors import dtype_id, in_format
from fastvision.testing.threads import same_for_threads

pytestmark = pytest.mark.usefixtures("poisoned_memory")
OP = torch.ops.fastvision.conv_bn_relu.default
# channels below, at and above a vector and a block of vectors; groups that fill and share vectors
SHAPES = {
    "1x1": (33, 40, (1, 1), {}),
    "3x3": (16, 33, (3, 3), {"padding": 1}),
    "stem": (3, 24, (7, 7), {"padding": 3, "stride": 2}),
    "one channel": (1, 1, (3, 2), {"padding": (2, 0)}),
    "strided and dilated": (
        5,
        17,
        (3, 5),
        {"stride": (2, 3), "dilation": (3, 1), "padding": (3, 2)},
    ),
    "asymmetric": (8, 8, (4, 3), {"padding": (2, 0, 1, 3)}),
    "same": (6, 9, (4, 3), {"padding": "same"}),
    "depthwise": (19, 19, (3, 3), {"groups": 19, "padding": 1}),
    "depthwise 5x5": (32, 32, (5, 5), {"groups": 32, "padding": 2, "stride": 2}),
    "depthwise 7x1": (8, 8, (7, 1), {"groups": 8, "padding": (3, 0), "dilation": (1, 2)}),
    "groups of 2": (22, 22, (3, 3), {"groups": 11, "padding": 1}),
    "groups of 4": (20, 20, (3, 3), {"groups": 5, "padding": 1}),
    "groups of 8": (40, 40, (3, 3), {"groups": 5, "padding": 1, "stride": 2}),
    "groups of 3 and 5": (9, 15, (3, 3), {"groups": 3}),
    "depthwise, two filters each": (7, 14, (3, 3), {"groups": 7}),
}


@LAYOUTS
@pytest.mark.parametrize("dtype", DTYPES, ids=dtype_id)
@pytest.mark.parametrize("shape", SHAPES)
# Triton's interpreter is slow: the tests of the kernels have these
@pytest.mark.only(lambda backend: not backend.interpreted)
def test_forward(backend, shape, dtype, channels_last):
    C, K, kernel, window = SHAPES[shape]
    window = dict(window)
    groups = window.pop("groups", 1)
    sample = Sample(
        C,
        K,
        kernel,
        groups=groups,
        dtype=dtype,
        device=backend.device,
        channels_last=channels_last,
    )
    y = sample(**window, backend=backend.name)
    assert y.dtype == dtype
    format = memory_format(channels_last)
    assert y.is_contiguous(memory_format=format)
    assert_matches(y, sample.expected(**window), scale=2)

    residual = in_format(cases.feature_map(*y.shape, seed=23).to(y), channels_last)
    y = sample(**window, residual=residual, activation="none", backend=backend.name)
    assert_matches(y, sample.expected(**window, residual=residual, activation="none"), scale=2)


@pytest.mark.parametrize("K", [5, 40])
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=dtype_id)
# Triton's interpreter is slow: the tests of the kernels have these
@pytest.mark.only(lambda backend: not backend.interpreted)
def test_activations(backend, activation, dtype, K):
    sample = Sample(6, K, (1, 1), dtype=dtype, device=backend.device)
    sample.input = sample.input * 8  # beyond 6 and the bends of hardswish
    options = {"activation": activation, "negative_slope": 0.2}
    residual = cases.feature_map(2, K, 11, 9, seed=24).to(sample.input)
    for added in (None, residual):
        y = sample(residual=added, backend=backend.name, **options)
        assert_matches(y, sample.expected(residual=added, **options), scale=4)


# Triton's interpreter is slow: the tests of the kernels have these
@pytest.mark.only(lambda backend: not backend.interpreted)
def test_nan_and_infinity(backend):
    """They go where torch's layers let them go, and nowhere else."""
    for activation in ACTIVATIONS:
        sample = Sample(4, 9, (1, 1), device=backend.device)
        sample.weight = sample.weight.abs() + 0.1
        sample.input[0, 0, 0, 0] = float("nan")
        sample.input[0, 1, 2, 3] = float("inf")
        sample.input[1, 1, 2, 3] = float("-inf")
        y = sample(activation=activation, backend=backend.name)
        assert_matches(y, sample.expected(activation=activation), scale=4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=dtype_id)
@pytest.mark.parametrize("activation", ["silu", "sigmoid", "hardswish"])
# Triton's interpreter is slow: the tests of the kernels have these
@pytest.mark.only(lambda backend: not backend.interpreted)
def test_far_from_zero(backend, activation, dtype):
    """Where the exponential leaves the range of numbers."""
    values = [-1e4, -1e3, -710.5, -355, -100, -89.1, -88.0, 88.0, 89.1, 800, 1e30]
    x = torch.tensor(values, dtype=dtype, device=backend.device).expand(1, 9, 2, 11)
    weight = torch.eye(9, dtype=dtype, device=backend.device)[:, :, None, None]
    y = ops.conv_bn_relu(x, weight, activation=activation, backend=backend.name)
    assert_matches(y, reference.activate(x.double(), activation))


# padding that is wider than the taps of all pixels, strides that pass the map, no pixels at all
@pytest.mark.parametrize(
    ("shape", "groups", "stride", "padding"),
    [
        ((1, 3, 5, 1), 1, (1, 8), (4, 4, 1, 1)),
        ((1, 3, 2, 3), 1, (9, 9), (7, 1, 8, 2)),
        ((2, 8, 4, 4), 1, 2**31 - 1, (1, 1, 1, 1)),
        ((2, 8, 4, 4), 8, 2**31 - 1, (1, 1, 1, 1)),
        ((1, 8, 4, 0), 8, 1, (2, 2, 2, 2)),
        ((1, 8, 0, 4), 1, 1, (2, 2, 2, 2)),
    ],
)
@LAYOUTS
@pytest.mark.only(lambda backend: backend.name == "cpp")
def test_windows_beyond_the_map(backend, shape, groups, stride, padding, channels_last):
    x = in_format(cases.feature_map(*shape), channels_last)
    weight, bias = cases.feature_map(8, shape[1] // groups, 3, 3, seed=2), torch.arange(8.0)
    window = {"stride": stride, "padding": padding, "groups": groups}
    y = ops.conv_bn_relu(x, weight, bias, **window, backend="cpp")
    if 0 in shape:  # nothing but padding, which torch refuses
        expected = bias[:, None, None].expand_as(y)
    else:
        expected = F.conv2d(F.pad(x, padding), weight, bias, stride, 0, 1, groups).relu()
    assert_matches(y, expected, scale=8)


@pytest.mark.parametrize("kernel", [(1, 1), (3, 3)])
@pytest.mark.parametrize("size", [(1, 1), (1, 7), (40, 30)])
@LAYOUTS
# Triton's interpreter is slow: the tests of the kernels have these
@pytest.mark.only(lambda backend: not backend.interpreted)
def test_sizes(backend, kernel, size, channels_last):
    """Maps of one pixel, and such that several tasks share the work."""
    for images, (C, K) in itertools.product((1, 3), ((20, 70), (64, 16))):
        sample = Sample(
            C,
            K,
            kernel,
            images=images,
            size=size,
            device=backend.device,
            channels_last=channels_last,
        )
        y = sample(padding=kernel[0] // 2, backend=backend.name)
        assert_matches(y, sample.expected(padding=kernel[0] // 2), scale=2)


def test_empty_batch_and_strided_input(backend):
    sample = Sample(6, 10, (3, 3), device=backend.device)
    if not backend.interpreted:
        whole = sample.input
        sample.input = whole[:, :, ::2, 1:]
        assert_matches(sample(backend=backend.name), sample.expected(), scale=2)
        sample.input = whole.transpose(2, 3)
        assert_matches(sample(backend=backend.name), sample.expected(), scale=2)
    sample.input = sample.input[:0]
    y = sample(backend=backend.name)
    assert y.shape == sample.expected().shape and y.dtype == torch.float32


# windows with and without a kernel of their own; rows shorter than the dilation, and as far from
# each other as makes contiguous maps convert at once
@pytest.mark.parametrize("columns", [1, 3, 5, 7, 9])
@pytest.mark.parametrize("size", [(5, 1), (4, 13), (9, 40)])
@LAYOUTS
@pytest.mark.only(lambda backend: backend.name == "cpp")
def test_windows_of_depthwise(backend, columns, size, channels_last):
    sample = Sample(37, 37, (3, columns), groups=37, size=size, channels_last=channels_last)
    half = columns // 2
    for stride, dilation in ((1, 1), (2, 1), (1, 2), (1, (60, 3)), (2, 2), (1, (1, 50)), (3, 1)):
        down, across = dilation if isinstance(dilation, tuple) else (dilation, dilation)
        padding = (half * across, half * across + 1, down, down)
        options = {"stride": stride, "dilation": dilation, "padding": padding}
        shape = sample(**options).shape
        residual = in_format(cases.feature_map(*shape, seed=25), channels_last)
        for activation, added in (("relu", None), ("silu", residual)):
            options |= {"activation": activation, "residual": added}
            (y,) = same_for_threads(functools.partial(sample, **options, backend="cpp"), (1, 3))
            assert_matches(y, sample.expected(**options), scale=2)


# groups that fill a vector in part, share it and take several; each has its channels and filters
_GROUPS = [(2, 2, 19), (4, 4, 9), (8, 8, 7), (16, 16, 5), (24, 24, 9), (48, 40, 3), (5, 31, 2)]


# rows as long as a tile of either width, with and without borders; the last takes several tasks
@pytest.mark.parametrize(("C", "K", "groups"), _GROUPS)
@pytest.mark.parametrize("size", [(7, 7), (3, 14), (9, 11), (5, 1), (1, 26), (70, 30)])
@LAYOUTS
@pytest.mark.only(lambda backend: backend.name == "cpp")
def test_rows_of_groups(backend, C, K, groups, size, channels_last):
    sample = Sample(
        C * groups, K * groups, (3, 3), groups=groups, size=size, channels_last=channels_last
    )
    for stride, padding in ((1, 1), (2, 1), ((3, 1), (2, 0, 4, 3)), ((2, 1), (45, 40, 9, 75))):
        options = {"stride": stride, "padding": padding}
        shape = sample(**options).shape
        residual = in_format(cases.feature_map(*shape, seed=25), channels_last)
        for activation, added in (("relu", None), ("silu", residual)):
            options |= {"activation": activation, "residual": added}
            (y,) = same_for_threads(functools.partial(sample, **options, backend="cpp"))
            assert_matches(y, sample.expected(**options), scale=2)


@pytest.mark.parametrize("rows", [1, 2, 5])
@pytest.mark.parametrize("groups", [4, 8])
@pytest.mark.parametrize("dtype", DTYPES, ids=dtype_id)
@pytest.mark.only(lambda backend: backend.name == "cpp")
def test_windows_of_groups(backend, rows, groups, dtype):
    sample = Sample(32, 32, (rows, 3), groups=groups, size=(90, 40), dtype=dtype)
    for stride in (1, 2, (2**31 - 1, 1)):
        options = {"padding": (0, 1, rows // 2, 0), "stride": stride}
        residual = cases.feature_map(*sample(**options).shape, seed=25).to(dtype)
        options |= {"residual": residual, "activation": "none"}
        y = sample(**options, backend="cpp")
        assert_matches(y, sample.expected(**options), scale=2)


# tiles at the borders, channels below and above a block, more channels than outputs
@pytest.mark.parametrize(
    ("size", "stride"), [((12, 12), 1), ((13, 31), 1), ((24, 24), 2), ((32, 47), 2)]
)
@pytest.mark.parametrize(("C", "K"), [(32, 33), (37, 72), (130, 40)])
@pytest.mark.only(lambda backend: backend.name == "cpp")
def test_winograd(backend, C, K, size, stride, monkeypatch):
    C *= stride
    monkeypatch.setattr("fastvision.ops.conv.winograd._MIN_STRIDED", 1)
    sample = Sample(C, K, (3, 3), size=size, channels_last=True)
    nchw = Sample(C, K, (3, 3), size=size)
    window = {"padding": (0, 1, 2, 1), "stride": stride}
    shape = sample(**window).shape
    residual = in_format(cases.feature_map(*shape, seed=25), True)
    for activation, added in (("relu6", None), ("silu", residual), ("none", residual)):
        options = {**window, "activation": activation, "residual": added}
        y = sample(**options, backend="cpp")
        assert y.is_contiguous(memory_format=torch.channels_last)
        assert_matches(y, sample.expected(**options), scale=2)
        others = [None]
        if added is not None:  # in both formats, and in neither
            others = [added, added.contiguous(), in_format(added.repeat(1, 2, 1, 1), True)[:, :K]]
        for other in others:
            planes = nchw(**{**options, "residual": other})
            assert planes.is_contiguous()
            assert torch.equal(planes, y), "another algorithm in another memory format"
    monkeypatch.setattr("fastvision.ops.conv.winograd.Tiles.suffice", lambda *_: False)
    assert not torch.equal(y, sample(**options)), "the plain sum was used"


# 48 channels fill cache lines, so that results of more than 8 MiB are written past the caches
@pytest.mark.parametrize("K", [48, 44])
@pytest.mark.parametrize(("stride", "size"), [(1, (150, 161)), (2, (301, 322))])
@pytest.mark.parametrize("level", LEVELS)
@needs_library
def test_large_results_of_winograd(level, stride, size, K, cpu_level, monkeypatch):
    monkeypatch.setattr("fastvision.ops.conv.winograd._MIN_STRIDED", 1)
    _extension.set_cpu_level(level)
    sample = Sample(32 * stride, K, (3, 3), size=size, channels_last=True)
    options = {"padding": 1, "stride": stride, "activation": "silu"}
    residual = in_format(cases.feature_map(*sample(**options).shape, seed=25), True)
    y = sample(**options, residual=residual)
    assert y.nbytes > 8 << 20
    whole = sample.input
    for n in range(2):
        sample.input = whole[n : n + 1]
        assert torch.equal(sample(**options, residual=residual[n : n + 1])[0], y[n])


# weights of more than 8 MiB make the largest tasks: up to 44 tiles in one
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("tiles", [36, 37, 44, 74, 83])
@needs_library
def test_tasks_of_winograd(tiles, stride):
    size = (4 * stride, 4 * stride * tiles)
    sample = Sample(256, 256, (3, 3), images=1, size=size, channels_last=True)
    options = {"padding": 1, "stride": stride}
    (y,) = same_for_threads(lambda: sample(**options))
    assert_matches(y, sample.expected(**options), scale=2)


@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize(
    ("C", "stride", "most"), [(32, 1, 2.5), (256, 1, 1.3), (64, 2, 2.5), (256, 2, 1.3)]
)
def test_winograd_error(C, stride, most, relu, monkeypatch):
    monkeypatch.setattr("fastvision.ops.conv.winograd._MIN_STRIDED", 1)
    size = (20 * stride, 20 * stride)
    sample = Sample(C, 64, (3, 3), size=size, channels_last=True, norm=False)
    sample.bias.zero_()
    if relu:  # values of one sign make larger sums
        sample.input.relu_()
    options = {"padding": 1, "stride": stride, "activation": "none"}
    exact = sample.expected(**options)
    eager = F.conv2d(sample.input, sample.weight, None, padding=1, stride=stride)

    def error(y: torch.Tensor) -> float:
        return (y.double() - exact).square().mean().sqrt().item()

    y = sample(**options)
    assert error(y) < most * error(eager)
    monkeypatch.setattr("fastvision.ops.conv.winograd.Tiles.suffice", lambda *_: False)
    assert not torch.equal(y, sample(**options)), "the plain sum was used"


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_winograd_keeps_hostile_values_within_tiles(value, stride, monkeypatch):
    monkeypatch.setattr("fastvision.ops.conv.winograd._MIN_STRIDED", 1)
    sample = Sample(64, 32, (3, 3), size=(14 * stride, 14 * stride), channels_last=True)
    options = {"padding": 1, "stride": stride}
    exact = sample.expected(**options)
    sample.input[0, 3, 5 * stride, 8 * stride] = value
    y, exact = sample(**options)[0], exact[0]
    around = 2 - stride  # pixels next to (5, 8) that the value reaches, too
    if value != value:
        assert y[:, 5 - around : 6 + around, 8 - around : 9 + around].isnan().all()
        assert y[:, 4:8, 8:12].isnan().all(), "the plain sum was used"
    y[:, 4:8, 4:12] = exact[:, 4:8, 4:12] = 0  # the tiles that the value reaches
    assert_matches(y, exact, scale=2)


@pytest.mark.parametrize("threads", [1, 2, 5, 40])
@pytest.mark.parametrize("kernel", [(3, 3), (3, 4), (1, 1)])  # 3x3: Winograd's algorithm
@pytest.mark.parametrize("channels_last", [False, True])
def test_same_bits_for_any_number_of_threads(threads, kernel, channels_last):
    sample = Sample(40, 140, kernel, images=3, size=(40, 30), channels_last=channels_last)
    expected = sample()
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(threads)
        assert torch.equal(sample(), expected)
    finally:
        torch.set_num_threads(before)


# Triton's interpreter is slow: the tests of the kernels have these
@pytest.mark.only(lambda backend: not backend.interpreted)
def test_float32_weight_beside_16_bit_input(backend):
    sample = Sample(16, 24, (3, 3), device=backend.device)
    sample.input = sample.input.bfloat16()
    y = sample(backend=backend.name)
    assert y.dtype == torch.bfloat16
    assert_matches(y, sample.expected(), scale=2)


def test_one_image_without_a_batch(backend):
    x = torch.randn(8, 9, 7, device=backend.device, requires_grad=True)
    weight = torch.randn(8, 8, 3, 3, device=backend.device)
    options = {"padding": 1, "activation": "silu", "backend": backend.name}
    y = ops.conv_bn_relu(x, weight, residual=x, **options)
    expected = ops.conv_bn_relu(x[None], weight, residual=x[None], **options)[0]
    assert y.shape == (8, 9, 7)
    assert_matches(y, expected)
    (grad,) = torch.autograd.grad(y.sum(), x)
    assert_matches(grad, torch.autograd.grad(expected.sum(), x)[0], scale=10)
    with torch.no_grad():
        for _ in range(2):
            assert_matches(ops.conv_bn_relu(x, weight, residual=x, **options), expected)
