"""Large results of torch's functions in memory of our choice: the same values and strides."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import fastvision
from fastvision import _extension
from fastvision.ops import _huge_pages
from fastvision.testing import cases
from fastvision.testing.tensors import in_format

WINDOWS = [(2,), (3, 2, 1), (2, 2, 0, 1, True), ((2, 3), (2, 1), (1, 0), (1, 2), False), (2, ())]


def maps(channels_last: bool, dtype: torch.dtype = torch.float32) -> Tensor:
    """[1, 64, 150, 141]: 5 MiB in float32."""
    return in_format(cases.feature_map(1, 64, 150, 141).to(dtype), channels_last)


def assert_same(actual: Tensor, expected: Tensor) -> None:
    assert actual.stride() == expected.stride() and actual.dtype == expected.dtype
    assert torch.equal(actual, expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("channels_last", [False, True])
def test_enlarged(channels_last: bool, dtype: torch.dtype):
    x = maps(channels_last, dtype)
    for size in ((300, 282), (299, 400), (150, 141), (3, 2)):
        assert_same(_huge_pages.enlarged(x, size), F.interpolate(x, size, mode="nearest"))


@pytest.mark.parametrize("window", WINDOWS, ids=str)
@pytest.mark.parametrize("channels_last", [False, True])
def test_max_pool2d(channels_last: bool, window: tuple[object, ...]):
    x = maps(channels_last)
    x[0, 3, 50, 60] = float("nan")
    actual, expected = _huge_pages.max_pool2d(x, *window), torch.max_pool2d(x, *window)
    assert expected.isnan().any()
    assert_same(actual.nan_to_num(7), expected.nan_to_num(7))


def test_matmul():
    a, b = torch.rand(20, 300, 30), torch.rand(20, 30, 400)
    assert_same(_huge_pages.matmul(a, b), a @ b)
    assert_same(_huge_pages.matmul(a, b[0]), a @ b[0])
    assert_same(_huge_pages.matmul(a[0, 0], b), a[0, 0] @ b)


def test_gradients():
    x = maps(True).requires_grad_()
    for function in (lambda: _huge_pages.enlarged(x, (300, 282)), lambda: pooled(x)):
        (grad,) = torch.autograd.grad(function().sum(), x)
        assert grad.sum() > 0
    a = torch.rand(20, 300, 30, requires_grad=True)
    assert _huge_pages.matmul(a, torch.rand(20, 30, 400)).requires_grad


def pooled(x: Tensor) -> Tensor:
    return _huge_pages.max_pool2d(x, 3, 2, 1)


def test_transforms_and_autocast():
    x = maps(True)
    mapped = torch.vmap(lambda x: _huge_pages.enlarged(x, (300, 282)))(x[None])
    assert torch.equal(mapped[0], F.interpolate(x, (300, 282)))
    _, tangent = torch.func.jvp(pooled, (x,), (torch.ones_like(x),))
    assert tangent.eq(1).all()
    with torch.autocast("cpu"):
        a, b = torch.rand(20, 300, 30), torch.rand(20, 30, 400)
        assert _huge_pages.matmul(a, b).dtype == torch.bfloat16


class Pyramid(nn.Module):
    """A convolution, a pooling and an enlargement, each of them large."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.pool = nn.Conv2d(3, 64, 3, padding=1), nn.MaxPool2d(3, 2, 1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = self.stem(x)
        small = self.pool(x)
        return small, x + F.interpolate(small, size=x.shape[-2:], mode="nearest")


@pytest.mark.parametrize("channels_last", [False, True])
def test_fused_models(channels_last: bool, monkeypatch: pytest.MonkeyPatch):
    asked = []
    monkeypatch.setattr(_extension, "ask_for_huge_pages", lambda *block: asked.append(block))
    model, x = Pyramid().eval(), in_format(torch.rand(1, 3, 300, 282), channels_last)
    fused = fastvision.fuse(model)
    with torch.inference_mode():
        for actual, expected in zip(fused(x), model(x), strict=True):
            assert type(actual) is Tensor and actual.stride() == expected.stride()
            torch.testing.assert_close(actual, expected)
    assert len(asked) == 3  # maxima, their indices, the enlargement


FUNCTIONS = {
    "enlarged": lambda: _huge_pages.enlarged(X, (600, 564)),
    "max_pool2d": lambda: _huge_pages.max_pool2d(X, 1),
    "matmul": lambda: _huge_pages.matmul(A, B),
}
X, A, B = torch.rand(1, 64, 300, 282), torch.rand(20, 900, 30), torch.rand(20, 30, 900)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_results_ask_for_huge_pages(name: str, monkeypatch: pytest.MonkeyPatch):
    asked = []
    monkeypatch.setattr(_extension, "ask_for_huge_pages", lambda *block: asked.append(block))
    result = FUNCTIONS[name]()
    assert (result.data_ptr(), result.nbytes) in asked
