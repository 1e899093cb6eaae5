"""How a GPU's implementation of a convolution is chosen and remembered: no GPU is needed."""

from __future__ import annotations

import json
import logging
import stat
from pathlib import Path

import pytest
import torch
from torch import Tensor

from fastvision import _device
from fastvision.ops.conv import gpu as dispatch
from fastvision.ops.conv import tuning
from fastvision.testing import cases
from fastvision.testing.numerics import assert_matches


class Clock:
    """Gives every candidate the time that ``seconds`` says, and counts its calls."""

    def __init__(self, **seconds: float) -> None:
        self.seconds = seconds
        self.calls: list[str] = []
        self.timed: list[str] = []

    def candidates(self, **results: Tensor | Exception) -> dict:
        def make(name: str):
            def call() -> Tensor:
                self.calls.append(name)
                result = results.get(name, torch.ones(2, 3))
                if isinstance(result, Exception):
                    raise result
                return result

            call.candidate = name
            return call

        return {name: make(name) for name in self.seconds}

    def __call__(self, call) -> float:
        self.timed.append(call.candidate)
        return self.seconds[call.candidate]


def choose(clock: Clock, file: Path | None = None, **results: Tensor | Exception) -> str:
    return tuning.Tuner(file, clock).choose("a key", clock.candidates(**results))


def test_takes_the_fastest_in_turns():
    clock = Clock(torch=3.0, cudnn=2.0, triton=1.0)
    assert choose(clock) == "triton"
    assert clock.timed == ["torch", "cudnn", "triton"] * tuning.ROUNDS


def test_keeps_an_earlier_candidate_within_the_noise():
    assert choose(Clock(torch=1.0, triton=0.99)) == "torch"
    assert choose(Clock(torch=1.0, triton=0.9)) == "triton"


def test_the_only_candidate_is_not_timed():
    clock = Clock(torch=1.0)
    assert choose(clock) == "torch"
    assert not clock.calls


@pytest.mark.parametrize(
    "result",
    [
        RuntimeError("no engine"),
        torch.full((2, 3), float("nan")),
        torch.full((2, 3), 1.2),
        torch.ones(3, 2),
        torch.ones(2, 3, dtype=torch.float64),
    ],
    ids=["fails", "nan", "wrong", "shape", "dtype"],
)
def test_leaves_out_what_fails_or_is_wrong(result, caplog):
    with caplog.at_level(logging.DEBUG, tuning.__name__):
        assert choose(Clock(torch=2.0, triton=1.0), triton=result) == "torch"
    assert "triton" in caplog.text


def test_remembers_in_memory_and_on_disk(tmp_path):
    file = tmp_path / "folder" / "choices.json"
    clock = Clock(torch=2.0, triton=1.0)
    tuner = tuning.Tuner(file, clock)
    assert tuner.known("a key") is None
    assert tuner.choose("a key", clock.candidates()) == "triton"
    timed = len(clock.timed)
    assert tuner.choose("a key", clock.candidates()) == tuner.known("a key") == "triton"
    assert tuning.Tuner(file, clock).choose("a key", clock.candidates()) == "triton"
    assert len(clock.timed) == timed
    assert json.loads(file.read_text()) == {"choices": {"a key": "triton"}}
    assert [path.name for path in file.parent.iterdir()] == [file.name]


def test_chooses_again_if_the_choice_is_gone(tmp_path):
    file = tmp_path / "choices.json"
    choose(Clock(torch=2.0, triton=1.0), file)
    assert choose(Clock(torch=2.0, cudnn=1.0), file) == "cudnn"


def test_processes_add_to_one_file(tmp_path):
    file = tmp_path / "choices.json"
    clock = Clock(torch=2.0, triton=1.0)
    first, second = tuning.Tuner(file, clock), tuning.Tuner(file, clock)
    first.choose("one", clock.candidates())
    second.choose("two", clock.candidates())
    assert json.loads(file.read_text())["choices"] == {"one": "triton", "two": "triton"}


@pytest.mark.parametrize("text", ["", "not json", "[]", '{"choices": 3}', "{}", "null", "\xff"])
def test_unreadable_cache(tmp_path, text):
    file = tmp_path / "choices.json"
    file.write_bytes(text.encode("latin-1"))
    assert choose(Clock(torch=2.0, triton=1.0), file) == "triton"
    assert json.loads(file.read_text())["choices"] == {"a key": "triton"}


def test_cache_that_cannot_be_written(tmp_path):
    occupied = tmp_path / "a file"
    occupied.write_text("")
    # root may write anywhere: the folder cannot be made either way
    assert choose(Clock(torch=2.0, triton=1.0), occupied / "choices.json") == "triton"
    assert choose(Clock(torch=2.0, triton=1.0), tmp_path) == "triton"
    read_only = tmp_path / "read only"
    read_only.mkdir()
    read_only.chmod(stat.S_IRUSR | stat.S_IXUSR)
    assert choose(Clock(torch=2.0, triton=1.0), read_only / "choices.json") == "triton"


def test_cache_folder(monkeypatch, tmp_path):
    monkeypatch.delenv("FASTVISION_CACHE_DIR", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert tuning.cache_folder() == tmp_path / "fastvision"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert tuning.cache_folder() == tmp_path / ".cache" / "fastvision"
    monkeypatch.setenv("FASTVISION_CACHE_DIR", str(tmp_path / "own"))
    assert dispatch.tuning_file(torch.device("cpu")).parent == tmp_path / "own"
    monkeypatch.setenv("FASTVISION_CACHE_DIR", "")
    assert tuning.cache_folder() is None
    assert dispatch.tuning_file(torch.device("cpu")) is None


def problem(
    C: int = 8, K: int = 8, taps: int = 3, groups: int = 1, dtype: torch.dtype = torch.float32
) -> dispatch.Problem:
    def values(*shape: int, seed: int) -> Tensor:
        return torch.randn(*shape, generator=cases.generator(seed)).to(dtype)

    pad = taps // 2
    return dispatch._prepared(
        values(2, C, 5, 6, seed=1).contiguous(memory_format=torch.channels_last),
        values(K, C // groups, taps, taps, seed=2) / taps,
        None,
        values(K, seed=3),
        values(K, seed=4),
        values(K, seed=5),
        values(K, seed=6).abs() + 0.5,
        values(2, K, 5, 6, seed=7),
        *([1, 1], [pad] * 4, [1, 1], groups, 1e-3, 1, 0.01),
    )


@pytest.fixture
def no_choices(monkeypatch):
    monkeypatch.setattr(dispatch, "_chosen", {})
    monkeypatch.setattr(dispatch, "_measured", {})
    if _device.triton_missing() is not None or not _device.triton_interpreted():
        pytest.skip("needs Triton's interpreter")


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.usefixtures("no_choices", "poisoned_memory")
@pytest.mark.parametrize("groups", [1, 8], ids=["dense", "depthwise"])
@pytest.mark.parametrize("wanted", ["torch", "triton"])
def test_chooses_among_kernels(groups, wanted):
    """Torch's convolution on the CPU and interpreted kernels, checked on random data."""

    def seconds(call) -> float:
        call()
        return 1.0 if (call.func is dispatch._torch) == (wanted == "torch") else 2.0

    p = problem(groups=groups)
    tuner = tuning.Tuner(None, seconds)
    chosen = dispatch._choose(p, tuner)
    name = tuner.known(str(dispatch._key(p)[1:]))
    assert name.split()[0].split("_")[0] == wanted
    assert dispatch._chosen[dispatch._key(p)] is chosen
    wide = [t.double() if isinstance(t, Tensor) else t for t in p]
    expected = dispatch.reference.conv_bn_relu(*wide[:13], "relu", 0.01)
    assert_matches(chosen(p), expected)


def test_keys_tell_problems_apart():
    p = problem()
    others = [
        problem(K=16),
        problem(taps=1),
        problem(groups=8),
        problem(dtype=torch.float16),
        p._replace(input=p.input.contiguous()),
        p._replace(residual=None),
        p._replace(running_mean=None),
        p._replace(activation=0),
        p._replace(stride=[1, 2]),
        p._replace(dilation=[1, 2]),
        p._replace(padding=[1, 1, 1, 2]),
    ]
    assert len({dispatch._key(q) for q in [p, *others]}) == len(others) + 1
    # what is not about speed makes no difference
    assert dispatch._key(p._replace(negative_slope=0.5, eps=0.1)) == dispatch._key(p)


@pytest.mark.parametrize("bias", [False, True])
def test_epilogue_without_triton(bias, monkeypatch):
    monkeypatch.setattr(_device, "triton_missing", lambda: "not installed")
    p = problem(dtype=torch.float16)
    if bias:
        p = p._replace(bias=torch.randn(8).half())
    assert list(dispatch.candidates(p)) == ["torch"]
    wide = [t.double() if isinstance(t, Tensor) else t for t in p]
    expected = dispatch.reference.conv_bn_relu(*wide[:13], "relu", 0.01)
    # the convolution is rounded before the normalization
    assert_matches(dispatch._torch(p), expected, scale=2)


def test_folded_weights_give_the_same():
    p = problem(taps=1)
    weight, bias = dispatch._folded(p)
    y = torch.conv2d(p.input, weight, bias) + p.residual
    wide = [t.double() if isinstance(t, Tensor) else t for t in p]
    assert_matches(y.relu(), dispatch.reference.conv_bn_relu(*wide[:13], "relu", 0.01))


@pytest.mark.usefixtures("no_choices")
def test_ever_new_sizes_are_not_measured(monkeypatch):
    monkeypatch.setattr(dispatch, "MAX_SIZES", 2)
    fake = {"torch": dispatch._torch, "triton 1": lambda p: dispatch._torch(p)}
    monkeypatch.setattr(dispatch, "candidates", lambda p: fake)
    p = problem()
    timed = []

    def seconds(call) -> float:
        images = len(call.args[0].input)
        timed.append(images)
        # one image is faster with torch, many are with Triton
        return 1.0 if (call.func is dispatch._torch) == (images == 1) else 2.0

    def chosen(images: int) -> str:
        input = p.input.repeat(images, 1, 1, 1)[:images]
        residual = p.residual.repeat(images, 1, 1, 1)[:images]
        candidate = dispatch._choose(p._replace(input=input, residual=residual), tuner)
        return next(name for name, other in fake.items() if other is candidate)

    tuner = tuning.Tuner(None, seconds)
    assert [chosen(images) for images in (1, 16, 2, 6)] == ["torch", "triton 1"] * 2
    assert set(timed) == {1, 16}


@pytest.mark.usefixtures("no_choices")
def test_nothing_is_measured_during_capture(monkeypatch):
    monkeypatch.setattr(dispatch, "_capturing", lambda: True)
    p = problem()
    name = str(dispatch._key(p)[1:])

    def seconds(call) -> float:
        raise AssertionError("timed")

    tuner = tuning.Tuner(None, seconds)
    assert dispatch._choose(p, tuner) is dispatch._torch
    tile = list(dispatch.candidates(p))[-1]
    tuner._choices[name] = tile
    assert dispatch._choose(p, tuner).func is dispatch._triton
    tuner._choices[name] = "cudnn"  # not here
    assert dispatch._choose(p, tuner) is dispatch._torch
    assert not dispatch._chosen


def test_going_by_another_size():
    choices = {"torch": dispatch._torch, "cudnn": dispatch._cudnn, "triton 2": dispatch._triton}
    assert dispatch._unmeasured("cudnn", choices).keywords == {"search": False}
    assert dispatch._unmeasured("triton 1", choices) is dispatch._triton
    assert dispatch._unmeasured("triton 1", {"torch": dispatch._torch}) is dispatch._torch
    assert dispatch._unmeasured("cuda_depthwise", choices) is dispatch._torch


@pytest.mark.usefixtures("no_choices")
def test_without_memory_nothing_is_kept(tmp_path):
    def seconds(call) -> float:
        raise torch.OutOfMemoryError("full")

    file = tmp_path / "choices.json"
    p = problem()
    assert dispatch._choose(p, tuning.Tuner(file, seconds)) is dispatch._torch
    assert dispatch._chosen[dispatch._key(p)] is dispatch._torch
    assert not file.exists()
