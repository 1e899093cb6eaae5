"""Calls of conv_bn_relu: repeated, with other weights, in threads, recorded, and wrong ones."""

from __future__ import annotations

import gc
import math
import re
import subprocess
import sys
import weakref
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from fastvision import _extension, ops, reference
from fastvision.ops.conv import packing
from fastvision.testing import cases
from fastvision.testing.backends import LEVELS
from fastvision.testing.conv_bn_relu import Sample
from fastvision.testing.marks import LAYOUTS, needs_library
from fastvision.testing.numerics import assert_matches
from fastvision.testing.tensors import in_format

pytestmark = pytest.mark.usefixtures("poisoned_memory")
OP = torch.ops.fastvision.conv_bn_relu.default


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


@needs_library
@pytest.mark.parametrize("op", [ops.conv_bn_relu, ops.conv_transpose2d_bn_relu])
def test_a_repeated_call_at_another_cpu_level(op, cpu_level):
    """Whose packed weights are as many, in another order."""
    x, weight = cases.feature_map(1, 64, 5, 5), cases.feature_map(64, 64, 3, 3)
    expected = op(x.double(), weight.double())
    for level in LEVELS:
        _extension.set_cpu_level(level)
        for _ in range(2):
            assert_matches(op(x, weight), expected, scale=8)


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


@needs_library
@torch.no_grad()
def test_weights_are_packed_once_and_forgotten_with_their_layer(layer, monkeypatch):
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


@LAYOUTS
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


MEMORY_SCRIPT = """
import re, sys, torch
from fastvision import ops
from fastvision._memory_format import memory_format

def peak():  # getrusage's would be the one of the process that started this one
    return int(re.search(r"VmHWM:\\s+(\\d+)", open("/proc/self/status").read())[1]) * 1024

layout = memory_format(sys.argv[1] == "channels_last")
x = torch.empty(2, 32, 1, 1 << 18, dtype=torch.float16, memory_format=layout).fill_(1)
weight = torch.ones(32, 32, 1, 1).half()
ops.conv_bn_relu(x[..., :8], weight, backend="cpp")  # code is in memory now
before = peak()
held = ops.conv_bn_relu(x, weight, backend="cpp")
print((peak() - before) / x.nbytes)
"""


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_long_rows_are_gathered_in_pieces(cpu_level, layout):
    """A pointwise convolution of 16-bit maps takes no memory of the map's size but the result's."""
    run = subprocess.run(
        [sys.executable, "-c", MEMORY_SCRIPT, layout], capture_output=True, text=True, check=True
    )
    assert 0.9 < float(run.stdout) < 1.25


@pytest.mark.parametrize("kernel, stride", [(1, 1), (3, 2)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_large_results_pass_the_caches(cpu_level, dtype, kernel, stride):
    """From 24 MiB on results are stored past the caches, if their pixels are whole cache lines."""
    line = 64 // dtype.itemsize
    for K, activation in ((line, "relu"), (line, "silu"), (line - 3, "relu6")):
        side = stride * math.isqrt((25 << 20) // 64)
        x = torch.randn(1, 3, side, side, dtype=dtype).contiguous(memory_format=torch.channels_last)
        weight = torch.randn(K, 3, kernel, kernel, dtype=dtype)
        window = {"stride": stride, "padding": kernel // 2}
        expected = reference.activate(F.conv2d(x, weight, **window), activation, 0.01)
        for level in LEVELS:
            _extension.set_cpu_level(level)
            y = ops.conv_bn_relu(x, weight, **window, activation=activation, backend="cpp")
            assert_matches(y, expected)
