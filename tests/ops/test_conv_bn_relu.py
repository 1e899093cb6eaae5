"""conv_bn_relu without gradients: every backend against the reference in float64."""

from __future__ import annotations

import gc
import itertools
import re
import weakref
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from fastvision import _extension, ops, reference
from fastvision.ops.conv import cpu, onednn, packing
from fastvision.reference import ACTIVATIONS
from fastvision.testing import cases
from fastvision.testing.numerics import assert_matches

DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]
pytestmark = pytest.mark.usefixtures("poisoned_memory")
OP = torch.ops.fastvision.conv_bn_relu.default


def id_of(value) -> str | None:
    return str(value).removeprefix("torch.") if isinstance(value, torch.dtype) else None


def in_format(x: torch.Tensor, channels_last: bool) -> torch.Tensor:
    return x.contiguous(memory_format=torch.channels_last) if channels_last else x


class Sample:
    """Seeded arguments of one convolution, weights of such size that results are around 1."""

    def __init__(
        self,
        C: int,
        K: int,
        kernel: tuple[int, int],
        *,
        groups: int = 1,
        images: int = 2,
        size: tuple[int, int] = (11, 9),
        dtype: torch.dtype = torch.float32,
        device: str = "cpu",
        channels_last: bool = False,
        norm: bool = True,
    ) -> None:
        g = cases.generator(21)
        per_group = C // groups
        weight = torch.randn(K, per_group, *kernel, generator=g)
        weight /= (per_group * kernel[0] * kernel[1]) ** 0.5
        vectors = torch.rand(5, K, generator=g) + 0.5
        x = cases.feature_map(images, C, *size, seed=22)
        self.input = in_format(x.to(dtype), channels_last).to(device)
        self.weight = weight.to(device, dtype)
        self.bias, *rest = (v.to(device, dtype) for v in vectors)
        names = ("bn_weight", "bn_bias", "running_mean", "running_var")
        self.norm = dict(zip(names, rest, strict=True)) if norm else {}
        self.groups = groups

    def __call__(self, **options) -> torch.Tensor:
        return ops.conv_bn_relu(
            self.input, self.weight, self.bias, groups=self.groups, **self.norm, **options
        )

    def expected(self, residual=None, activation="relu", negative_slope=0.01, **window):
        """By torch's own layers, in float64."""
        x, weight, bias = (t.double() for t in (self.input, self.weight, self.bias))
        padding = window.pop("padding", 0)
        if isinstance(padding, tuple) and len(padding) == 4:
            x, padding = F.pad(x, padding), 0
        y = F.conv2d(x, weight, bias, padding=padding, groups=self.groups, **window)
        if self.norm:
            scale, shift, mean, var = (t.double() for t in self.norm.values())
            y = F.batch_norm(y, mean, var, scale, shift)
        if residual is not None:
            y = y + residual.double()
        return reference.activate(y, activation, negative_slope)


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


@pytest.mark.parametrize("channels_last", [False, True], ids=["nchw", "channels_last"])
@pytest.mark.parametrize("dtype", DTYPES, ids=id_of)
@pytest.mark.parametrize("shape", SHAPES)
def test_forward(backend, shape, dtype, channels_last):
    if backend.interpreted:
        pytest.skip("Triton's interpreter is slow: the tests of the kernels have these")
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
    format = torch.channels_last if channels_last else torch.contiguous_format
    assert y.is_contiguous(memory_format=format)
    assert_matches(y, sample.expected(**window), scale=2)

    residual = in_format(cases.feature_map(*y.shape, seed=23).to(y), channels_last)
    y = sample(**window, residual=residual, activation="none", backend=backend.name)
    assert_matches(y, sample.expected(**window, residual=residual, activation="none"), scale=2)


@pytest.mark.parametrize("K", [5, 40])
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=id_of)
def test_activations(backend, activation, dtype, K):
    if backend.interpreted:
        pytest.skip("Triton's interpreter is slow: the tests of the kernels have these")
    sample = Sample(6, K, (1, 1), dtype=dtype, device=backend.device)
    sample.input = sample.input * 8  # beyond 6 and the bends of hardswish
    options = {"activation": activation, "negative_slope": 0.2}
    residual = cases.feature_map(2, K, 11, 9, seed=24).to(sample.input)
    for added in (None, residual):
        y = sample(residual=added, backend=backend.name, **options)
        assert_matches(y, sample.expected(residual=added, **options), scale=4)


def test_nan_and_infinity(backend):
    """They go where torch's layers let them go, and nowhere else."""
    if backend.interpreted:
        pytest.skip("Triton's interpreter is slow: the tests of the kernels have these")
    for activation in ACTIVATIONS:
        sample = Sample(4, 9, (1, 1), device=backend.device)
        sample.weight = sample.weight.abs() + 0.1
        sample.input[0, 0, 0, 0] = float("nan")
        sample.input[0, 1, 2, 3] = float("inf")
        sample.input[1, 1, 2, 3] = float("-inf")
        y = sample(activation=activation, backend=backend.name)
        assert_matches(y, sample.expected(activation=activation), scale=4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=id_of)
@pytest.mark.parametrize("activation", ["silu", "sigmoid", "hardswish"])
def test_far_from_zero(backend, activation, dtype):
    """Where the exponential leaves the range of numbers."""
    if backend.interpreted:
        pytest.skip("Triton's interpreter is slow: the tests of the kernels have these")
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
@pytest.mark.parametrize("channels_last", [False, True], ids=["nchw", "channels_last"])
def test_windows_beyond_the_map(backend, shape, groups, stride, padding, channels_last):
    if backend.name != "cpp":
        pytest.skip("about the CPU's engine")
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
@pytest.mark.parametrize("channels_last", [False, True], ids=["nchw", "channels_last"])
def test_sizes(backend, kernel, size, channels_last):
    """Maps of one pixel, and such that several tasks share the work."""
    if backend.interpreted:
        pytest.skip("Triton's interpreter is slow: the tests of the kernels have these")
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


# tiles at the borders, channels below and above a block, more channels than outputs
@pytest.mark.parametrize("size", [(12, 12), (13, 31)])
@pytest.mark.parametrize(("C", "K"), [(32, 33), (37, 72), (130, 40)])
def test_winograd(backend, C, K, size):
    if backend.name != "cpp":
        pytest.skip("an algorithm of the CPU's kernels")
    sample = Sample(C, K, (3, 3), size=size, channels_last=True)
    window = {"padding": (0, 1, 2, 1)}
    y = sample(**window, backend="cpp")
    nchw = Sample(C, K, (3, 3), size=size)
    assert not torch.equal(y, nchw(**window)), "the plain sum was used"
    residual = in_format(cases.feature_map(*y.shape, seed=25), True)
    for activation, added in (("relu6", None), ("silu", residual), ("none", residual)):
        options = {**window, "activation": activation, "residual": added}
        y = sample(**options, backend="cpp")
        assert y.is_contiguous(memory_format=torch.channels_last)
        assert_matches(y, sample.expected(**options), scale=2)


@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize("C", [32, 256])
def test_winograd_error_is_about_twice_the_plain_sums(C, relu):
    sample = Sample(C, 64, (3, 3), size=(20, 20), channels_last=True, norm=False)
    sample.bias.zero_()
    if relu:  # values of one sign make larger sums
        sample.input.relu_()
    options = {"padding": 1, "activation": "none"}
    exact = sample.expected(**options)
    eager = F.conv2d(sample.input, sample.weight, None, padding=1)

    def error(y: torch.Tensor) -> float:
        return (y.double() - exact).square().mean().sqrt().item()

    assert error(sample(**options)) < 2.5 * error(eager)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_winograd_keeps_hostile_values_within_tiles(value):
    sample = Sample(32, 32, (3, 3), size=(14, 14), channels_last=True)
    exact = sample.expected(padding=1)
    sample.input[0, 3, 5, 8] = value
    y, exact = sample(padding=1)[0], exact[0]
    if value != value:
        assert y[:, 4:7, 7:10].isnan().all()  # what the value reaches
    y[:, 4:8, 4:12] = exact[:, 4:8, 4:12] = 0  # the tiles that this lies in
    assert_matches(y, exact, scale=2)


@pytest.mark.parametrize("threads", [1, 2, 5, 40])
@pytest.mark.parametrize("channels_last", [False, True])  # True: Winograd's algorithm
def test_same_bits_for_any_number_of_threads(threads, channels_last):
    sample = Sample(40, 140, (3, 3), images=3, size=(40, 30), channels_last=channels_last)
    expected = sample()
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(threads)
        assert torch.equal(sample(), expected)
    finally:
        torch.set_num_threads(before)


def test_float32_weight_beside_16_bit_input(backend):
    if backend.interpreted:
        pytest.skip("Triton's interpreter is slow: the tests of the kernels have these")
    sample = Sample(16, 24, (3, 3), device=backend.device)
    sample.input = sample.input.bfloat16()
    y = sample(backend=backend.name)
    assert y.dtype == torch.bfloat16
    assert_matches(y, sample.expected(), scale=2)


@pytest.fixture
def onednn_calls(monkeypatch) -> list[int]:
    """What runs on CPUs with AVX-512, wherever torch has oneDNN; an item for each convolution."""
    if _extension.missing or not torch.backends.mkldnn.is_available():
        pytest.skip("needs the compiled library and a torch with oneDNN")
    monkeypatch.setattr(onednn, "_fast_dtypes", lambda level: (torch.float32,))
    monkeypatch.setattr(cpu, "_onednn_wins_trial", lambda kind, threads: True)
    monkeypatch.setattr(torch, "are_deterministic_algorithms_enabled", lambda: False)
    calls: list[int] = []
    convolution = onednn.convolution
    monkeypatch.setattr(onednn, "convolution", lambda *a: calls.append(0) or convolution(*a))
    return calls


@pytest.mark.parametrize("channels_last", [False, True], ids=["nchw", "channels_last"])
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_by_onednn(onednn_calls, activation, channels_last):
    sample = Sample(16, 20, (3, 3), channels_last=channels_last)
    window = {"stride": (1, 2), "padding": (1, 2), "dilation": (2, 1), "activation": activation}
    for _ in range(2):
        y = sample(**window)
        assert_matches(y, sample.expected(**window), scale=2)
        sample.weight.mul_(1.5)
    assert len(onednn_calls) == (0 if activation == "leaky_relu" else 2)
    residual = torch.randn(y.shape)
    y = sample(**window, residual=residual)
    assert_matches(y, sample.expected(**window, residual=residual), scale=2)
    format = torch.channels_last if channels_last else torch.contiguous_format
    assert y.is_contiguous(memory_format=format)
    sample(padding=(1, 0, 1, 1), dilation=2)  # asymmetric: the engine's
    assert_matches(sample(padding="valid"), sample.expected(), scale=2)


@pytest.mark.parametrize("kernel", [(1, 1), (3, 3)], ids=str)
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_onednn_keeps_nan(onednn_calls, activation, kernel):
    sample = Sample(16, 20, kernel)
    sample.input[1, 3, 5, 6] = float("nan")
    y, expected = sample(activation=activation), sample.expected(activation=activation)
    assert expected.isnan().any() and torch.equal(y.isnan(), expected.isnan())
    residual = torch.randn(y.shape)
    residual[0, 2, 1, 1] = float("nan")
    kept = residual.clone()
    y = sample(activation=activation, residual=residual)
    expected = sample.expected(activation=activation, residual=residual)
    assert torch.equal(y.isnan(), expected.isnan())
    assert torch.equal(residual.nan_to_num(9), kept.nan_to_num(9))
    with_residual = activation in ("none", "relu", "relu6")
    assert len(onednn_calls) == (0 if activation == "leaky_relu" else 1 + with_residual)


@pytest.mark.parametrize("kind", ["pointwise", "window", "winograd"])
def test_trial_of_onednn_and_the_engine(onednn_calls, monkeypatch, kind):
    """Both do the same; the faster one is taken, or always the engine where that is asked for."""
    ours, theirs = cpu._trial(kind)
    torch.testing.assert_close(ours(), theirs(), rtol=1e-4, atol=1e-4)
    kinds = []
    monkeypatch.setattr(cpu, "_onednn_wins_trial", lambda kind, _: kinds.append(kind))
    size, taps = (14, 3) if kind == "winograd" else (5, 1 if kind == "pointwise" else 3)
    x = cases.feature_map(1, 32, size, size, channels_last=True)
    weight = cases.feature_map(32, 32, taps, taps)
    onednn_calls.clear()
    ops.conv_bn_relu(x, weight, padding=taps // 2)
    assert kinds == [kind] and not onednn_calls
    monkeypatch.setattr(cpu, "_onednn_wins_trial", lambda kind, threads: True)
    monkeypatch.setattr(torch, "are_deterministic_algorithms_enabled", lambda: True)
    ops.conv_bn_relu(x, weight, padding=taps // 2)
    assert not onednn_calls


def test_onednn_with_strided_bias(onednn_calls):
    sample = Sample(16, 20, (3, 3), norm=False)
    for sample.bias in (torch.randn(40)[::2], torch.ones(1).expand(20)):
        assert_matches(sample(), sample.expected(), scale=2)
    assert len(onednn_calls) == 2


@pytest.fixture
def layer() -> tuple[nn.Conv2d, nn.BatchNorm2d]:
    torch.manual_seed(0)
    conv, norm = nn.Conv2d(8, 12, 3, padding=1), nn.BatchNorm2d(12).eval()
    norm.running_mean.normal_()
    norm.running_var.uniform_(0.5, 2)
    return conv, norm


def run(conv: nn.Conv2d, norm: nn.BatchNorm2d, x: torch.Tensor, **options) -> torch.Tensor:
    return ops.conv_bn_relu(
        x,
        conv.weight,
        conv.bias,
        bn_weight=norm.weight,
        bn_bias=norm.bias,
        running_mean=norm.running_mean,
        running_var=norm.running_var,
        padding=1,
        **options,
    )


@torch.no_grad()
@pytest.mark.parametrize(
    "change",
    [
        {"input": cases.feature_map(2, 9, 9, 9)},
        {"input": cases.feature_map(2, 8, 9, 9).double()},
        {"input": cases.feature_map(2, 8, 9, 9)[0, 0]},
        {"input": cases.feature_map(2, 8, 9, 9).tolist()},
        {"input": torch.empty(2, 8, 1, 0)},
        {"residual": torch.zeros(2, 12, 9, 8)},
        {"residual": torch.zeros(2, 12, 9, 9).double()},
        {"residual": 3},
        {"running_mean": 3},
        {"running_mean": None},
        {"running_var": torch.ones(13)},
        {"bias": torch.ones(13)},
        {"groups": 0},
        {"stride": (1, 0)},
        {"activation": "gelu"},
    ],
    ids=lambda change: "-".join(f"{k}={type(v).__name__}" for k, v in change.items()),
)
def test_a_repeated_call_is_checked_as_the_first(layer, change):
    conv, norm = layer
    good = {
        "input": cases.feature_map(2, 8, 9, 9),
        "weight": conv.weight,
        "bias": conv.bias,
        "running_mean": norm.running_mean,
        "running_var": norm.running_var,
        "padding": 1,
    }
    bad = good | change
    with pytest.raises((TypeError, ValueError)) as first:
        ops.conv_bn_relu(bad.pop("input"), bad.pop("weight"), **bad)
    y = ops.conv_bn_relu(**good)
    assert torch.equal(ops.conv_bn_relu(**good), y)
    bad = good | change
    with pytest.raises(first.type, match=re.escape(str(first.value))):
        ops.conv_bn_relu(bad.pop("input"), bad.pop("weight"), **bad)


@torch.no_grad()
@pytest.mark.parametrize("shape", [(2, 32, 8, 7), (2, 32, 4, 4), (1, 32, 8, 8)], ids=str)
def test_a_repeated_call_by_onednn_checks_the_residual(onednn_calls, shape):
    x = cases.feature_map(2, 32, 8, 8, channels_last=True)
    weight = cases.feature_map(32, 32, 1, 1)
    ops.conv_bn_relu(x, weight, residual=torch.zeros(2, 32, 8, 8))
    for images in (x, x[:0]):
        with pytest.raises(ValueError, match="residual"):
            ops.conv_bn_relu(images, weight, residual=torch.zeros(shape))
    assert onednn_calls


@torch.no_grad()
def test_trials_do_not_depend_on_the_default_dtype():
    if _extension.missing or not torch.backends.mkldnn.is_available():
        pytest.skip("needs the compiled library and a torch with oneDNN")
    torch.set_default_dtype(torch.float64)
    try:
        for kind in ("pointwise", "window", "winograd"):
            for run in cpu._trial(kind):
                assert run().dtype == torch.float32
    finally:
        torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize("op", [ops.conv_bn_relu, ops.conv_transpose2d_bn_relu])
def test_a_repeated_call_at_another_cpu_level(op):
    """Whose packed weights are as many, in another order."""
    if _extension.missing:
        pytest.skip(_extension.missing)
    module, before = _extension._C, _extension.cpu_level()
    x, weight = cases.feature_map(1, 64, 5, 5), cases.feature_map(64, 64, 3, 3)
    expected = op(x.double(), weight.double())
    try:
        for level in module.cpu_levels():
            if not can_set(module, level):
                continue
            module.set_cpu_capability(level)
            for _ in range(2):
                assert_matches(op(x, weight), expected, scale=8)
    finally:
        module.set_cpu_capability(before)


def can_set(module, level: str) -> bool:
    levels = module.cpu_levels()
    return levels.index(level) <= levels.index(module.cpu_capability_supported())


def test_a_repeated_call_lets_gradients_through(layer):
    conv, norm = layer
    x = cases.feature_map(2, 8, 9, 9)
    with torch.no_grad():
        run(conv, norm, x)
        run(conv, norm, x)
    y = run(conv, norm, x)
    assert y.requires_grad
    conv.requires_grad_(False), norm.requires_grad_(False)
    assert not run(conv, norm, x).requires_grad
    assert run(conv, norm, x.requires_grad_()).requires_grad
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        assert run(conv, norm, x).dtype == torch.bfloat16
    assert torch.func.vmap(lambda x: run(conv, norm, x))(x[None]).shape == (1, *y.shape)


@torch.no_grad()
def test_a_change_of_the_weights_is_noticed(layer):
    conv, norm = layer
    x = cases.feature_map(2, 8, 9, 9)

    def check() -> None:
        assert_matches(run(conv, norm, x), F.relu(norm(conv(x))), scale=8)

    check()
    for tensor in (conv.weight, conv.bias, norm.weight, norm.bias, norm.running_var):
        tensor.mul_(1.5)  # in place, as optimizers do
        check()
    for _ in range(4):
        conv.weight.data = conv.weight.data * 1.1  # other memory, perhaps where an earlier one was
        check()
    conv.load_state_dict({name: t * 2 for name, t in conv.state_dict().items()})
    check()
    norm.eps = 0.1
    y = run(conv, norm, x, eps=0.1)
    assert_matches(y, F.relu(norm(conv(x))), scale=8)


def test_views_of_the_same_memory_are_told_apart():
    x, weight = cases.feature_map(1, 8, 5, 5), cases.feature_map(4, 8, 1, 1, seed=2)
    values = torch.arange(8.0)
    for bias in (values[:4], values[::2], values[:4]):
        y = ops.conv_bn_relu(x, weight, bias, activation="none")
        assert_matches(y, F.conv2d(x, weight, bias), scale=8)


def test_threads_share_a_weight():
    weight = cases.feature_map(4, 8, 1, 1)
    x = cases.feature_map(1, 8, 3, 3)
    norm = {"running_mean": torch.zeros(4), "running_var": torch.ones(4)}

    def work(thread: int) -> None:
        for i in range(60):  # more purposes than are remembered
            ops.conv_bn_relu(x, weight, eps=1e-5 * (1 + (thread + i) % 12), **norm)

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(work, range(8)))


def test_meta_and_autocast():
    x, weight = torch.empty(2, 8, 9, 9, device="meta"), torch.empty(4, 8, 3, 3, device="meta")
    assert ops.conv_bn_relu(x, weight, padding=1).shape == (2, 4, 9, 9)
    sample = Sample(8, 4, (3, 3))
    with torch.autocast("cpu", torch.bfloat16):
        y = ops.conv_bn_relu(sample.input, sample.weight.bfloat16(), sample.bias)
    assert y.dtype == torch.bfloat16


@torch.no_grad()
def test_weights_are_packed_once_and_forgotten_with_their_layer(layer, monkeypatch):
    if _extension.missing:
        pytest.skip(_extension.missing)
    conv, norm = layer
    folds = []
    fold = reference.fold_batch_norm
    monkeypatch.setattr(reference, "fold_batch_norm", lambda *a: folds.append(0) or fold(*a))
    for size in (9, 5, 9):
        run(conv, norm, cases.feature_map(2, 8, size, size))
    assert len(folds) == 1
    known = len(packing._entries)
    gone = weakref.ref(conv.weight)
    del conv, layer
    gc.collect()
    if gone() is None:  # pytest may hold the fixture
        assert len(packing._entries) == known - 1


def test_weights_made_in_inference_mode(layer):
    """They have no version: nothing may be remembered of them."""
    with torch.inference_mode():
        weight = torch.randn(4, 3, 1, 1)
        x = cases.feature_map(1, 3, 5, 5)
        first = ops.conv_bn_relu(x, weight, activation="none")
        weight.mul_(2)
        assert_matches(ops.conv_bn_relu(x, weight, activation="none"), first * 2)


def arguments(sample: Sample, residual=None, activation: int = 1) -> tuple:
    norm = [sample.norm.get(n) for n in ("bn_weight", "bn_bias", "running_mean", "running_var")]
    window = ((2, 1), (1, 1, 1, 0), (1, 1))
    return (
        sample.input,
        sample.weight,
        sample.bias,
        *norm,
        residual,
        *window,
        sample.groups,
        1e-5,
        activation,
        0.01,
    )


@pytest.mark.parametrize("channels_last", [False, True], ids=["nchw", "channels_last"])
@pytest.mark.parametrize("norm", [True, False])
def test_opcheck(channels_last, norm):
    sample = Sample(4, 6, (3, 3), norm=norm, channels_last=channels_last)
    torch.library.opcheck(OP, arguments(sample))
    residual = in_format(torch.randn(OP(*arguments(sample)).shape), channels_last)
    torch.library.opcheck(OP, arguments(sample, residual, activation=4))


@pytest.mark.parametrize("dynamic", [False, True])
@torch.no_grad()
def test_compile(layer, dynamic):
    conv, norm = layer
    step = torch.compile(
        lambda x: run(conv, norm, x).mul(2), fullgraph=True, dynamic=dynamic, backend="aot_eager"
    )
    for size in (9, 12):
        x = cases.feature_map(2, 8, size, size)
        assert_matches(step(x), F.relu(norm(conv(x))) * 2, scale=8)
    conv.weight.mul_(0.5)
    assert_matches(step(x), F.relu(norm(conv(x))) * 2, scale=8)


@torch.no_grad()
def test_export(layer):
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.norm = layer

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return run(self.conv, self.norm, x)

    model = Model().eval()
    x = cases.feature_map(2, 8, 9, 10)
    sizes = {name: torch.export.Dim.DYNAMIC for name in range(4) if name != 1}
    program = torch.export.export(model, (x,), dynamic_shapes=(sizes,))
    for images, height, width in ((2, 9, 10), (3, 12, 7)):
        x = cases.feature_map(images, 8, height, width)
        assert_matches(program.module()(x), model(x))


def test_vmap(layer):
    conv, norm = layer
    x = cases.feature_map(6, 8, 5, 5).view(3, 2, 8, 5, 5)
    with torch.no_grad():
        mapped = torch.vmap(lambda part: run(conv, norm, part))(x)
        assert_matches(mapped, run(conv, norm, x.flatten(0, 1)).view_as(mapped))


BAD = {
    "input must have 4 dim": {"input": torch.zeros(8, 9)},
    "input must be float16": {"input": torch.zeros(1, 8, 9, 9, dtype=torch.int32)},
    "input must be a Tensor, got str": {"input": "x"},
    "weight must have 4 dim": {"weight": torch.zeros(8)},
    "weight must not be empty": {"weight": torch.zeros(0, 8, 3, 3)},
    "weight must have the type of input": {"weight": torch.zeros(12, 8, 3, 3).double()},
    "input must have 5 channels": {"weight": torch.zeros(12, 5, 3, 3)},
    "bias must have shape \\[12\\]": {"bias": torch.zeros(5)},
    "running_var must have shape \\[12\\], got \\[1\\]": {"running_var": torch.zeros(1)},
    "running_mean and running_var go together": {"running_mean": None},
    "bn_weight and bn_bias need": {"running_mean": None, "running_var": None},
    "activation must be one of": {"activation": "gelu"},
    "stride must be at least 1, got \\(0, 0\\)": {"stride": 0},
    "stride must be at most": {"stride": 2**31},
    "stride must be one or two integers": {"stride": (1, 2, 3)},
    "padding must be at least 0": {"padding": -1},
    "padding must be 'same', 'valid'": {"padding": "full"},
    "padding='same' needs stride 1": {"padding": "same", "stride": 2},
    "dilation must be at least 1": {"dilation": (1, 0)},
    "groups must be at least 1": {"groups": 0},
    "groups must divide the 12 filters": {"groups": 5},
    "does not fit into input": {"dilation": 9},
    "residual must have the result's shape \\[1, 12, 7, 7\\]": {
        "residual": torch.zeros(1, 12, 9, 9)
    },
    "residual must be torch.float32": {"residual": torch.zeros(1, 12, 7, 7).half()},
}


@pytest.mark.parametrize("message", BAD)
def test_bad_arguments(message):
    good = {
        "input": torch.zeros(1, 8, 9, 9),
        "weight": torch.zeros(12, 8, 3, 3),
        "bn_weight": torch.ones(12),
        "running_mean": torch.zeros(12),
        "running_var": torch.ones(12),
    }
    ops.conv_bn_relu(**good)
    with pytest.raises((ValueError, TypeError), match=message):
        ops.conv_bn_relu(**good | BAD[message])


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
