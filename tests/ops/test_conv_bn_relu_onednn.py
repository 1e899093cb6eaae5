"""conv_bn_relu by oneDNN, which large convolutions take on CPUs with AVX-512."""

from __future__ import annotations

import pytest
import torch

from fastvision import _extension, ops
from fastvision._memory_format import memory_format
from fastvision.ops.conv import cpu, onednn
from fastvision.reference import ACTIVATIONS
from fastvision.testing import cases
from fastvision.testing.conv_bn_relu import Sample
from fastvision.testing.marks import LAYOUTS
from fastvision.testing.numerics import assert_matches

pytestmark = pytest.mark.usefixtures("poisoned_memory")


@pytest.fixture
def onednn_calls(monkeypatch) -> list[int]:
    """What large ones do on CPUs with AVX-512, for all of them and wherever torch has oneDNN; an
    item for each convolution."""
    if _extension.missing or not torch.backends.mkldnn.is_available():
        pytest.skip("needs the compiled library and a torch with oneDNN")
    monkeypatch.setattr(onednn, "_fast_dtypes", lambda level: (torch.float32,))
    monkeypatch.setattr(cpu, "_MIN_ONEDNN_TERMS", 0)
    monkeypatch.setattr(cpu, "_MIN_ONEDNN_WORK", 0)
    calls: list[int] = []
    convolution = onednn.convolution
    monkeypatch.setattr(onednn, "convolution", lambda *a: calls.append(0) or convolution(*a))
    return calls


@LAYOUTS
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
    format = memory_format(channels_last)
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


@torch.no_grad()
@pytest.mark.parametrize(
    ("channels", "size", "window", "by_onednn"),
    [
        ((512, 512), 20, {}, True),
        ((512, 512), 19, {}, False),  # fewer multiply-adds
        ((508, 512), 24, {}, False),  # fewer terms
        ((256, 1024), 20, {}, True),  # but many filters
        ((256, 1020), 24, {}, False),
        ((252, 1024), 24, {}, False),
        ((512, 512), 40, {"kernel": 3, "stride": 2, "padding": 1}, True),
        ((64, 512), 40, {"kernel": 3, "stride": 2, "padding": 1}, False),  # Winograd
        ((512, 512), 20, {"kernel": 3, "padding": 1}, False),
    ],
)
def test_large_convolutions(onednn_calls, monkeypatch, channels, size, window, by_onednn):
    monkeypatch.undo()
    monkeypatch.setattr(onednn, "_fast_dtypes", lambda level: (torch.float32,))
    convolution = onednn.convolution
    monkeypatch.setattr(onednn, "convolution", lambda *a: onednn_calls.append(0) or convolution(*a))
    kernel = window.pop("kernel", 1)
    C, K = channels
    x = cases.feature_map(1, C, size, size, channels_last=True)
    weight = cases.feature_map(K, C, kernel, kernel)
    y = ops.conv_bn_relu(x, weight, **window)
    assert bool(onednn_calls) == by_onednn
    plain = torch.conv2d(x.double(), weight.double(), **window)
    assert (y - plain.relu()).abs().max() < 1e-5 * plain.relu().max()
    calls, residual = len(onednn_calls), torch.ones_like(y)
    for _ in range(2):  # sums run on the engine, the repeated one, too
        y = ops.conv_bn_relu(x, weight, residual=residual, **window)
        assert (y - (plain + 1).relu()).abs().max() < 1e-5 * plain.relu().max()
    assert len(onednn_calls) == calls


def test_onednn_with_strided_bias(onednn_calls):
    sample = Sample(16, 20, (3, 3), norm=False)
    for sample.bias in (torch.randn(40)[::2], torch.ones(1).expand(20)):
        assert_matches(sample(), sample.expected(), scale=2)
    assert len(onednn_calls) == 2


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


def inside_by_hand(length, taps, stride, before, dilation, outputs):
    reads = [o * stride - before + t * dilation for o in range(outputs) for t in range(taps)]
    return sum(0 <= at < length for at in reads) / len(reads)


@pytest.mark.parametrize("window", [(1, 12, 12), (2, 3, 6), (1, 2, 2), (3, 7, 5), (2, 40, 36)])
def test_dilation_into_the_padding(monkeypatch, window):
    """oneDNN runs it where few of the taps' reads are of the map."""
    if _extension.missing or not onednn.is_available():
        pytest.skip("needs the compiled library and a torch with oneDNN")
    calls = []
    convolution = onednn.convolution
    monkeypatch.setattr(onednn, "convolution", lambda *a: calls.append(0) or convolution(*a))
    monkeypatch.setattr(onednn, "_fast_dtypes", lambda level: ())
    stride, padding, dilation = window
    sample = Sample(16, 20, (3, 3))
    options = {"stride": stride, "padding": padding, "dilation": dilation, "activation": "relu"}
    y = sample(**options)
    assert_matches(y, sample.expected(**options), scale=2)
    share = 1.0
    for length, outputs in zip(sample.input.shape[2:], y.shape[2:], strict=True):
        share *= inside_by_hand(length, 3, stride, padding, dilation, outputs)
    assert len(calls) == (share < cpu._MIN_INSIDE)
