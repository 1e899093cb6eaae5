"""A fused model stays what it was: its classes, methods, code, inputs and outputs."""

from __future__ import annotations

import copy
import dataclasses
import pickle
import threading
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import fastvision
from fastvision.testing.fusion import assert_alike, check_as_is, conv, image, kinds, norm

BN_RELU = "Conv2d + BatchNorm2d + relu"


class Net(nn.Module):
    """With what other code relies on: methods, attributes, a registry of sub-classes."""

    registry: ClassVar[list[type]] = []

    def __init_subclass__(cls, **options: Any) -> None:
        Net.registry.append(cls)

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(conv(), norm(), nn.ReLU(), conv(6, 6), nn.ReLU())
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(6, 5)
        self.classes, self.scale = list("abcde"), 1.0

    def forward(self, x: Tensor) -> Tensor:
        x = self.pool(self.body(x))
        return self.fc(x.view(x.size(0), -1)) * self.scale

    def embed(self, x: Tensor) -> Tensor:
        return self.body(x).flatten(1)


@torch.no_grad()
def test_class_methods_and_attributes_stay():
    model = Net().eval()
    before = type(model), dict(vars(model)), list(Net.registry), list(model.state_dict())
    fused = check_as_is(model, image())
    assert isinstance(fused, Net) and isinstance(fused.body, nn.Sequential)
    for name, module in model.named_modules():
        assert isinstance(fused.get_submodule(name), type(module))
    assert repr(type(fused)) == repr(type(model))
    assert fused.classes == model.classes
    assert_alike(fused.embed(image()), model.embed(image()))
    model.scale = fused.scale = 10.0
    assert_alike(fused(image()), model(image()))
    model.scale = 1.0
    assert (type(model), dict(vars(model)), Net.registry, list(model.state_dict())) == before
    assert all(p.requires_grad for p in model.parameters())
    assert list(fused.state_dict()) == list(model.state_dict())


@torch.no_grad()
def test_checkpoints_of_the_model_load():
    model, other = Net().eval(), Net().eval()
    fused = check_as_is(model, image())
    fused.load_state_dict(other.state_dict())
    assert_alike(fused(image()), other(image()))
    fused.body[0].weight = nn.Parameter(model.body[0].weight.detach() * 2)
    other.body[0].weight = fused.body[0].weight
    assert_alike(fused(image()), other(image()))
    fused.body[1].running_mean.add_(1)
    other.body[1].running_mean.add_(1)
    assert_alike(fused(image()), other(image()))
    fused.double(), other.double()
    assert_alike(fused(image().double()), other(image().double()))


class Cached(nn.Module):
    cache: ClassVar[dict[str, Tensor]] = {}

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = conv(), norm()

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.norm(self.conv(x)))
        if "scale" not in self.cache:
            self.cache["scale"] = torch.arange(y.shape[1]).view(1, -1, 1, 1) * 1.0
        try:
            n = int(x.shape[2])
        except TypeError:
            n = 1
        return y * self.cache["scale"] * n


def test_caches_of_the_class_and_exceptions():
    model = Cached().eval()
    fastvision.fuse(model)
    assert not Cached.cache
    fused = check_as_is(model, image())
    assert type(Cached.cache["scale"]) is Tensor
    assert kinds(fused) == {BN_RELU: 1}


def run_all(layers: nn.Module, x: Tensor) -> Tensor:
    if isinstance(layers, nn.Sequential):
        layers = layers.children()
    for layer in layers:
        x = layer(x)
    return x


class Checkpointing(nn.Module):
    """A type test stands in branches that inference does not take."""

    def __init__(self) -> None:
        super().__init__()
        self.grad_checkpointing = False
        self.layers = nn.Sequential(conv(), norm(), nn.SiLU())

    def info(self) -> None:
        assert not [m for m in self.layers if isinstance(m, nn.Conv2d)]

    def forward(self, x: Tensor, *args: Any, profile: bool = False) -> Tensor:
        if profile:
            self.info()
        x = run_all(self.layers, x) if self.grad_checkpointing else self.layers(x)
        return x.mean((2, 3))


def test_branches_that_inference_does_not_take():
    model = Checkpointing()
    fused = check_as_is(model, image())
    assert kinds(fused) == {"Conv2d + BatchNorm2d + silu": 1}
    model.grad_checkpointing = True
    assert kinds(check_as_is(model, image())) == {"Conv2d + BatchNorm2d + silu": 1}


class Routed(nn.Module):
    """Layers carry the places that their inputs come from."""

    class Block(nn.Module):
        def __init__(self, source: int) -> None:
            super().__init__()
            self.conv, self.norm, self.source = conv(6, 6), norm(), source

        def forward(self, x: Tensor) -> Tensor:
            return torch.relu(self.norm(self.conv(x)) + x)

    def __init__(self) -> None:
        super().__init__()
        self.model = nn.ModuleList([self.Block(-1), self.Block(0), self.Block(0)])

    def forward(self, x: Tensor) -> Tensor:
        seen: list[Tensor] = []
        for block in self.model:
            x = block(x if block.source < 0 else seen[block.source])
            seen.append(x)
        return x


def test_attributes_that_other_code_reads_from_a_layer():
    fused = check_as_is(Routed(), image(2, 6, 9, 9))
    assert kinds(fused) == {"Conv2d + BatchNorm2d + add + relu": 3}
    assert kinds(fused) == kinds(pickle.loads(pickle.dumps(fused)))


class Odd(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x if x.sum() > 0 else -x


class Dense(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight, self.bias)


def test_neighbours_that_nobody_knows():
    layers = conv(), norm(), nn.ReLU(), conv(6, 6), norm(), nn.ReLU(), Odd()
    assert kinds(check_as_is(nn.Sequential(*layers), image())) == {BN_RELU: 2}
    head = nn.AdaptiveAvgPool2d(1), nn.Flatten(), Dense(6, 2)
    fused = check_as_is(nn.Sequential(*layers, *head), image())
    assert kinds(fused) == {BN_RELU: 2}
    report = fused.fastvision_report
    assert report.channels_last
    assert [name for name, _ in report.skipped] == ["9"]
    assert "Dense computes something else than Linear" in report.skipped[0][1]


@torch.no_grad()
def test_maps_of_one_pixel():
    class Upsampled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.pool = nn.Sequential(conv(), nn.ReLU(), conv(6, 6), nn.AdaptiveAvgPool2d(1))

        def forward(self, x: Tensor, *args: Any) -> Tensor:
            return F.interpolate(self.pool(x), size=(4, 4), mode="bilinear")

    fused = check_as_is(Upsampled(), image())
    assert_alike(fused.pool(image()), fastvision.fuse(fused).pool(image()))
    assert fused.pool(image()).stride() == (6, 1, 1, 1)


@pytest.mark.parametrize(
    "build, size, kind",
    [
        (lambda: (nn.Conv3d(3, 6, 3, padding=1), norm(6, nn.BatchNorm3d)), (2, 3, 5, 6, 7), "3d"),
        (lambda: (nn.Conv1d(3, 6, 3, stride=2), norm(6, nn.BatchNorm1d)), (2, 3, 20), "1d"),
    ],
)
def test_other_dimensions(build, size, kind):
    fused = check_as_is(nn.Sequential(*build(), nn.ReLU()), image(*size))
    assert kinds(fused) == {f"Conv{kind} + BatchNorm{kind} + relu": 1}


@dataclasses.dataclass
class Output:
    maps: list[Tensor]
    named: dict[str, Tensor]
    best: Tensor | None = None


class Structured(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.norm = conv(3, 6), conv(6, 6), norm()

    def forward(self, batch: dict[str, Any]) -> Output:
        x = self.a(batch["images"][0])
        y = self.norm(self.b(x))
        batch["seen"] = y
        batch["images"].append(x)
        return Output([x, F.relu(y)], {"raw": y}, best=y.amax((2, 3)))


@torch.no_grad()
def test_structured_inputs_and_outputs():
    model = Structured().eval()
    fused = fastvision.fuse(model)
    theirs, ours = ({"images": [image()], "name": "a"} for _ in range(2))
    expected, actual = model(theirs), fused(ours)
    for a, e in zip(
        (*actual.maps, actual.named["raw"], actual.best, ours["seen"], *ours["images"]),
        (*expected.maps, expected.named["raw"], expected.best, theirs["seen"], *theirs["images"]),
        strict=True,
    ):
        assert_alike(a, e)
    assert ours.keys() == theirs.keys()


@torch.no_grad()
def test_values_behave_as_tensors_in_the_models_code():
    """Whatever the code does with what a convolution gives, before it is computed or after."""

    def forward(self, x):
        y = self.conv(x)
        assert isinstance(y, Tensor) and torch.is_tensor(y)
        assert (
            y.shape == (2, 6, 12, 14) and y.size(1) == 6 and y.dim() == y.ndim == 4 and len(y) == 2
        )
        assert y.dtype == torch.float32 and y.device.type == "cpu" and not y.requires_grad
        first, second = y
        assert first.stride() == second.stride() == (168, 14, 1)
        assert y.numpy().shape == tuple(y.shape) and y.tolist()[0][0][0][0] == y[0, 0, 0, 0].item()
        buffer = torch.zeros(3, 6, 12, 14)
        buffer[:2] = F.relu(self.conv(x))
        buffer[2] = y[0]
        z = copy.deepcopy(self.norm(y))
        saved = pickle.loads(pickle.dumps(self.norm(y)))
        assert type(saved) is Tensor
        return (
            torch.stack([z.clone(), saved, -self.norm(y), y / 2, 1 - y, y**2, abs(y)]) + buffer[0]
        )

    model = type("Net", (nn.Module,), {"forward": forward})()
    model.conv, model.norm = conv(), norm()
    check_as_is(model, image())


@torch.no_grad()
def test_threads_share_a_fused_model():
    model = Net().eval()
    fused = fastvision.fuse(model)
    inputs = [image(1 + i % 3, 3, 8 + i, 9, seed=i) for i in range(8)]
    expected = [model(x) for x in inputs]
    results: list[Any] = [None] * len(inputs)

    def work(i: int) -> None:
        with torch.no_grad():
            for _ in range(5):
                results[i] = fused(inputs[i])

    threads = [threading.Thread(target=work, args=(i,)) for i in range(len(inputs))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for actual, e in zip(results, expected, strict=True):
        assert_alike(actual, e)


def test_example_inputs_complete_the_report():
    model = Net()
    report = fastvision.fuse(model).fastvision_report
    assert report.waiting == len(report.fused) == 3
    report = fastvision.fuse(model, example_inputs=(image(),)).fastvision_report
    assert report.waiting == 0
    assert report.counts() == {BN_RELU: 1, "Conv2d + relu": 1, "Linear": 1}
    with pytest.raises(TypeError, match="example_inputs must be a tuple"):
        fastvision.fuse(model, example_inputs=image())


def test_planning_does_not_depend_on_the_models_size_squared():
    """A look per module: fuse() of many chains calls nothing that looks at all modules for each."""
    looks = []

    class Counted(nn.Sequential):
        def children(self):
            looks.append(0)
            return super().children()

        def named_modules(self, *args: Any, **kwargs: Any):
            looks.append(0)
            return super().named_modules(*args, **kwargs)

    def build(n: int) -> nn.Module:
        return nn.Sequential(*(Counted(conv(3, 3, 1), norm(3), nn.ReLU()) for _ in range(n)))

    counts = []
    for n in (10, 40):
        looks.clear()
        fastvision.fuse(build(n))
        counts.append(len(looks))
    assert counts[1] <= 4 * max(counts[0], 10)
