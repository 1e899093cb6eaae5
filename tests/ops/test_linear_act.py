"""linear_act against the reference in float64."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from fastvision import _extension, reference
from fastvision.ops import linear_act
from fastvision.ops.conv import linear
from fastvision.reference import ACTIVATIONS
from fastvision.testing import cases
from fastvision.testing.backends import LEVELS
from fastvision.testing.numerics import assert_matches

pytestmark = pytest.mark.usefixtures("small_weights_are_packed")


def values(*shape: int, seed: int = 0) -> Tensor:
    return cases.feature_map(*shape, seed=seed)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("shape", [(7,), (1, 7), (5, 7), (2, 3, 7), (600, 7), (0, 7)], ids=str)
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_forward(activation: str, shape: tuple[int, ...], dtype: torch.dtype) -> None:
    x, w, b = values(*shape).to(dtype), values(4, 7, seed=1).to(dtype), values(4, seed=2).to(dtype)
    for bias in (b, None):
        options = {"activation": activation, "negative_slope": 0.2}
        actual = linear_act(x, w, bias, **options)
        exact = [None if t is None else t.double() for t in (x, w, bias)]
        expected = reference.linear_act(*exact, **options)
        assert actual.dtype == dtype
        assert_matches(actual, expected, scale=0.5)


@pytest.mark.parametrize("activation", ["none", "relu", "relu6", "silu"])
def test_keeps_nan(activation: str) -> None:
    x, w = values(5, 16), values(8, 16, seed=1)
    x[2, 3] = float("nan")
    y = linear_act(x, w, activation=activation)
    assert torch.equal(y.isnan(), F.linear(x, w).isnan())


def test_strides() -> None:
    x, w = values(5, 16), values(8, 16, seed=1)
    for bias in (torch.ones(1).expand(8), values(16)[::2]):
        y = linear_act(x, w, bias, activation="none")
        torch.testing.assert_close(y, F.linear(x, w, bias))
    for rows in (x[:1].expand(5, 16), values(5, 32)[:, ::2], values(16, 5).T):
        y = linear_act(rows, w, activation="none")
        torch.testing.assert_close(y, F.linear(rows, w))


@pytest.mark.parametrize("features", [1, 512, 513, 521, 1024, 1042, 2050])
def test_of_many_features(features: int) -> None:
    """Features are split among taps; a prime number of them is not."""
    x, w = values(7, features), values(20, features, seed=1)
    y = linear_act(x, w, activation="none")
    tolerance = 1e-6 * features**0.5 * w.abs().max().item() * x.abs().max().item()
    torch.testing.assert_close(y, F.linear(x, w), rtol=0, atol=tolerance)


def test_lets_tangents_through() -> None:
    x, w = values(5, 16), values(8, 16, seed=1)
    for f, argument in ((lambda t: (t, w), x), (lambda t: (x, t), w)):
        run = lambda t, f=f: linear_act(*f(t), activation="none")  # noqa: E731
        _, tangent = torch.func.jvp(run, (argument,), (argument,))
        torch.testing.assert_close(tangent, F.linear(x, w))


def test_without_outputs() -> None:
    assert linear_act(values(5, 16), torch.empty(0, 16)).shape == (5, 0)


def test_notices_changes_of_the_weight() -> None:
    x = values(5, 16)
    with torch.inference_mode():
        made_in_inference = values(8, 16, seed=1).clone()
    for w in (values(8, 16, seed=1), made_in_inference):
        for factor in (1.0, 2.0, -3.0):
            with torch.inference_mode(w.is_inference()):
                w.mul_(factor)
                y = linear_act(x, w, activation="none")
                torch.testing.assert_close(y, F.linear(x, w))
    w = values(8, 16, seed=1)
    for _ in range(8):
        w.data = w.data * 1.5  # other memory, perhaps where an earlier one was
        y = linear_act(x, w, activation="none")
        torch.testing.assert_close(y, F.linear(x, w))


def test_opcheck():
    op = torch.ops.fastvision.linear_act.default
    for bias in (values(4), None):
        torch.library.opcheck(op, (values(5, 7), values(4, 7), bias, 1, 0.0))


@pytest.mark.parametrize(
    "arguments, error",
    [
        ((values(5, 7), values(4, 6)), ValueError),
        ((values(5, 7), values(4, 7), values(3)), ValueError),
        ((values(5, 7), values(4, 7).double()), TypeError),
        ((values(5, 7).long(), values(4, 7).long()), TypeError),
        ((None, values(4, 7)), TypeError),
    ],
)
def test_bad_arguments(arguments: Any, error: type[Exception]) -> None:
    with pytest.raises(error):
        linear_act(*arguments)
    with pytest.raises(ValueError, match="activation"):
        linear_act(values(5, 7), values(4, 7), activation="gelu")


@pytest.mark.skipif(_extension.missing is not None, reason="needs the compiled library")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("features", [1, 7, 32, 100])
@pytest.mark.parametrize("rows", [1, 2, 3])
@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.usefixtures("cpu_level")
def test_few_rows(level: str, rows: int, features: int, dtype: torch.dtype) -> None:
    _extension.set_cpu_level(level)
    x = values(rows, features).to(dtype)
    for outputs in (1, 4, 23):
        w, b = (values(outputs, *size, seed=1).to(dtype) for size in ((features,), ()))
        for bias in (b, None):
            y = torch.ops.fastvision.linear_rows(x, w, bias, ACTIVATIONS.index("relu"), 0.0)
            exact = [None if t is None else t.double() for t in (x, w, bias)]
            assert_matches(y, reference.linear_act(*exact, activation="relu"), scale=0.5)


@pytest.mark.skipif(_extension.missing is not None, reason="needs the compiled library")
def test_few_rows_are_checked() -> None:
    x, w = values(2, 8), values(5, 8, seed=1)
    for arguments in (
        (values(4, 8), w, None, 0, 0.0),
        (x[:0], w, None, 0, 0.0),
        (x[:, :7].contiguous(), w, None, 0, 0.0),
        (x.double(), w, None, 0, 0.0),
        (x, w[:, ::2], None, 0, 0.0),
        (x, w, values(4), 0, 0.0),
        (x, w, values(5, 1), 0, 0.0),
        (x, w, None, 99, 0.0),
    ):
        with pytest.raises(RuntimeError, match="must|unknown"):
            torch.ops.fastvision.linear_rows(*arguments)


def test_few_rows_read_the_weight_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []
    read_once = linear._is_read_once
    monkeypatch.setattr(
        linear, "_is_read_once", lambda *args: calls.append(read_once(*args)) or calls[-1]
    )
    at_once: list[int] = []
    rows = linear._LINEAR_ROWS
    monkeypatch.setattr(
        linear, "_LINEAR_ROWS", lambda x, *rest: at_once.append(len(x)) or rows(x, *rest)
    )
    w = values(5, 16, seed=1)
    for x in (values(16), values(3, 16), values(4, 16), values(0, 16), values(2, 32)[:, ::2]):
        torch.testing.assert_close(linear_act(x, w, activation="none"), F.linear(x, w))
    if _extension.missing is None:
        assert calls == [True, False, False]
        assert at_once == [3, 2]
