"""What only a GPU can show of convolution: each candidate on real tensors, tuning, graphs, size."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from torch import Tensor

from fastvision import _device, ops, reference
from fastvision.ops.conv import gpu as dispatch
from fastvision.reference.activations import ACTIVATIONS
from fastvision.testing.marks import LAYOUTS
from fastvision.testing.numerics import CONVOLUTION_DTYPES, assert_matches
from fastvision.testing.tensors import dtype_id

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.usefixtures("poisoned_memory"),
]
DTYPES = pytest.mark.parametrize("dtype", CONVOLUTION_DTYPES, ids=dtype_id)
# of tolerance: a reduction of hundreds of products whose weights may be rounded once more (cuDNN's
# fused forms), or the sum before the normalization (its plain one)
ROUNDED_TWICE = 4


@pytest.fixture(autouse=True)
def own_choices(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """Nothing of other tests or of the user's cache, and float32 means float32."""
    monkeypatch.setenv("FASTVISION_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(dispatch, "_chosen", {})
    monkeypatch.setattr(dispatch, "_measured", {})
    dispatch._tuner.cache_clear()
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    # poisoned_memory asks for deterministic algorithms, with which cuDNN would not search
    monkeypatch.setattr(dispatch, "_deterministic", lambda: False)
    yield
    dispatch._tuner.cache_clear()


@dataclass(frozen=True)
class Case:
    C: int
    K: int
    H: int
    taps: int
    stride: int = 1
    groups: int = 1
    activation: str = "relu"
    residual: bool = False
    padding: tuple[int, ...] | None = None
    dilation: int = 1
    N: int = 2

    def problem(
        self, dtype: torch.dtype = torch.bfloat16, channels_last: bool = True
    ) -> dispatch.Problem:
        g = torch.Generator("cuda").manual_seed(0)

        def values(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=g, device="cuda").to(dtype)

        pad = list(self.padding or [self.dilation * (self.taps // 2)] * 4)
        steps, dilation = [self.stride] * 2, [self.dilation] * 2
        input = values(self.N, self.C, self.H, self.H + 3)
        if channels_last:
            input = input.contiguous(memory_format=torch.channels_last)
        C, K = self.C // self.groups, self.K
        weight = values(K, C, self.taps, self.taps) / (C * self.taps**2) ** 0.5
        norm = [values(K) for _ in range(3)] + [values(K).abs() + 0.5]
        p = dispatch.Problem(
            *(input, weight, None, *norm, None, steps, pad, dilation, self.groups, 1e-5),
            *(ACTIVATIONS.index(self.activation), 0.1),
        )
        return p._replace(residual=values(*p.output_shape)) if self.residual else p


CASES = {
    "1x1": Case(64, 256, 14, 1, residual=True),
    "1x1_plain": Case(256, 64, 14, 1),
    "1x1_stride_2": Case(64, 128, 15, 1, stride=2),
    "3x3": Case(64, 64, 14, 3),
    "3x3_residual": Case(128, 128, 7, 3, residual=True),
    "3x3_stride_2": Case(32, 64, 15, 3, stride=2),
    "3x3_silu": Case(40, 48, 13, 3, activation="silu"),
    "few_pixels": Case(512, 512, 7, 3, N=1),
    "first_layer": Case(3, 64, 61, 7, stride=2),
    "odd_channels": Case(37, 50, 11, 3),
    "dilated": Case(32, 32, 15, 3, dilation=3),
    "asymmetric": Case(16, 24, 12, 3, stride=2, padding=(0, 1, 2, 0)),
    "groups": Case(64, 128, 14, 3, groups=4),
    "small_groups": Case(64, 64, 14, 3, groups=16, residual=True),
    "depthwise": Case(144, 144, 28, 3, groups=144, activation="relu6"),
    "depthwise_residual": Case(64, 64, 15, 3, stride=2, groups=64, residual=True),
    "depthwise_5": Case(72, 72, 14, 5, stride=2, groups=72, activation="hardswish"),
    "depthwise_7": Case(96, 96, 14, 7, groups=96, activation="none"),
    "depthwise_asymmetric": Case(24, 24, 13, 3, groups=24, stride=2, padding=(0, 1, 0, 1)),
    "depthwise_odd": Case(7, 14, 9, 3, groups=7),
}


def expected(p: dispatch.Problem) -> Tensor:
    wide = [t.double() if isinstance(t, Tensor) else t for t in p[:13]]
    return reference.conv_bn_relu(*wide, ACTIVATIONS[p.activation], p.negative_slope)


@LAYOUTS
@DTYPES
@pytest.mark.parametrize("name", CASES)
def test_every_candidate(name: str, dtype: torch.dtype, channels_last: bool) -> None:
    p = dispatch._prepared(*CASES[name].problem(dtype, channels_last))
    wanted = expected(p)
    found = dispatch.candidates(p)
    assert "torch" in found
    failed = []
    for candidate, run in found.items():
        torch.full_like(wanted, float("nan"), dtype=dtype)  # what the result's memory held before
        try:
            output = run(p)
        except RuntimeError as error:
            # cuDNN refuses some of its fused forms; ours must not fail
            assert candidate.startswith("cudnn"), error
            failed.append(candidate)
            continue
        assert output.dtype == dtype and output.stride() == p.empty_output().stride(), candidate
        assert_matches(output, wanted, scale=ROUNDED_TWICE)
    assert len(failed) < len(found) - 1 or len(found) == 1


@DTYPES
@pytest.mark.parametrize("name", CASES)
def test_own_kernels_round_once(name: str, dtype: torch.dtype) -> None:
    p = dispatch._prepared(*CASES[name].problem(dtype))
    for candidate, run in dispatch.candidates(p).items():
        if candidate.startswith(("triton", "cuda")):
            assert_matches(run(p), expected(p))


def test_candidates_of_a_depthwise_convolution() -> None:
    if (reason := _device.cuda_kernels_missing(0)) is not None:
        pytest.skip(reason)
    p = dispatch._prepared(*CASES["depthwise"].problem())
    assert {"cuda_depthwise", "triton_depthwise"} <= set(dispatch.candidates(p))


@DTYPES
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("groups", [1, 32], ids=["dense", "depthwise"])
def test_activations(groups: int, activation: str, dtype: torch.dtype) -> None:
    case = Case(32, 32, 9, 3, groups=groups, activation=activation, residual=True)
    p = dispatch._prepared(*case.problem(dtype))
    for run in dispatch.candidates(p).values():
        assert_matches(run(p), expected(p), scale=ROUNDED_TWICE)


def test_choice_is_kept_on_disk(tmp_path: Path) -> None:
    args = CASES["3x3"].problem()
    first = dispatch.run(*args)
    file = dispatch.tuning_file(args.input.device)
    assert file.parent == tmp_path
    choices = json.loads(file.read_text())["choices"]
    assert len(choices) == 1
    # another process
    dispatch._chosen.clear()
    dispatch._tuner.cache_clear()
    assert torch.equal(dispatch.run(*args), first)
    assert json.loads(file.read_text())["choices"] == choices


@pytest.mark.parametrize("backend", [None, "triton"])
@LAYOUTS
def test_public_function(backend: str | None, channels_last: bool) -> None:
    p = CASES["3x3_residual"].problem(channels_last=channels_last)
    output = ops.conv_bn_relu(
        p.input, p.weight, bn_weight=p.bn_weight, bn_bias=p.bn_bias, running_mean=p.running_mean,
        running_var=p.running_var, residual=p.residual, padding=1, backend=backend,
    )  # fmt: skip
    assert_matches(output, expected(p), scale=ROUNDED_TWICE)


def test_float64_and_empty() -> None:
    p = CASES["3x3"].problem(torch.float64)
    assert_matches(dispatch.run(*p), expected(p))
    p = CASES["3x3"].problem()
    assert dispatch.run(*p._replace(input=p.input[:0])).shape == (0, 64, 14, 17)


@pytest.mark.parametrize("warm", [True, False], ids=["warm", "first call"])
@pytest.mark.parametrize("name", ["3x3", "1x1", "few_pixels", "depthwise"])
def test_in_a_graph(name: str, warm: bool) -> None:
    p = CASES[name].problem()
    other = CASES[name].problem()
    if not warm:
        # libraries and the pointwise kernel are set up; the choice of this problem is not
        dispatch._torch(dispatch._prepared(*p))
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        if warm:
            dispatch.run(*p)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        output = dispatch.run(*p)
    p.input.copy_(other.input.flip(0))
    graph.replay()
    assert_matches(output, expected(p), scale=ROUNDED_TWICE)


def test_does_not_wait_for_the_device() -> None:
    p = CASES["3x3_residual"].problem()
    dispatch.run(*p)
    torch.cuda.set_sync_debug_mode("error")
    try:
        dispatch.run(*p)
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_misaligned_input() -> None:
    p = CASES["depthwise"].problem()
    memory = torch.empty(p.input.numel() + 1, device="cuda", dtype=p.input.dtype)
    shifted = memory[1:].as_strided(p.input.shape, p.input.stride()).copy_(p.input)
    assert_matches(dispatch.run(*p._replace(input=shifted)), expected(p), scale=ROUNDED_TWICE)


@pytest.mark.parametrize("groups", [1, 16], ids=["dense", "depthwise"])
def test_beyond_32_bit_offsets(groups: int) -> None:
    """Input and output of more than 2**31 elements; the last image is compared."""
    if torch.cuda.get_device_properties(0).total_memory < 40 << 30:
        pytest.skip("needs 40 GiB of device memory")
    case = Case(16, 16, 1024, 3, groups=groups, N=129)
    p = dispatch._prepared(*case.problem(torch.float16))
    assert p.input.numel() > 2**31
    last = p._replace(input=p.input[-1:])
    wanted = expected(last)
    for name, run in dispatch.candidates(p).items():
        if name.startswith(("triton", "cuda")):
            assert_matches(run(p)[-1:], wanted)


@DTYPES
def test_compiled_model(dtype: torch.dtype) -> None:
    p = CASES["3x3"].problem(dtype)

    def layer(x: Tensor) -> Tensor:
        return ops.conv_bn_relu(
            x, p.weight, bn_weight=p.bn_weight, bn_bias=p.bn_bias, running_mean=p.running_mean,
            running_var=p.running_var, padding=1,
        )  # fmt: skip

    compiled = torch.compile(layer, fullgraph=True)
    assert_matches(compiled(p.input), expected(p), scale=ROUNDED_TWICE)
