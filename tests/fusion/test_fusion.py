"""fuse(model): the fused copy gives the model's results, whatever the model does."""

from __future__ import annotations

import copy
import importlib
import io
import pickle
import types
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import fastvision
from fastvision.fusion.layers import FusedConv2d, FusedLinear
from fastvision.fusion.values import is_channels_last

# of the largest value: folding moves roundings, and a deep model adds them up
TOLERANCES = {torch.float32: 5e-5, torch.bfloat16: 5e-2, torch.float64: 1e-12}


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """The inputs are small, and threads wait long on a busy machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(autouse=True)
def small_weights_are_packed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Linear layers of any size take the way of large ones."""
    module = importlib.import_module("fastvision.ops.linear_act")
    monkeypatch.setattr(module, "_LEAST_PACKED", 1)


def randomized(model: nn.Module, seed: int = 0) -> nn.Module:
    """``model`` in eval mode, with statistics and affine parameters that show in the results."""
    g = torch.Generator().manual_seed(seed)
    for module in model.modules():
        if getattr(module, "running_mean", None) is None:
            continue
        with torch.no_grad():
            module.running_mean.copy_(torch.randn(module.running_mean.shape, generator=g) * 0.2)
            module.running_var.copy_(torch.rand(module.running_var.shape, generator=g) + 0.5)
            if module.weight is not None:
                module.weight.copy_(torch.rand(module.weight.shape, generator=g) + 0.5)
                module.bias.copy_(torch.randn(module.bias.shape, generator=g) * 0.2)
    return model.eval()


def tensors(value: Any) -> list[Tensor]:
    if isinstance(value, Tensor):
        return [value]
    items = value.values() if isinstance(value, dict) else value
    return [t for item in items for t in tensors(item)] if not isinstance(value, str) else []


def assert_same(actual: Any, expected: Any) -> None:
    actual, expected = tensors(actual), tensors(expected)
    assert len(actual) == len(expected) > 0
    for a, e in zip(actual, expected, strict=True):
        assert a.shape == e.shape
        assert a.dtype == e.dtype
        tolerance = TOLERANCES[e.dtype] * e.abs().max().item()
        torch.testing.assert_close(a, e, rtol=0, atol=tolerance)


def image(*size: int, seed: int = 0) -> Tensor:
    return torch.randn(*(size or (2, 3, 12, 14)), generator=torch.Generator().manual_seed(seed))


@torch.no_grad()
def check(model: nn.Module, *inputs: Any, **options: Any) -> nn.Module:
    """Fuses ``model``, compares results and that the model is as it was; returns the copy."""
    randomized(model)
    inputs = inputs or (image(),)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    clones = copy.deepcopy(inputs)
    expected = model(*clones)
    fused = fastvision.fuse(model, **options)
    actual = fused(*copy.deepcopy(inputs))
    assert_same(actual, expected)
    for a, e in zip(tensors(actual), tensors(expected), strict=True):
        assert a.stride() == e.stride(), "the memory format of results is the model's"
    again = fused(*copy.deepcopy(inputs))  # knows by now which values are used twice
    assert_same(again, expected)
    after = model.state_dict()
    assert before.keys() == after.keys() == fused.state_dict().keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    for name, module in model.named_modules():
        ours = fused.get_submodule(name)
        assert isinstance(ours, type(module))
        assert vars(module).keys() <= vars(ours).keys()
    return fused


def kinds(fused: nn.Module) -> dict[str, int]:
    return fused.fastvision_report.counts()


def reasons(fused: nn.Module) -> dict[str, str]:
    return dict(fused.fastvision_report.skipped)


def net(forward: Callable[..., Any], **layers: nn.Module) -> nn.Module:
    """A module of a class of its own, with ``forward(self, ...)``."""
    module = type("Net", (nn.Module,), {"forward": forward})()
    for name, layer in layers.items():
        setattr(module, name, layer)
    return module


def conv(inputs: int = 3, outputs: int = 6, size: int = 3, **options: Any) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, size, **{"padding": size // 2, **options})


# --- chains of modules

CHAINS: dict[str, tuple[Callable[[], nn.Module], dict[str, int]]] = {
    "conv bn relu": (
        lambda: nn.Sequential(conv(), nn.BatchNorm2d(6), nn.ReLU(inplace=True)),
        {"Conv2d + BatchNorm2d + relu": 1},
    ),
    "conv without bias, bn without affine": (
        lambda: nn.Sequential(conv(bias=False), nn.BatchNorm2d(6, affine=False), nn.SiLU()),
        {"Conv2d + BatchNorm2d + silu": 1},
    ),
    "strided, dilated, grouped": (
        lambda: nn.Sequential(
            conv(), nn.ReLU6(), conv(6, 4, stride=2, dilation=(2, 1), groups=2), nn.Hardswish()
        ),
        {"Conv2d + relu6": 1, "Conv2d + hardswish": 1},
    ),
    "leaky": (
        lambda: nn.Sequential(conv(padding="same"), nn.BatchNorm2d(6), nn.LeakyReLU(0.3)),
        {"Conv2d + BatchNorm2d + leaky_relu": 1},
    ),
    "valid, other eps": (
        lambda: nn.Sequential(conv(padding="valid"), nn.BatchNorm2d(6, eps=0.1), nn.Sigmoid()),
        {"Conv2d + BatchNorm2d + sigmoid": 1},
    ),
    "an activation there is no code for": (
        lambda: nn.Sequential(conv(), nn.BatchNorm2d(6), nn.GELU()),
        {"Conv2d + BatchNorm2d": 1},
    ),
    "dropout in between": (
        lambda: nn.Sequential(conv(), nn.BatchNorm2d(6), nn.Dropout(), nn.ReLU(), nn.Dropout2d()),
        {"Conv2d + BatchNorm2d + relu": 1},
    ),
    "linear": (
        lambda: nn.Sequential(
            nn.Flatten(),
            nn.Linear(504, 7),
            nn.ReLU(),
            nn.Linear(7, 5),
            nn.Hardswish(),
            nn.Dropout(),
        ),
        {"Linear + relu": 1, "Linear + hardswish": 1},
    ),
    "bn before conv": (
        lambda: nn.Sequential(nn.BatchNorm2d(3), nn.ReLU(True), conv(), nn.BatchNorm2d(6)),
        {"BatchNorm2d + relu": 1, "Conv2d + BatchNorm2d": 1},
    ),
    "relu before bn": (
        lambda: nn.Sequential(conv(), nn.ReLU(), nn.BatchNorm2d(6)),
        {"Conv2d + relu": 1},
    ),
    "synchronized": (
        lambda: nn.Sequential(conv(), nn.SyncBatchNorm(6), nn.ReLU()),
        {"Conv2d + SyncBatchNorm + relu": 1},
    ),
}


@pytest.mark.parametrize("channels_last", [None, True, False])
@pytest.mark.parametrize("name", CHAINS)
def test_chain(name: str, channels_last: bool | None) -> None:
    build, expected = CHAINS[name]
    fused = check(build(), channels_last=channels_last)
    assert kinds(fused) == expected
    assert not reasons(fused)
    assert not fused.training


# --- functions, additions, and what must not be fused


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


SIDE = {"conv": lambda: conv(3, 3), "norm": lambda: nn.BatchNorm2d(3), "act": nn.ReLU}
BN = "Conv2d + BatchNorm2d"
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


class Scaled(nn.Conv2d):
    def forward(self, x):
        return 2 * super().forward(x)


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


# --- models that cannot be traced as a whole


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


def test_view_of_an_image():
    """Code that depends on strides: flattening by view."""

    def forward(self, x):
        x = F.max_pool2d(F.relu(self.conv(x)), 2)
        x = self.second(x)
        return self.fc(x.view(x.size(0), -1))

    fused = check(net(forward, conv=conv(), second=conv(6, 2), fc=nn.Linear(84, 5)))
    assert fused.fastvision_report.channels_last


def test_channels_last_inside():
    seen = []
    model = nn.Sequential(conv(), nn.ReLU(), nn.MaxPool2d(2), conv(6, 6), nn.ReLU(), conv(6, 2))
    fused = check(model)
    fused[3].register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    x = image()
    assert not is_channels_last(fused(x))
    assert is_channels_last(seen[0]._plain) and seen[0]._hidden
    assert seen[0].is_contiguous(), "to the code of the model"
    assert is_channels_last(fused(x.contiguous(memory_format=torch.channels_last)))
    check(model, x.contiguous(memory_format=torch.channels_last))
    check(model, image(3, 12, 14))  # one image without a batch


# --- code that does what fusing must not lose: the copy's results are the model's


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


def adversary(forward: Callable[..., Any]) -> nn.Module:
    model = net(forward, **{name: build() for name, build in SIDE.items()})
    model.hooked = nn.Sequential(nn.ReLU(inplace=True))
    model.hooked.register_forward_hook(lambda module, inputs, output: None)
    model.register_buffer("count", torch.zeros(()))
    model.held = [torch.zeros(())]
    return model


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


# --- memory formats


def writes_through_a_view(self, x):
    y = self.last(F.relu(self.norm(self.conv(x))))
    view = y.view(-1)
    view[:5].zero_()
    return y


def writes_through_flatten(self, x):
    y = self.last(F.relu(self.norm(self.conv(x))))
    y.flatten(1).mul_(2)
    return F.relu(self.last(y))


def writes_by_operator(self, x):
    y = self.last(F.relu(self.norm(self.conv(x))))
    view = y.reshape(2, -1)
    view *= 2
    return y


def view_as_complex(self, x):
    y = self.last(F.relu(self.norm(self.conv(x))))
    return torch.view_as_complex(y.view(2, 3, 12, 7, 2)).abs()


def unflatten_as_complex(self, x):
    y = self.last(F.relu(self.norm(self.conv(x))))
    return torch.view_as_complex(y.unflatten(3, (7, 2))).abs()


def view_of_bits(self, x):
    return self.last(F.relu(self.norm(self.conv(x)))).view(torch.int32).view(torch.float32)


def view_by_name(self, x):
    y = self.last(F.relu(self.norm(self.conv(x))))
    return F.relu(self.last(y.view(size=(2, 3, 12, 14))))


FORMATS = [writes_through_a_view, writes_through_flatten, writes_by_operator]
FORMATS += [view_as_complex, unflatten_as_complex, view_of_bits, view_by_name]


@pytest.mark.parametrize("forward", FORMATS, ids=lambda f: f.__name__)
def test_code_that_needs_contiguous_images(forward: Callable[..., Any]) -> None:
    model = adversary(forward)
    model.last = conv(3, 3)
    for channels_last in (None, True):
        check(model, channels_last=channels_last)


# --- torchvision's models


def torchvision_model(name: str) -> nn.Module:
    models = pytest.importorskip("torchvision.models")
    options: dict[str, Any] = {"weights": None}
    if name == "googlenet":
        options["init_weights"] = False
    if name.startswith(("fcn", "deeplab", "lraspp")):
        options |= {"weights_backbone": None, "num_classes": 5}
    torch.manual_seed(0)
    return randomized(models.get_model(name, **options))


CLASSIFIERS: dict[str, dict[str, int]] = {
    "resnet18": {f"{BN} + relu": 9, f"{BN} + add + relu": 8, BN: 3, "Linear": 1},
    "mobilenet_v2": {f"{BN} + relu6": 35, f"{BN} + add": 10, BN: 7, "Linear": 1},
    "mobilenet_v3_small": {f"{BN} + hardswish": 18, "Linear + hardswish": 1},
    "vgg11_bn": {f"{BN} + relu": 8, "Linear + relu": 2, "Linear": 1},
    "googlenet": {f"{BN} + relu": 57, "Linear": 5},
    "densenet121": {f"{BN} + relu": 59, "BatchNorm2d + relu": 62, "Conv2d": 61, "Linear": 1},
    "shufflenet_v2_x1_0": {f"{BN} + relu": 37, BN: 19, "Linear": 1},
    "resnext50_32x4d": {f"{BN} + relu": 33, f"{BN} + add + relu": 16, BN: 4, "Linear": 1},
    "squeezenet1_1": {"Conv2d + relu": 26},
    "efficientnet_b0": {f"{BN} + silu": 33, "Conv2d + silu": 16, "Conv2d + sigmoid": 16},
}


@pytest.mark.parametrize("name", CLASSIFIERS)
def test_classifier(name: str) -> None:
    model = torchvision_model(name)
    fused = check(model, image(1, 3, 64, 64))
    assert kinds(fused).items() >= CLASSIFIERS[name].items()
    assert fused.fastvision_report.channels_last
    with torch.no_grad():
        assert_same(fused(image(2, 3, 40, 72)), model(image(2, 3, 40, 72)))


@pytest.mark.parametrize("name", ["fcn_resnet50", "deeplabv3_mobilenet_v3_large"])
def test_segmentation(name: str) -> None:
    check(torchvision_model(name), image(1, 3, 48, 64))


def matched(some: dict[str, Tensor], others: dict[str, Tensor]) -> float:
    """The share of detections that have a partner: random weights give them nearly equal scores, so
    that rounding changes their order and who is the last to be kept."""
    same = some["labels"][:, None] == others["labels"]
    same &= (some["boxes"][:, None] - others["boxes"]).abs().amax(-1) <= 0.1
    same &= (some["scores"][:, None] - others["scores"]).abs() <= 1e-4
    return same.any(1).float().mean().item()


@pytest.mark.parametrize(
    "name",
    [
        "fasterrcnn_mobilenet_v3_large_320_fpn",
        "maskrcnn_resnet50_fpn",
        "retinanet_resnet50_fpn",
        "ssdlite320_mobilenet_v3_large",
    ],
)
def test_detection(name: str) -> None:
    detection = pytest.importorskip("torchvision.models.detection")
    torch.manual_seed(0)
    options = {} if "320" in name else {"min_size": 96, "max_size": 128}
    if name.startswith("retinanet"):
        options["score_thresh"] = 0.005  # above it random weights find nothing
    model = getattr(detection, name)(
        weights=None, weights_backbone=None, num_classes=5, **options
    ).eval()
    fused = fastvision.fuse(model)
    images = [image(3, 90, 120).sigmoid(), image(3, 70, 60).sigmoid()]
    with torch.no_grad():
        features = model.backbone(image(1, 3, 96, 96))
        assert_same(fused.backbone(image(1, 3, 96, 96)), features)
        for ours, theirs in zip(fused(images), model(images), strict=True):
            assert ours.keys() == theirs.keys()
            assert len(ours["boxes"]) == len(theirs["boxes"]) > 0
            assert matched(ours, theirs) >= 0.9 and matched(theirs, ours) >= 0.9
    assert sum(kinds(fused).values()) > 50
    if "fpn" in name:
        assert kinds(fused)["Conv2d + add"] >= 1, "of the lateral connections"


def pyramid(**options: Any) -> nn.Module:
    ops = pytest.importorskip("torchvision.ops")
    return ops.FeaturePyramidNetwork([4, 6, 8], 32, **options)


def levels(*sizes: tuple[int, int], channels_last: bool = False) -> dict[str, Tensor]:
    format = torch.channels_last if channels_last else torch.contiguous_format
    maps = zip((4, 6, 8), sizes, strict=True)
    return {str(c): image(2, c, *size).contiguous(memory_format=format) for c, size in maps}


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize(
    "sizes", [((12, 20), (6, 10), (3, 5)), ((11, 20), (6, 7), (5, 7))], ids=str
)
def test_feature_pyramid(sizes, channels_last):
    poolers = pytest.importorskip("torchvision.ops.feature_pyramid_network")
    maps = levels(*sizes, channels_last=channels_last)
    for model in (
        pyramid(),
        pyramid(norm_layer=nn.BatchNorm2d, extra_blocks=poolers.LastLevelMaxPool()),
    ):
        fused = check(model, maps)
        with torch.no_grad():
            ours = copy.deepcopy(maps)
            assert list(fused(ours)) == list(model(maps))
        assert all(torch.equal(ours[name], maps[name]) for name in maps)
        assert pickle.loads(pickle.dumps(fused)).state_dict().keys() == fused.state_dict().keys()
        wanted = {name: x.clone().requires_grad_() for name, x in maps.items()}
        expected = torch.autograd.grad(
            sum(y.sum() for y in model(wanted).values()), wanted.values()
        )
        actual = torch.autograd.grad(sum(y.sum() for y in fused(wanted).values()), wanted.values())
        assert_same(list(actual), list(expected))


def test_feature_pyramid_of_other_models():
    """Its methods are there, it batches as torch's operators do, and sizes are not constants."""

    def forward(self: Any, fine: Tensor, coarse: Tensor) -> Any:
        maps = self.pyramid({"fine": fine, "coarse": coarse})
        lateral = self.pyramid.get_result_from_inner_blocks(fine, 0)
        return maps["fine"], self.pyramid.get_result_from_layer_blocks(lateral, -1)

    ops = pytest.importorskip("torchvision.ops")
    model = net(forward, pyramid=ops.FeaturePyramidNetwork([4, 6], 8))
    inputs, others = (image(1, 4, 8, 8), image(2, 6, 4, 4)), (image(2, 4, 7, 9), image(2, 6, 4, 5))
    fused = check(model, *inputs)
    sizes = {2: torch.export.Dim.AUTO, 3: torch.export.Dim.AUTO}
    even = (image(2, 4, 8, 12), image(2, 6, 4, 6))
    with torch.no_grad():
        exported = torch.export.export(fused, even, dynamic_shapes=(sizes, sizes)).module()
        traced = torch.jit.trace(fused, even)
        for program in (exported, traced):
            assert_same(program(*others), model(*others))


def test_feature_pyramid_whose_maps_others_see():
    maps = levels((12, 20), (6, 10), (3, 5))
    hooked, seen = pyramid(), []
    hooked.inner_blocks[0].register_forward_hook(lambda module, x, y: seen.append(y))
    maps_of_equal_width = {**maps, "4": image(2, 32, 12, 20)}
    cases = [(hooked, maps)]
    for block in (nn.Identity(), nn.Sequential()):
        model = pyramid()
        model.inner_blocks[0] = model.layer_blocks[0] = block
        cases.append((model, maps_of_equal_width))
    for model, inputs in cases:
        check(model, inputs)
    assert_same(seen[1], seen[0])


def test_layers_that_are_fused_already():
    ops = fastvision.ops
    fused = check(nn.Sequential(ops.Conv2dNormActivation(3, 6), conv(6, 6), nn.ReLU()))
    assert kinds(fused) == {"Conv2d + relu": 1, f"{BN} + relu": 1}
    fused = check(nn.Sequential(conv(), ops.FrozenBatchNorm2d(6), nn.ReLU()))
    assert kinds(fused) == {"Conv2d + FrozenBatchNorm2d + relu": 1}


def test_frozen_batch_norm():
    ops = pytest.importorskip("torchvision.ops")
    fused = check(nn.Sequential(conv(), ops.FrozenBatchNorm2d(6), nn.ReLU()))
    assert kinds(fused) == {"Conv2d + FrozenBatchNorm2d + relu": 1}


# --- what the copy can do


class Small(nn.Module):
    """Both kinds of surgery: layers replaced, and a block that becomes a graph."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(conv(), nn.BatchNorm2d(6), nn.ReLU())
        self.block = Block()
        self.fc = nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.block(self.stem(x)).mean((2, 3)))


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = conv(6, 6), nn.BatchNorm2d(6)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.norm(self.conv(x)) + x)


@pytest.fixture(params=[Small, lambda: nn.Sequential(Block())[0]], ids=["model", "graph"])
def small(request: pytest.FixtureRequest) -> tuple[nn.Module, nn.Module, Tensor]:
    model = randomized(request.param())
    x = image() if isinstance(model, Small) else image(2, 6, 9, 8)
    return model, fastvision.fuse(model), x


@torch.no_grad()
def test_deepcopy(small) -> None:
    model, fused, x = small
    fused(x)
    again = copy.deepcopy(fused)
    assert_same(again(x), model(x))
    assert str(again.fastvision_report) == str(fused.fastvision_report)
    next(again.parameters()).zero_()
    assert_same(fused(x), model(x))


@torch.no_grad()
def test_pickle(small) -> None:
    model, fused, x = small
    fused(x)  # packed weights must not be part of it
    file = io.BytesIO()
    torch.save(fused, file)
    file.seek(0)
    again = torch.load(file, weights_only=False)
    assert_same(again(x), model(x))
    assert str(again.fastvision_report) == str(fused.fastvision_report)
    weights = sum(p.numel() for p in fused.parameters())
    assert file.tell() < 4 * weights + 40_000


@torch.no_grad()
def test_state_dict(small) -> None:
    model, fused, x = small
    other = fastvision.fuse(randomized(copy.deepcopy(model), seed=5))
    assert (other(x) - model(x)).abs().max() > 1e-2
    other.load_state_dict(fused.state_dict())
    assert_same(other(x), model(x))


@torch.no_grad()
def test_export(small) -> None:
    model, fused, x = small
    dynamic = {"x": {0: torch.export.Dim("batch", min=1, max=64)}}
    program = torch.export.export(fused, (x,), dynamic_shapes=dynamic)
    targets = {str(node.target) for node in program.graph.nodes}
    assert "fastvision.conv_bn_relu.default" in targets
    file = io.BytesIO()
    torch.export.save(program, file)
    file.seek(0)
    loaded = torch.export.load(file).module()
    for batch in (x, torch.cat([x, x, x])):
        assert_same(loaded(batch), model(batch))


@torch.no_grad()
@pytest.mark.parametrize("backend", ["aot_eager"])
def test_compile(small, backend: str) -> None:
    model, fused, x = small
    compiled = torch.compile(fused, fullgraph=True, backend=backend)
    for size in (x, x[..., :7], torch.cat([x, x])):
        assert_same(compiled(size), model(size))


@torch.no_grad()
def test_bfloat16(small) -> None:
    model, fused, x = small
    expected = model(x).bfloat16()
    assert_same(fastvision.fuse(model, dtype=torch.bfloat16)(x.bfloat16()), expected)
    assert_same(fused.to(torch.bfloat16)(x.bfloat16()), expected)


@torch.no_grad()
def test_float64(small) -> None:
    model, _, x = small
    model, x = model.double(), x.double()
    assert_same(fastvision.fuse(model)(x), model(x))


@torch.no_grad()
def test_autocast(small) -> None:
    model, fused, x = small
    with torch.autocast("cpu", torch.bfloat16):
        actual = fused(x).float()
    expected = model(x)
    assert (actual - expected).abs().max() <= TOLERANCES[torch.bfloat16] * expected.abs().max()


def test_gradient_of_the_input(small) -> None:
    model, fused, x = small
    mine, theirs = x.clone().requires_grad_(), x.clone().requires_grad_()
    fused(mine).square().sum().backward()
    model(theirs).square().sum().backward()
    assert_same(mine.grad, theirs.grad)
    assert all(p.grad is None for p in fused.parameters())


def test_function_transforms(small) -> None:
    model, fused, x = small
    ours, theirs = (torch.func.jvp(m, (x,), (torch.cos(x),)) for m in (fused, model))
    assert_same(ours, theirs)
    ours, theirs = (torch.func.grad(lambda x, m=m: m(x).square().sum())(x) for m in (fused, model))
    assert_same(ours, theirs)
    batch = torch.stack([x, 2 * x])
    assert_same(torch.vmap(fused)(batch), torch.vmap(model)(batch))


@torch.no_grad()
def test_fused_twice_and_back_in_training_mode(small) -> None:
    model, fused, x = small
    assert_same(fastvision.fuse(fused)(x), model(x))
    assert_same(fused.train()(x), model(x))


@torch.no_grad()
def test_training_model():
    model = randomized(nn.Sequential(conv(), nn.BatchNorm2d(6), nn.Dropout(), nn.ReLU())).train()
    fused = fastvision.fuse(model)
    assert model.training
    assert not fused.training
    assert_same(fused(image()), model.eval()(image()))


def test_new_weights_are_used(small) -> None:
    """Packed forms of weights follow the weights."""
    _, fused, x = small
    with torch.no_grad():
        before = fused(x)
        for module in fused.modules():
            if isinstance(module, (FusedConv2d, FusedLinear)):
                module.weight.mul_(2)
        changed = fused(x)
        fresh = copy.deepcopy(fused)(x)
    assert not torch.equal(before, changed)
    assert_same(changed, fresh)


def test_lone_modules():
    assert isinstance(check(conv()), FusedConv2d)
    assert isinstance(check(nn.Linear(14, 3)), FusedLinear)
    check(nn.BatchNorm2d(3))


def test_report():
    fused = check(nn.Sequential(conv(), nn.BatchNorm2d(6), nn.ReLU(), Scaled(6, 2, 1)))
    report = fused.fastvision_report
    assert [fusion.name for fusion in report.fused] == ["0"]
    text = str(report)
    assert "1 chains fused" in text
    assert "1 x Conv2d + BatchNorm2d + relu" in text
    assert "Scaled computes something else than Conv2d: 3" in text
    waiting = str(fastvision.fuse(conv()).fastvision_report)
    assert "1 of them have not run yet" in waiting


@pytest.mark.parametrize(
    "arguments, options, error",
    [
        ((torch.relu,), {}, TypeError),
        ((nn.ReLU(),), {"channels_last": 1}, TypeError),
        ((nn.ReLU(),), {"dtype": "bfloat16"}, TypeError),
        ((nn.ReLU(),), {"dtype": torch.int32}, ValueError),
    ],
)
def test_bad_arguments(arguments: Any, options: dict[str, Any], error: type[Exception]) -> None:
    with pytest.raises(error, match="must be"):
        fastvision.fuse(*arguments, **options)


# --- the linear op


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("shape", [(7,), (1, 7), (5, 7), (2, 3, 7), (600, 7), (0, 7)], ids=str)
@pytest.mark.parametrize("activation", ["none", "relu", "leaky_relu"])
def test_linear_act(activation: str, shape: tuple[int, ...], dtype: torch.dtype) -> None:
    x, w, b = image(*shape).to(dtype), image(4, 7, seed=1).to(dtype), image(4, seed=2).to(dtype)
    for bias in (b, None):
        actual = fastvision.ops.linear_act(x, w, bias, activation=activation, negative_slope=0.2)
        expected = F.linear(x.double(), w.double(), None if bias is None else bias.double())
        if activation != "none":
            expected = F.leaky_relu(expected, 0.2 if activation == "leaky_relu" else 0.0)
        tolerance = {torch.float32: 1e-5, torch.bfloat16: 5e-2, torch.float64: 1e-12}[dtype]
        assert actual.dtype == dtype
        torch.testing.assert_close(actual.double(), expected, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("activation", ["none", "relu", "relu6", "silu"])
def test_linear_act_keeps_nan(activation: str) -> None:
    x, w = image(5, 16), image(8, 16, seed=1)
    x[2, 3] = float("nan")
    y = fastvision.ops.linear_act(x, w, activation=activation)
    assert torch.equal(y.isnan(), F.linear(x, w).isnan())


def test_linear_act_strides() -> None:
    x, w = image(5, 16), image(8, 16, seed=1)
    for bias in (torch.ones(1).expand(8), image(16)[::2]):
        y = fastvision.ops.linear_act(x, w, bias, activation="none")
        torch.testing.assert_close(y, F.linear(x, w, bias))
    for rows in (x[:1].expand(5, 16), image(5, 32)[:, ::2], image(16, 5).T):
        y = fastvision.ops.linear_act(rows, w, activation="none")
        torch.testing.assert_close(y, F.linear(rows, w))


@pytest.mark.parametrize("features", [1, 512, 513, 521, 1024, 1042, 2050])
def test_linear_act_of_many_features(features: int) -> None:
    """Which are shared out among taps, or not where they are prime."""
    x, w = image(7, features), image(20, features, seed=1)
    y = fastvision.ops.linear_act(x, w, activation="none")
    tolerance = 1e-6 * features**0.5 * w.abs().max().item() * x.abs().max().item()
    torch.testing.assert_close(y, F.linear(x, w), rtol=0, atol=tolerance)


def test_linear_act_lets_tangents_through() -> None:
    x, w = image(5, 16), image(8, 16, seed=1)
    for f, argument in ((lambda t: (t, w), x), (lambda t: (x, t), w)):
        run = lambda t, f=f: fastvision.ops.linear_act(*f(t), activation="none")  # noqa: E731
        _, tangent = torch.func.jvp(run, (argument,), (argument,))
        torch.testing.assert_close(tangent, F.linear(x, w))


def test_linear_act_without_outputs() -> None:
    assert fastvision.ops.linear_act(image(5, 16), torch.empty(0, 16)).shape == (5, 0)


def test_linear_act_notices_changes_of_the_weight() -> None:
    x = image(5, 16)
    with torch.inference_mode():
        made_in_inference = image(8, 16, seed=1).clone()
    for w in (image(8, 16, seed=1), made_in_inference):
        for factor in (1.0, 2.0, -3.0):
            with torch.inference_mode(w.is_inference()):
                w.mul_(factor)
                y = fastvision.ops.linear_act(x, w, activation="none")
                torch.testing.assert_close(y, F.linear(x, w))
    w = image(8, 16, seed=1)
    for _ in range(8):
        w.data = w.data * 1.5  # other memory, perhaps where an earlier one was
        y = fastvision.ops.linear_act(x, w, activation="none")
        torch.testing.assert_close(y, F.linear(x, w))


def test_linear_act_opcheck():
    op = torch.ops.fastvision.linear_act.default
    for bias in (image(4), None):
        torch.library.opcheck(op, (image(5, 7), image(4, 7), bias, 1, 0.0))


@pytest.mark.parametrize(
    "arguments, error",
    [
        ((image(5, 7), image(4, 6)), ValueError),
        ((image(5, 7), image(4, 7), image(3)), ValueError),
        ((image(5, 7), image(4, 7).double()), TypeError),
        ((image(5, 7).long(), image(4, 7).long()), TypeError),
        ((None, image(4, 7)), TypeError),
    ],
)
def test_linear_act_bad_arguments(arguments: Any, error: type[Exception]) -> None:
    with pytest.raises(error):
        fastvision.ops.linear_act(*arguments)
    with pytest.raises(ValueError, match="activation"):
        fastvision.ops.linear_act(image(5, 7), image(4, 7), activation="gelu")
