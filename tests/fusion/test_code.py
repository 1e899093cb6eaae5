"""Code that does what fusing must not lose: the copy's results are the model's."""

from __future__ import annotations

import types
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import fastvision
from fastvision.testing.fusion import (
    BN,
    SIDE,
    adversary,
    assert_same,
    check,
    conv,
    image,
    kinds,
    net,
    randomized,
)

pytestmark = pytest.mark.usefixtures("one_thread", "small_weights_are_packed")


def add_after(self, x):
    return self.act(self.norm(self.conv(x)) + x)


class ValueDependent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(conv(), nn.BatchNorm2d(6), nn.ReLU())
        self.head = nn.Sequential(conv(6, 3), nn.ReLU())

    def forward(self, x):
        x = self.body(x)
        return self.head(x) if x.sum() > 0 else self.head(-x)


def test_value_dependent_model():
    fused = check(ValueDependent())
    assert kinds(fused) == {f"{BN} + relu": 1, "Conv2d + relu": 1}


class Taps(nn.Module):
    """Takes values from inside its children, in code that cannot be traced."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential()
        self.stem.conv, self.stem.norm = conv(6, 3), nn.BatchNorm2d(3)
        self.body = nn.Sequential(conv(), nn.BatchNorm2d(6), nn.ReLU())
        self.read = nn.Sequential(conv(6, 6), nn.BatchNorm2d(6))

    def forward(self, x):
        taps = []
        for layer in self.body:
            x = layer(x)
            if x.sum() != 0:
                taps.append(x)
        y = self.stem.conv(taps[-1])
        return [*taps, y, self.stem(x), self.read(x) * self.read[0].weight.sum()]


def test_code_that_reaches_into_its_children():
    fused = check(Taps())
    assert kinds(fused) == {"Conv2d": 2, BN: 2}


class Stateful(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.seen = conv(), []

    def forward(self, x):
        self.last = F.relu(self.conv(x))
        self.seen.append(self.last)
        return sum(self.seen)


def test_forward_that_changes_attributes():
    model = Stateful()
    fused = fastvision.fuse(model)
    assert not hasattr(fused, "last") and not fused.seen
    with torch.no_grad():
        for seed in (1, 2):
            assert_same(fused(image(seed=seed)), model(image(seed=seed)))


def test_option_of_the_model():
    """The copy takes options of forward that are not the default."""

    def forward(self, x, features=False):
        y = F.relu(self.norm(self.conv(x)))
        return y if features else y.mean((2, 3))

    model = randomized(net(forward, conv=conv(), norm=nn.BatchNorm2d(6)))
    fused = check(model)
    with torch.no_grad():
        assert_same(fused(image(), features=True), model(image(), features=True))
    assert kinds(fused) == {f"{BN} + relu": 1}


def norm_called_twice(self, x):
    return self.act(self.norm(x)) + self.norm(2 * x)


def attributes_are_read(self, x):
    y = self.act(self.norm(self.conv(x)))
    return y.reshape(len(y), self.conv.out_channels, -1) * self.norm.num_features


def norm_is_read(self, x):
    return self.act(self.norm(self.conv(x))) * self.norm.weight.sum() + self.norm.running_mean.sum()


def size_is_added(self, x):
    return F.relu(self.conv(x) + x.shape[0])


def item_is_added(self, x):
    return F.relu(self.conv(x) + x.mean().item())


def add_in_place_promotes(self, x):
    y = self.conv(x.float())
    y += x.double()
    return F.relu(y)


def named_arguments(self, x):
    return self.act(input=self.norm(input=self.conv(input=x)))


def power_in_place(self, x):
    y = self.conv(x)
    z = y
    z **= 2
    return F.relu(y)


def hooked_container_in_place(self, x):
    x = torch.tanh(x)
    y = self.norm(self.conv(x))
    return F.relu(y + self.hooked(x))


CODE = [
    *(norm_called_twice, attributes_are_read, norm_is_read, size_is_added, item_is_added),
    *(add_in_place_promotes, named_arguments, power_in_place, hooked_container_in_place),
]


@pytest.mark.parametrize("forward", CODE, ids=lambda f: f.__name__)
def test_code_is_kept(forward: Callable[..., Any]) -> None:
    check(adversary(forward))


def untraceable(call: Callable[..., Any]) -> Callable[..., Any]:
    def forward(self, x):
        return call(self, x) if x.sum() > -1e9 else x

    return forward


def test_arguments_of_layers_in_code_that_cannot_be_traced():
    up = nn.ConvTranspose2d(3, 3, 3, stride=2, padding=1)
    for size in ([23, 28], (24, 27)):
        check(net(untraceable(lambda self, x, size=size: self.up(x, size)), up=up))
        check(net(untraceable(lambda self, x, s=size: self.up(input=x, output_size=s)), up=up))
    check(net(untraceable(lambda self, x: self.fc(input=x)), fc=nn.Linear(14, 3)))
    check(net(untraceable(lambda self, x: self.conv(x) * self.conv.groups), conv=conv()))


def test_norm_shared_by_children_traced_apart():
    norm = nn.BatchNorm2d(3)
    layers = {"a": nn.Sequential(norm, nn.ReLU()), "b": nn.Sequential(norm, nn.Tanh())}
    check(net(untraceable(lambda self, x: self.a(x) + self.b(x)), **layers))


def test_in_place_addition_keeps_the_dtype():
    def forward(self, x, residual):
        y = self.conv(x)
        y += residual
        return F.relu(y)

    model = net(forward, conv=conv(3, 3)).bfloat16()
    check(model, image().bfloat16(), image(seed=1))


@pytest.mark.parametrize("index", [0, 1, 2])
def test_forward_of_an_instance(index: int) -> None:
    model = nn.Sequential(conv(3, 3), nn.BatchNorm2d(3), nn.ReLU(), conv(3, 3))
    model[index].forward = lambda x: x * 3
    check(model)
    model = nn.Sequential(adversary(add_after), conv(3, 3))
    model[0].forward = types.MethodType(lambda self, x: F.relu(self.conv(x) - x), model[0])
    check(model)


def test_a_frozen_norm_of_another_kind():
    class FrozenBatchNorm2d(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.eps = 0.0
            for name in ("weight", "bias", "running_mean", "running_var"):
                self.register_buffer(name, torch.ones(6))

        def forward(self, x):  # by the deviation rather than the variance
            return (x - self.running_mean.view(6, 1, 1)) / self.running_var.view(6, 1, 1)

    check(nn.Sequential(conv(), FrozenBatchNorm2d(), nn.ReLU()))


def option_that_steers(self, x, raw=False):
    y = self.conv(x)
    if raw:
        return y
    return self.act(self.norm(y))


def none_that_steers(self, x, scale):
    y = self.conv(x)
    y = self.norm(y) if scale is None else y * scale
    return self.act(y)


@pytest.mark.parametrize("channels_last", [None, False])
def test_parameters_that_steer(channels_last: bool | None) -> None:
    layers = {name: build() for name, build in SIDE.items()}
    model = net(option_that_steers, **layers)
    for option in (True, False):
        check(model, image(), option, channels_last=channels_last)
        call = untraceable(lambda self, x, raw=option: self.model(x, raw=raw))
        check(net(call, model=model), channels_last=channels_last)
    for scale in (None, torch.tensor(2.0)):
        check(net(none_that_steers, **layers), image(), scale, channels_last=channels_last)


def taps_of_activations(self, x):
    taps = []
    for layer in self.layers:
        x = layer(x)
        if isinstance(layer, nn.ReLU):
            taps.append(x)
    return taps


@pytest.mark.parametrize("forward", [taps_of_activations])
def test_code_that_asks_for_the_types_of_layers(forward: Callable[..., Any]) -> None:
    def outer(self, x):
        return forward(self, x if x.sum() != 0 else -x)

    for code in (forward, outer):
        layers = conv(), nn.BatchNorm2d(6), nn.ReLU(), conv(6, 6), nn.ReLU()
        check(net(code, layers=nn.Sequential(*layers)))


def test_code_outside_that_asks_for_the_type_of_a_layer():
    def forward(self, x):
        return self.conv(x) if isinstance(self.conv, nn.Conv2d) and x.sum() != 0 else x

    check(net(forward, conv=conv()))


def asks_isinstance(self, x):
    return F.relu(self.conv(x)) if isinstance(x, Tensor) else self.conv(x[0])


def asks_is_tensor(self, x):
    return self.conv(x) if torch.is_tensor(x) else self.act(self.norm(self.conv(x)))


def asks_grad_mode(self, x):
    return self.conv(x) if not torch.is_grad_enabled() else F.relu(self.norm(self.conv(x)))


def counts(self, x):
    self.count += 1
    return self.act(self.conv(x)) * self.count


def counts_by_method(self, x):
    self.count.add_(1)
    return F.relu(self.conv(x) + x) * self.count


def counts_in_the_dark(self, x):
    self._buffers["count"].add_(1)
    return F.relu(self.conv(x) + x) * self.count


def counts_in_a_list(self, x):
    self.held[0].add_(1)
    return F.relu(self.conv(x) + x) * self.held[0]


TRACED_WRONG = [asks_isinstance, asks_is_tensor, asks_grad_mode]
TRACED_WRONG += [counts, counts_by_method, counts_in_the_dark, counts_in_a_list]


@pytest.mark.parametrize("forward", TRACED_WRONG, ids=lambda f: f.__name__)
def test_code_that_looks_outside_the_graph(forward: Callable[..., Any]) -> None:
    model = randomized(adversary(forward))
    fused = fastvision.fuse(model)
    assert model.count == fused.count == 0
    with torch.no_grad():
        for seed in range(3):
            assert_same(fused(image(seed=seed)), model(image(seed=seed)))
    if forward is asks_grad_mode:
        assert_same(fused(image()).detach(), model(image()).detach())


def random_number(self, x):
    return F.relu(self.conv(x) + x) * torch.rand(()).item()


def random_tensor(self, x):
    return F.relu(self.conv(x) + x) * torch.rand(3, 1, 1)


@pytest.mark.parametrize("forward", [random_number, random_tensor])
def test_random_numbers_stay_random(forward: Callable[..., Any]) -> None:
    model = randomized(adversary(forward))
    state = torch.get_rng_state()
    fused = fastvision.fuse(model)
    assert torch.equal(torch.get_rng_state(), state)
    for _ in range(2):
        state = torch.get_rng_state()
        expected = model(image())
        torch.set_rng_state(state)
        assert_same(fused(image()), expected)


def test_code_without_source():
    scope: dict[str, Any] = {"F": F, "Tensor": Tensor}
    exec("def forward(self, x):\n    return F.relu(self.norm(self.conv(x)) + x)", scope)
    fused = check(adversary(scope["forward"]))
    assert kinds(fused) == {f"{BN} + add + relu": 1}


def without_gradient(self, x):
    with torch.no_grad():
        y = F.relu(self.norm(self.conv(x)))
    return y * x


def in_bfloat16(self, x):
    with torch.autocast("cpu", torch.bfloat16):
        y = self.conv(x)
    return self.act(self.norm(y.float()))


def test_contexts_are_kept():
    model = randomized(adversary(without_gradient))
    fused = fastvision.fuse(model)
    mine, theirs = image().requires_grad_(), image().requires_grad_()
    fused(mine).sum().backward()
    model(theirs).sum().backward()
    assert_same(mine.grad, theirs.grad)
    model = randomized(adversary(in_bfloat16))
    with torch.no_grad():
        actual, expected = fastvision.fuse(model)(image()), model(image())
    torch.testing.assert_close(actual, expected, rtol=0, atol=0.05)
