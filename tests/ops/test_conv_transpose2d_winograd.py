"""Transposed convolution by Winograd's algorithm, and of a single pixel."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from fastvision import _extension, ops
from fastvision.ops.conv import winograd
from fastvision.ops.conv.cpu import conv_options
from fastvision.testing import cases
from fastvision.testing.backends import LEVELS
from fastvision.testing.conv_transpose2d import random
from fastvision.testing.marks import needs_library
from fastvision.testing.numerics import assert_matches
from fastvision.testing.tensors import in_format, leaf
from fastvision.testing.threads import same_for_threads

pytestmark = [pytest.mark.usefixtures("poisoned_memory"), needs_library]
OPS = torch.ops.fastvision
# kernel, stride, padding, output padding: phases of 2x2 and of 3x3 taps
WINDOWS = {
    "k4s2": (4, 2, 1, 0),
    "k4s2 uneven": (4, 2, (0, 3), (1, 0)),
    "k2s1": (2, 1, 0, 0),
    "k6s3": (6, 3, 2, 1),
    "k4x8 s2x4": ((4, 8), (2, 4), (1, 2), 0),
    "k3s1": (3, 1, 1, 0),
    "k3s1 cropped": (3, 1, (4, 0), 0),
    "k6s2": (6, 2, 2, 1),
}
Window = tuple[Any, Any, Any, Any]


def sample(
    C: int, K: int, window: Window, size: tuple[int, int], N: int = 2, seed: int = 1
) -> tuple[Tensor, Tensor, Tensor]:
    """Input, weight and bias."""
    kernel, stride, *_ = window
    R, S = kernel if isinstance(kernel, tuple) else (kernel, kernel)
    down, across = stride if isinstance(stride, tuple) else (stride, stride)
    scale = (C * R * S / (down * across)) ** -0.5
    weight = random(C, K, R, S, seed=seed + 1) * scale
    return random(N, C, *size, seed=seed), weight, random(K, seed=seed + 2)


def exact(x: Tensor, weight: Tensor, bias: Tensor | None, window: Window) -> Tensor:
    bias = None if bias is None else bias.double()
    return F.conv_transpose2d(x.double(), weight.double(), bias, *window[1:])


@pytest.fixture
def packed(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the ops that pack weights, as they are called."""
    names: list[str] = []
    for name in ("conv_transpose2d_winograd_pack", "conv_transpose2d_pack"):
        op = getattr(OPS, name)

        def call(*args: Any, name: str = name, run: Any = op.default) -> Any:
            names.append(name)
            return run(*args)

        monkeypatch.setattr(op, "default", call)
    return names


WINOGRAD, PLAIN = "conv_transpose2d_winograd_pack", "conv_transpose2d_pack"


@pytest.fixture
def plain(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Switches Winograd's algorithm off."""

    def switch() -> None:
        monkeypatch.setattr(winograd.Tiles, "suffice", lambda *_: False)

    return switch


# channels below and above a block, fewer outputs than lanes, maps that do not fill their tiles
@pytest.mark.parametrize(("C", "K"), [(64, 17), (69, 33), (130, 72)])
@pytest.mark.parametrize("size", [(12, 12), (11, 18)])
@pytest.mark.parametrize("window", WINDOWS.values(), ids=WINDOWS)
@pytest.mark.parametrize("level", LEVELS)
def test_all_windows(level, cpu_level, window, size, C, K, plain):
    _extension.set_cpu_level(level)
    x, weight, bias = sample(C, K, window, size)
    last = in_format(x, True)
    expected = exact(x, weight, bias, window)
    y = ops.conv_transpose2d(last, weight, bias, *window[1:])
    assert y.is_contiguous(memory_format=torch.channels_last)
    assert_matches(y, expected, scale=2)
    planes = ops.conv_transpose2d(x, weight, bias, *window[1:])
    assert planes.is_contiguous()
    assert torch.equal(planes, y), "another algorithm in another memory format"

    options: dict[str, Any] = dict(
        zip(("stride", "padding", "output_padding"), window[1:], strict=True)
    )
    residual = random(*y.shape, seed=9)
    fused = F.silu(expected + residual)
    for added in (residual, in_format(residual, True)):
        y = ops.conv_transpose2d_bn_relu(
            last, weight, bias, residual=added, activation="silu", **options
        )
        assert_matches(y, fused, scale=2)
    plain()
    direct = ops.conv_transpose2d(last, weight, bias, *window[1:])
    assert not torch.equal(direct, planes), "the plain sum was used"


@pytest.mark.parametrize("K", [1, 3, 8])
@pytest.mark.parametrize("level", LEVELS)
def test_few_filters(level, cpu_level, K, packed):
    _extension.set_cpu_level(level)
    window = WINDOWS["k4s2"]
    x, weight, bias = sample(64, K, window, (16, 13))
    assert_matches(ops.conv_transpose2d(x, weight, bias, 2, 1), exact(x, weight, bias, window))
    assert packed == [WINOGRAD]


# phases with fewer tiles than others, and without any
@pytest.mark.parametrize("padding", [12, 13, 14, 15, 16])
@pytest.mark.parametrize("images", [1, 3])
def test_unequal_phases(padding, images, packed):
    window = (6, 3, padding, 0)
    x, weight, bias = sample(64, 40, window, (10, 10), N=images)
    y = ops.conv_transpose2d(x, weight, bias, *window[1:])
    assert_matches(y, exact(x, weight, bias, window), scale=2)
    assert packed == [WINOGRAD]


# 48 channels fill cache lines, so that results of more than 8 MiB are written past the caches
@pytest.mark.parametrize("K", [48, 44])
@pytest.mark.parametrize("window", ["k4s2", "k3s1"])
@pytest.mark.parametrize("level", LEVELS)
def test_large_results(level, cpu_level, window, K, packed):
    _extension.set_cpu_level(level)
    kernel, stride, *rest = WINDOWS[window]
    size = (150 // stride, 161 // stride)
    x, weight, bias = sample(64, K, WINDOWS[window], size)
    x = in_format(x, True)
    y = ops.conv_transpose2d(x, weight, bias, stride, *rest)
    assert y.nbytes > 8 << 20
    for n in range(2):
        image = ops.conv_transpose2d(x[n : n + 1], weight, bias, stride, *rest)
        assert torch.equal(image[0], y[n])
    assert packed == [WINOGRAD]


# weights of more than 8 MiB make the largest tasks, and tasks of one phase after the other
@pytest.mark.parametrize(("C", "K"), [(64, 64), (256, 256)])
@pytest.mark.parametrize("tiles", [6, 37, 44, 74, 83])
@pytest.mark.parametrize("window", ["k4s2", "k3s1"])
def test_tasks(window, tiles, C, K, packed):
    window = WINDOWS[window]
    x, weight, bias = sample(C, K, window, (4, 4 * tiles), N=1)
    (y,) = same_for_threads(lambda: ops.conv_transpose2d(x, weight, bias, *window[1:]), (1, 2, 5))
    assert_matches(y, exact(x, weight, bias, window), scale=2)
    assert packed == [WINOGRAD]


@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize(("C", "most"), [(64, 2.5), (256, 1.3)])
@pytest.mark.parametrize("window", ["k4s2", "k3s1"])
def test_error(C, window, most, relu, plain):
    window = WINDOWS[window]
    x, weight, _ = sample(C, 64, window, (20, 20))
    x = in_format(x.relu() if relu else x, True)  # values of one sign make larger sums
    expected = exact(x, weight, None, window)

    def error() -> float:
        y = ops.conv_transpose2d(x, weight, None, *window[1:])
        return (y.double() - expected).square().mean().sqrt().item()

    by_winograd = error()
    plain()
    assert by_winograd < most * error()


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_hostile_values_stay_in_their_tiles(value):
    window = WINDOWS["k4s2"]
    x, weight, bias = sample(64, 32, window, (16, 16))
    expected = exact(x, weight, bias, window)
    x[0, 3, 5, 6] = value
    y = ops.conv_transpose2d(x, weight, bias, *window[1:])
    if value != value:
        assert y[0, :, 9:13, 11:15].isnan().all()
        assert y[0, :, 8:15:2, 8:15:2].isnan().all(), "the plain sum was used"
    # tiles of 4x4 pixels of each phase
    y[0, :, 7:16, 7:16] = expected[0, :, 7:16, 7:16] = 0
    assert_matches(y, expected, scale=2)


def test_each_size_has_one_algorithm(plain):
    """Whatever ran before; repeated calls notice changed weights."""
    window = WINDOWS["k4s2"]
    large, weight, bias = sample(64, 32, window, (16, 16))
    small = large[:1, :, :3, :3].contiguous()
    pixel = large[:, :, :1, :1].contiguous()
    for _ in range(2):
        results = []
        for x in (large, small, pixel, large, small, pixel):
            with torch.no_grad():
                y = ops.conv_transpose2d(x, weight, bias, 2, 1)
            assert_matches(y, exact(x, weight, bias, window), scale=2)
            results.append(y)
        assert all(map(torch.equal, results[:3], results[3:]))
        weight += 0.25
        bias.data.mul_(2)


def test_packed_once(packed):
    """In whatever order inputs of different sizes come."""
    x, weight, bias = sample(64, 32, WINDOWS["k4s2"], (16, 16))
    for _ in range(3):
        for size in (16, 3, 1):
            ops.conv_transpose2d(x[:, :, :size, :size].contiguous(), weight, bias, 2, 1)
    assert packed == [WINOGRAD, PLAIN, PLAIN]


@pytest.mark.parametrize("call", [ops.conv_transpose2d, ops.conv_transpose2d_bn_relu])
def test_repeated_calls_without_batch(call):
    """By Winograd's algorithm, directly and of a single pixel."""
    for C, size in ((64, 16), (8, 5), (8, 1)):
        x, weight, bias = sample(C, 16, WINDOWS["k4s2"], (size, size))
        batch = call(x, weight, bias, stride=2, padding=1)
        for _ in range(2):
            torch.testing.assert_close(call(x[0], weight, bias, stride=2, padding=1), batch[0])
        for bad in (x[0, 0], x[0, 0, 0], x[None]):
            with pytest.raises(ValueError, match="input must have"):
                call(bad, weight, bias, stride=2, padding=1)


@pytest.mark.parametrize(
    ("kernel", "stride", "sizes"),
    [((3, 3), 9, (1, 2)), ((32, 16), (16, 8), (16, 2))],
    ids=["single pixel", "winograd"],
)
def test_arguments_are_checked_whatever_ran_before(kernel, stride, sizes):
    """Strides with so many phases that other sizes run by torch, which checks less."""
    C, K = 64, 4
    weight = random(C, K, *kernel) / 40
    for size in sizes:
        for _ in range(2):
            y = ops.conv_transpose2d_bn_relu(random(2, C, size, size), weight, stride=stride)
    for residual in (random(1, 1, 1, 1), random(*y.shape).double(), random(2, *y.shape[1:])[1:]):
        with pytest.raises((TypeError, ValueError), match="residual"):
            ops.conv_transpose2d_bn_relu(
                random(2, C, sizes[1], sizes[1]), weight, stride=stride, residual=residual
            )


@pytest.mark.parametrize(
    ("shape", "stride"),
    [((32, 16, 200, 2), (100, 1)), ((32, 16, 2, 130), (1, 65)), ((512, 1, 32, 32), 16)],
    ids=str,
)
def test_many_phases(shape, stride, packed):
    """Their transformed weights would take much more memory, or be refused."""
    x, weight = random(1, shape[0], 16, 16), random(*shape) / 40
    y = ops.conv_transpose2d(x, weight, None, stride)
    assert_matches(y, F.conv_transpose2d(x.double(), weight.double(), None, stride), scale=4)
    assert WINOGRAD not in packed


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("window", ["k4s2", "k3s1"])
def test_training(window, channels_last, packed):
    window = WINDOWS[window]
    x, weight, bias = sample(64, 32, window, (24, 24))
    x = in_format(x, channels_last)
    for size in (24, 4):  # by Winograd's algorithm, and by torch
        args = [leaf(x[:, :, :size, :size].contiguous()), leaf(weight), leaf(bias)]
        y = ops.conv_transpose2d(*args, *window[1:])
        doubles = [leaf(t.detach().double()) for t in args]
        expected = F.conv_transpose2d(*doubles, *window[1:])
        assert_matches(y, expected, scale=2)
        grad = random(*y.shape, seed=7)
        y.backward(grad)
        expected.backward(grad.double())
        for ours, theirs in zip(args, doubles, strict=True):
            assert_matches(ours.grad, theirs.grad, scale=8)
    assert packed == [WINOGRAD]


# of a single pixel, each result has one tap
@pytest.mark.parametrize("images", [1, 70])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize(
    ("kernel", "options"),
    [
        ((4, 4), {}),
        ((7, 7), {"padding": (1, 2)}),
        ((3, 5), {"stride": 2, "output_padding": 1}),
        ((3, 2), {"dilation": (2, 3), "output_padding": (1, 2)}),
        ((3, 3), {"groups": 4, "padding": 1}),
        ((9, 9), {}),  # more phases than the engine takes
    ],
    ids=str,
)
def test_single_pixel(kernel, options, dtype, images):
    groups = options.get("groups", 1)
    x, weight, bias = random(images, 40, 1, 1), random(40, 12, *kernel) / 40, random(12 * groups)
    x, weight = x.to(dtype), weight.to(dtype)
    expected = F.conv_transpose2d(x.double(), weight.double(), bias.double(), **options)
    for _ in range(3):  # the first call packs the weights, others find them
        y = ops.conv_transpose2d(x, weight, bias.to(dtype), **options)
        assert y.dtype == dtype
        assert_matches(y, expected, scale=2)
    residual = cases.feature_map(*y.shape).to(dtype)
    for _ in range(2):
        y = ops.conv_transpose2d_bn_relu(
            x, weight, bias.to(dtype), residual=residual, activation="relu6", **options
        )
        assert_matches(y, F.relu6(expected + residual.double()), scale=2)


def test_single_pixel_multiplies_once(monkeypatch):
    """Most taps would meet padding, at the cost of those that meet the pixel."""
    strides = []
    op = OPS.conv_transpose2d_pack.default
    monkeypatch.setattr(
        OPS.conv_transpose2d_pack, "default", lambda *a: strides.append(a[2:4]) or op(*a)
    )
    weight = random(8, 4, 4, 3)
    ops.conv_transpose2d(random(2, 8, 1, 1), weight)
    ops.conv_transpose2d(random(2, 8, 1, 2), weight)
    assert strides == [(4, 3), (1, 1)]


def options(K: int = 32, kernel: int = 4, stride: int = 2, **rest: int) -> Tensor:
    dilation, groups = rest.get("dilation", 1), rest.get("groups", 1)
    return conv_options(
        *(K, kernel, kernel, stride, stride, 1, 1, 1, 1, dilation, dilation, groups, 0)
    )


@pytest.mark.parametrize(
    "change",
    [
        {"options": options(kernel=5)},
        {"options": options(stride=1)},
        {"options": options(kernel=200, stride=100)},
        {"options": options(dilation=2)},
        {"options": options(groups=2)},
        {"options": options(K=33)},
        {"input": torch.zeros(1, 63, 8, 8)},
        {"input": torch.zeros(1, 64, 8, 8).double()},
        {"input": torch.zeros(1, 64, 8, 0)},
        {"packed": torch.zeros(7)},
        {"residual": torch.zeros(1, 32, 16, 15)},
    ],
    ids=lambda change: next(iter(change)),
)
def test_the_op_refuses_what_does_not_fit(change):
    weight = random(64, 32, 4, 4)
    good = {
        "input": torch.zeros(1, 64, 8, 8),
        "packed": OPS.conv_transpose2d_winograd_pack(weight, None, 2, 2),
        "residual": None,
        "options": options(),
    }
    assert OPS.conv_transpose2d_winograd(**good).shape == (1, 32, 16, 16)
    with pytest.raises(RuntimeError):
        OPS.conv_transpose2d_winograd(**(good | change))


@pytest.mark.parametrize("stride", [0, 1, 3, 33])
def test_packing_refuses_other_windows(stride):
    with pytest.raises(RuntimeError, match="stride"):
        OPS.conv_transpose2d_winograd_pack(torch.zeros(8, 8, 4, 4), None, stride, 2)
