"""A result takes its residual's memory, if nothing else can see it."""

from __future__ import annotations

import sysconfig
import time
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
import torch
import torch.utils.dlpack
from torch import Tensor, nn
from torch.nn import functional as F

import fastvision
from fastvision import _extension
from fastvision.fusion import chains, images
from fastvision.ops.conv import cpu

pytestmark = [
    pytest.mark.skipif(_extension.missing is not None, reason="kernels of the compiled library"),
    pytest.mark.skipif(not images._ALONE, reason="references are not counted here"),
]


@pytest.fixture(autouse=True)
def replaced(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Tensor]]:
    """The residuals whose memory was taken; small ones too."""
    monkeypatch.setattr(images, "_LEAST_REPLACED", 0)
    taken: list[Tensor] = []

    def noted(op: Any) -> Callable[..., None]:
        def run(input: Tensor, packed: Tensor, residual: Tensor, options: Tensor) -> None:
            op(input, packed, residual, options)
            taken.append(residual.detach().clone())

        return run

    monkeypatch.setattr(cpu, "_RUN_IN_PLACE", tuple(map(noted, cpu._RUN_IN_PLACE)))
    yield taken


class Block(nn.Module):
    """As in a ResNet; ``peek`` sees the residual while the block runs."""

    def __init__(self, channels: int, kernel: int, relu: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.first = nn.Conv2d(channels, channels, 1)
        self.conv = nn.Conv2d(channels, channels, kernel, padding=kernel // 2)
        self.norm, self.relu = nn.BatchNorm2d(channels), relu
        self.norm.running_mean.normal_()
        self.peek: Callable[[Tensor], Any] = lambda residual: None

    def forward(self, x: Tensor) -> Tensor:
        self.peek(x)
        y = self.norm(self.conv(self.first(x)))
        y += x
        return self.relu(y)


class Net(nn.Module):
    def __init__(self, channels: int = 8, kernel: int = 1, relu: Any = torch.relu_) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem = nn.Conv2d(channels, channels, 1)
        self.blocks = nn.Sequential(*(Block(channels, kernel, relu) for _ in range(3)))
        self.end = nn.Conv2d(channels, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.end(self.blocks(self.stem(x)))


def check(model: nn.Module, channels: int = 8, size: int = 12) -> nn.Module:
    model = model.eval()
    fused = fastvision.fuse(model)
    x = torch.randn(2, channels, size, size)
    with torch.no_grad():
        for _ in range(2):
            torch.testing.assert_close(fused(x), model(x), rtol=1e-4, atol=1e-4)
    return fused


@pytest.mark.parametrize("kernel", [1, 3])
@pytest.mark.parametrize(
    "relu", [torch.relu_, F.relu, nn.ReLU(inplace=True), nn.ReLU(), F.silu, F.relu6]
)
def test_blocks(kernel: int, relu: Any, replaced: list[Tensor]) -> None:
    fused = fastvision.fuse(Net(32, kernel, relu).eval())
    check(Net(32, kernel, relu), 32)
    replaced.clear()
    with torch.no_grad():
        fused(torch.randn(2, 32, 12, 12))
    assert len(replaced) == 2  # the caller holds the first block's input


def test_of_small_maps_little_memory_is_saved(
    replaced: list[Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(images, "_LEAST_REPLACED", 1 << 20)
    check(Net())
    assert not replaced


class Keep:
    """Holds something of each residual, which must not change."""

    def __init__(self, hold: Callable[[Tensor], Any], read: Callable[[Any], Tensor]) -> None:
        self.hold, self.read, self.kept = hold, read, []

    def __call__(self, x: Tensor) -> None:
        held = self.hold(x)
        self.kept.append((held, self.read(held).clone()))

    def assert_unchanged(self) -> None:
        for held, before in self.kept:
            assert torch.equal(self.read(held), before)


def same(x: Tensor) -> Tensor:
    return x


def _closure(x: Tensor) -> Callable[[], Tensor]:
    return lambda: x


def _generator(x: Tensor) -> Iterator[Tensor]:
    while True:
        yield x


def _of_storage(storage: Any) -> Tensor:
    return torch.empty(0).set_(storage)


HOLDERS: dict[str, tuple[Callable[[Any], Any], Callable[[Any], Tensor]]] = {
    "itself": (same, same),
    "list": (lambda x: [x], lambda held: held[0]),
    "closure": (_closure, lambda held: held()),
    "generator": (_generator, next),
    "view": (lambda x: x[:, :2], same),
    "flat": (lambda x: x.flatten(1), same),
    "detached": (lambda x: x.detach(), same),
    "data": (lambda x: x.data, same),
    "storage": (lambda x: x.untyped_storage(), _of_storage),
    "numpy": (lambda x: x.numpy(), torch.from_numpy),
    "memoryview": (lambda x: memoryview(x.numpy()), lambda held: torch.tensor(held.tolist())),
    "dlpack": (lambda x: torch.from_dlpack(x), same),
    "subclass": (lambda x: x.detach().as_subclass(nn.Parameter), same),
    "parameter": (lambda x: nn.Parameter(x.detach(), requires_grad=False), same),
    "bits": (lambda x: x.view(torch.int32), same),
    "set": (lambda x: torch.empty(0).set_(x), same),
    "windows": (lambda x: x.unfold(1, 2, 2), same),
}

WEAK = (weakref.ref, lambda held: held())


@pytest.mark.parametrize("holder", HOLDERS)
def test_what_is_held_stays(holder: str, replaced: list[Tensor]) -> None:
    hold, read = HOLDERS[holder]
    model = Net().eval()
    fused: Any = fastvision.fuse(model)
    keep = Keep(hold, read)
    fused.blocks[1].peek = keep
    x = torch.randn(2, 8, 12, 12)
    with torch.no_grad():
        for _ in range(2):
            torch.testing.assert_close(fused(x), model(x), rtol=1e-4, atol=1e-4)
    assert len(keep.kept) == 2
    keep.assert_unchanged()
    assert replaced  # those of the other blocks


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_every_reference_counts(mode: Any) -> None:
    with mode():
        for hold, _ in (*HOLDERS.values(), WEAK):
            image = images.new_image(torch.zeros(1, 8, 3, 3), [])
            held, kept = [image], hold(image._memory)
            del image
            assert not images.is_held_alone(held)
            del kept
            assert images.is_held_alone(held)
        for hold, _ in (*HOLDERS.values(), WEAK):
            image = images.new_image(torch.zeros(1, 8, 3, 3), [])
            held, kept = [image], hold(image)
            del image
            assert not images.is_held_alone(held)
            del kept


class Code(nn.Module):
    """``code`` makes a result from the sum of a convolution and a residual that nobody holds."""

    def __init__(self, code: Callable[..., Any], prepare: Any = same) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second, self.third = (nn.Conv2d(8, 8, 1) for _ in range(3))
        self.code, self.prepare = code, prepare
        self.seen: list[Tensor] = []

    def forward(self, x: Tensor) -> Any:
        held = [self.prepare(self.first(x))]
        y = self.second(self.third(x))
        return self.code(self, y + held.pop())


@pytest.mark.parametrize("end", [same, F.relu])
def test_threads_that_share_a_sum(
    end: Any, replaced: list[Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    def code(net: Any, y: Tensor) -> Any:
        y = end(y)
        with ThreadPoolExecutor(3) as pool:
            return list(pool.map(lambda function: function(y), (F.silu, torch.relu, net.third)))

    op, winograd = cpu._RUN_IN_PLACE

    def slow(*args: Any) -> None:  # the other threads come meanwhile
        time.sleep(0.02)
        op(*args)
        time.sleep(0.02)

    monkeypatch.setattr(cpu, "_RUN_IN_PLACE", (slow, winograd))
    model = Code(code).eval()
    fused, x = fastvision.fuse(model), torch.randn(2, 8, 12, 12)
    with torch.no_grad():
        for _ in range(3):
            for actual, expected in zip(fused(x), model(x), strict=True):
                torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-4)
    assert end is same or replaced


@pytest.mark.parametrize("place", [cpu, chains])
def test_interrupt(place: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def code(net: Any, y: Tensor) -> Any:
        y = F.relu(y)
        net.seen.append(y)
        return net.third(y)

    def interrupted(*args: Any) -> Any:
        raise KeyboardInterrupt

    model = Code(code).eval()
    fused: Any = fastvision.fuse(model)
    if place is cpu:
        monkeypatch.setattr(cpu, "_RUN_IN_PLACE", (interrupted, interrupted))
    else:
        monkeypatch.setattr(chains, "is_held_alone", interrupted)
    with torch.no_grad():
        with pytest.raises(KeyboardInterrupt):
            fused(torch.randn(2, 8, 12, 12))
        with pytest.raises(RuntimeError, match="interrupted"):  # not a sum without its residual
            fused.seen[0].sum()


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_memory_of_an_array(mode: Any, replaced: list[Tensor]) -> None:
    array = np.ones((2, 12, 12, 8), np.float32)

    def prepare(residual: Tensor) -> Tensor:
        residual = F.max_pool2d(residual, (2, 1), (1, 1))
        residual.data = torch.from_numpy(array).permute(0, 3, 1, 2)
        return residual

    model = Code(lambda net, y: net.third(torch.relu_(y)), prepare).eval()
    fused, x = fastvision.fuse(model), torch.randn(2, 12, 12, 8).permute(0, 3, 1, 2)
    with mode():
        torch.testing.assert_close(fused(x), model(x), rtol=1e-4, atol=1e-4)
    assert (array == 1).all()
    assert not replaced


def test_gradient_of_a_residual(replaced: list[Tensor]) -> None:
    gradients = []

    def prepare(residual: Tensor) -> Tensor:
        residual = residual.detach().requires_grad_()
        residual.register_hook(gradients.append)
        return residual

    def code(net: Any, y: Tensor) -> Tensor:
        y = F.relu(y)
        assert y.requires_grad
        return y.square().sum()

    model = Code(code, prepare).eval().requires_grad_(False)
    fused, x = fastvision.fuse(model), torch.randn(2, 8, 12, 12)
    for net in (model, fused):
        net(x).backward()
    torch.testing.assert_close(gradients[1], gradients[0], rtol=1e-4, atol=1e-4)


def test_array_of_a_residual(replaced: list[Tensor]) -> None:
    def prepare(residual: Tensor) -> Tensor:
        arrays.append(residual.numpy())
        return residual

    def code(net: Any, y: Tensor) -> Tensor:
        y = F.relu(y)
        array = arrays.pop()
        array += 1  # after the sum
        return y * 2

    arrays: list[Any] = []
    model = Code(code, prepare).eval()
    fused, x = fastvision.fuse(model), torch.randn(2, 8, 12, 12)
    with torch.no_grad():
        for _ in range(2):
            torch.testing.assert_close(fused(x), model(x), rtol=1e-4, atol=1e-4)


def test_python_without_a_lock_counts_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    assert images._alone() == images._ALONE
    monkeypatch.setattr(sysconfig, "get_config_var", {"Py_GIL_DISABLED": 1}.get)
    assert images._alone() == set()
