"""Functions and additions in a model's code, and layers that must not be fused."""

from __future__ import annotations

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
    Scaled,
    assert_same,
    check,
    conv,
    image,
    kinds,
    net,
    randomized,
    reasons,
)

pytestmark = pytest.mark.usefixtures("one_thread", "small_weights_are_packed")


def in_functions(self, x):
    x = F.relu(self.norm(self.conv(x)), inplace=True)
    return torch.relu_(self.second(x))


def add_after(self, x):
    return self.act(self.norm(self.conv(x)) + x)


def add_before(self, x):
    return self.act(torch.add(x, self.norm(self.conv(x))))


def add_in_place(self, x):
    y = self.norm(self.conv(x))
    y += x
    return self.act(y)


def add_two_branches(self, x):
    y = self.norm(self.conv(x))
    return F.relu(y + self.side(x))


def add_broadcasts(self, x):
    return self.conv(x) + x.mean((2, 3), keepdim=True)


def add_to_a_pooled_one(self, x):
    return torch.relu(self.conv(F.adaptive_avg_pool2d(x, 1)) + x)


def add_scaled(self, x):
    return torch.add(self.conv(x), x, alpha=2)


def add_number(self, x):
    return self.conv(x) + 1


def add_itself(self, x):
    y = self.conv(x)
    return y + y


def add_promotes(self, x):
    return self.conv(x) + x.double()


def residual_is_written_to(self, x):
    x = x * 1
    x += self.conv(x)
    return x


def residual_is_written_to_and_read(self, x):
    x = x * 1
    alias = x
    x += self.conv(x)
    return F.relu(alias * 2)


def input_changes_before_the_addition(self, x):
    x = x * 1
    y = self.conv(x)
    x.mul_(2)
    return y + x


def input_changes_through_a_view(self, x):
    x = x * 1
    view = x.flatten(1)
    y = self.conv(x)
    view.zero_()
    return y + 3 * x


def used_before_the_norm(self, x):
    y = self.conv(x)
    return self.norm(y) + y


def used_before_the_activation(self, x):
    y = self.norm(self.conv(x))
    return self.act(y).sum() + y


def in_place_and_used(self, x):
    y = self.norm(self.conv(x))
    z = F.relu(y, inplace=True)
    return z + 2 * y


def all_of_them(self, x):
    y = self.conv(x)
    return {"raw": y, "done": [self.act(self.norm(y))]}


FUNCTIONS: dict[str, tuple[Callable[..., Any], dict[str, int]]] = {
    "functions": (in_functions, {f"{BN} + relu": 1, "Conv2d + relu": 1}),
    "residual": (add_after, {f"{BN} + add + relu": 1}),
    "residual first": (add_before, {f"{BN} + add + relu": 1}),
    "residual in place": (add_in_place, {f"{BN} + add + relu": 1}),
    "two branches": (add_two_branches, {f"{BN} + add + relu": 1, "Conv2d": 1}),
    "broadcasting residual": (add_broadcasts, {"Conv2d": 1}),
    "broadcasting result": (add_to_a_pooled_one, {"Conv2d": 1}),
    "promoting residual": (add_promotes, {"Conv2d": 1}),
    "alpha": (add_scaled, {"Conv2d": 1}),
    "number": (add_number, {"Conv2d": 1}),
    "doubled": (add_itself, {"Conv2d": 1}),
    "written residual": (residual_is_written_to, {"Conv2d": 1}),
    "written alias": (residual_is_written_to_and_read, {"Conv2d": 1}),
    "written input": (input_changes_before_the_addition, {"Conv2d": 1}),
    "written view of the input": (input_changes_through_a_view, {"Conv2d": 1}),
    "norm and others": (used_before_the_norm, {"Conv2d": 1, f"{BN} + add": 1}),
    "activation and others": (used_before_the_activation, {f"{BN} + relu": 1, BN: 1}),
    "in place and others": (in_place_and_used, {f"{BN} + relu": 1}),
    "several results": (
        all_of_them,
        {"Conv2d": 1, f"{BN} + relu": 1, "BatchNorm2d + relu": 1},
    ),
}


@pytest.mark.parametrize("channels_last", [None, True])
@pytest.mark.parametrize("name", FUNCTIONS)
def test_function(name: str, channels_last: bool | None) -> None:
    forward, expected = FUNCTIONS[name]
    layers = {name: build() for name, build in SIDE.items()}
    if forward is in_functions:
        layers["second"] = conv(3, 4)
    if forward is add_two_branches:
        layers["side"] = conv(3, 3)
    fused = check(net(forward, **layers), channels_last=channels_last)
    assert kinds(fused) == expected


@pytest.mark.parametrize(
    "options",
    [
        {"kernel_size": 2, "stride": 2},
        {"kernel_size": 4, "stride": 2, "padding": 1, "bias": False},
        {"kernel_size": 3, "stride": 2, "output_padding": 1, "groups": 2},
        {"kernel_size": 3, "stride": (1, 2), "dilation": 2},
    ],
    ids=str,
)
def test_transposed(options: dict[str, Any]) -> None:
    layer = nn.ConvTranspose2d(4, 6, **options)
    fused = check(nn.Sequential(conv(3, 4), layer, nn.BatchNorm2d(6), nn.ReLU()))
    assert kinds(fused) == {"Conv2d": 1, "ConvTranspose2d + BatchNorm2d + relu": 1}


def test_one_convolution_with_two_norms():
    def forward(self, x):
        return self.first(self.conv(x)) + self.second(self.conv(x))

    layers = {"conv": conv(3, 3), "first": nn.BatchNorm2d(3), "second": nn.BatchNorm2d(3)}
    fused = check(net(forward, **layers))
    assert kinds(fused) == {BN: 1, f"{BN} + add": 1}


def test_one_convolution_many_calls():
    def forward(self, x):
        return [F.relu(self.norm(self.conv(t))) for t in (x, x[:, :, ::2], x[..., 1:])]

    fused = check(net(forward, conv=conv(), norm=nn.BatchNorm2d(6)))
    assert kinds(fused) == {f"{BN} + relu": 1}


def test_one_activation_for_all():
    def forward(self, x):
        x = self.act(self.norm(self.conv(x)))
        return self.act(self.last(x)) - self.act(x * 2)

    layers = {"conv": conv(3, 3), "norm": nn.BatchNorm2d(3), "last": conv(3, 3), "act": nn.ReLU()}
    assert kinds(check(net(forward, **layers))) == {f"{BN} + relu": 1, "Conv2d + relu": 1}


def test_block_called_twice():
    def block(self, x):
        return F.relu(self.norm(self.conv(x)) + x)

    def forward(self, x):
        return self.block(self.block(x))

    fused = check(net(forward, block=net(block, conv=conv(3, 3), norm=nn.BatchNorm2d(3))))
    assert kinds(fused) == {f"{BN} + add + relu": 1}


def test_block_called_in_different_ways():
    def block(self, x, skip=None):
        y = self.norm(self.conv(x))
        return F.relu(y if skip is None else y + skip)

    def forward(self, x):
        return self.block(self.block(x), skip=x)

    fused = check(net(forward, block=net(block, conv=conv(3, 3), norm=nn.BatchNorm2d(3))))
    assert kinds(fused) == {f"{BN} + relu": 1, f"{BN} + add + relu": 1}


def test_shared_between_paths():
    shared = conv(3, 3)

    def forward(self, x):
        return self.a(x) + self.b(x)

    layers = {
        "a": nn.Sequential(shared, nn.BatchNorm2d(3)),
        "b": nn.Sequential(shared, nn.ReLU()),
    }
    fused = check(net(forward, **layers))
    assert kinds(fused) == {"Conv2d + relu": 1, f"{BN} + add": 1}


def test_tied_weights():
    def forward(self, x):
        return F.relu(self.a(x)) + self.norm(self.b(x))

    model = net(forward, a=conv(3, 3), b=conv(3, 3), norm=nn.BatchNorm2d(3))
    model.b.weight = model.a.weight
    assert kinds(check(model)) == {"Conv2d + relu": 1, BN + " + add": 1}


def test_weight_read_elsewhere():
    def forward(self, x):
        return self.norm(self.conv(x)) * self.conv.weight.sum()

    fused = check(net(forward, conv=conv(3, 3), norm=nn.BatchNorm2d(3)))
    assert kinds(fused) == {BN: 1}


UNFIT: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "sub-class": (lambda: Scaled(3, 6, 3), "computes something else than Conv2d"),
    "spectral norm": (
        lambda: torch.nn.utils.parametrizations.spectral_norm(conv()),
        "no plain parameter",
    ),
    "padding mode": (lambda: conv(padding_mode="reflect"), "padding_mode"),
}


@pytest.mark.parametrize("name", UNFIT)
def test_unfit_convolution(name: str) -> None:
    build, reason = UNFIT[name]
    fused = check(nn.Sequential(build(), nn.BatchNorm2d(6), nn.ReLU(), conv(6, 2)))
    assert reason in reasons(fused)["0"]
    assert reason in str(fused.fastvision_report)


def test_norm_without_statistics():
    norm = nn.BatchNorm2d(6, track_running_stats=False)
    fused = check(nn.Sequential(conv(), norm, nn.ReLU()))
    assert kinds(fused) == {"Conv2d": 1}


def test_lazy_and_quantized_modules_are_left_alone():
    lazy = nn.Sequential(nn.LazyConv2d(4, 3), nn.ReLU())
    fused = fastvision.fuse(lazy)
    assert "LazyConv2d computes something else" in reasons(fused)["0"]
    assert fused(image()).shape == (2, 4, 10, 12)


@pytest.mark.parametrize("where", ["0", "1", "2", ""])
def test_hooks_see_what_they_saw(where: str) -> None:
    model = randomized(nn.Sequential(conv(), nn.BatchNorm2d(6), nn.ReLU(), conv(6, 2)))
    seen: list[Tensor] = []
    module = model.get_submodule(where)
    module.register_forward_hook(lambda module, inputs, output: seen.append(output.clone()))
    fused = fastvision.fuse(model)
    with torch.no_grad():
        assert_same(fused(image()), model(image()))
    ours, theirs = seen
    assert_same(ours, theirs)


def test_hook_inside():
    """What is in a module with a hook is fused by itself."""
    model = nn.Sequential(nn.Sequential(conv(), nn.ReLU()), nn.Sequential(conv(6, 6), nn.SiLU()))
    model[0].register_forward_pre_hook(lambda module, inputs: (inputs[0] + 1,))
    fused = check(model)
    assert kinds(fused) == {"Conv2d + relu": 1, "Conv2d + silu": 1}
