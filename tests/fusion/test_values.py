"""What travels through a fused model, where the model's code does unusual things with it."""

from __future__ import annotations

import types
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.utils.prune
import torch.utils.checkpoint
from torch import Tensor, nn
from torch.nn import functional as F

import fastvision
from fastvision.fusion import convolutions
from fastvision.fusion.border import tensor_of


def image(seed: int = 0) -> Tensor:
    return torch.randn(2, 8, 6, 6, generator=torch.Generator().manual_seed(seed))


def tensors(value: Any) -> list[Tensor]:
    if isinstance(value, Tensor):
        return [value]
    return [t for item in value for t in tensors(item)] if isinstance(value, (list, tuple)) else []


class Net(nn.Module):
    def __init__(self, forward: Callable[..., Any]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.second = (nn.Conv2d(8, 8, 3, padding=1) for _ in range(2))
        self.norm, self.act = nn.BatchNorm2d(8), nn.ReLU()
        self.norm.running_mean.normal_()
        self.register_buffer("held", torch.zeros(2, 8, 6, 6))
        self.code = forward

    def forward(self, *inputs: Tensor) -> Any:
        return self.code(self, *inputs)


@torch.no_grad()
def check(forward: Callable[..., Any], *inputs: Tensor) -> nn.Module:
    model = Net(forward).eval()
    fused = fastvision.fuse(model)
    for _ in range(2):
        theirs, ours = ([x.clone() for x in inputs or (image(),)] for _ in range(2))
        expected, actual = tensors(model(*theirs)), tensors(fused(*ours))
        assert len(actual) == len(expected) > 0
        for a, e in zip((*actual, *ours), (*expected, *theirs), strict=True):
            assert a.shape == e.shape and a.dtype == e.dtype and a.stride() == e.stride()
            torch.testing.assert_close(a, e, rtol=1e-4, atol=1e-4)
    return fused


@torch.jit.script
def scripted(x: Tensor) -> Tensor:
    return x.relu() + 1


class Swish(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x * torch.sigmoid(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return grad


COMPILED: dict[str, Callable[[Any, Tensor], Any]] = {
    "a scripted function": lambda self, x: scripted(self.conv(x)),
    "an autograd function": lambda self, x: Swish.apply(self.norm(self.conv(x))),
    "checkpoint": lambda self, x: torch.utils.checkpoint.checkpoint(
        self.second, self.conv(x), use_reentrant=False
    ),
    "reentrant checkpoint": lambda self, x: torch.utils.checkpoint.checkpoint(
        self.second, self.conv(x), use_reentrant=True
    ),
    "as_tensor": lambda self, x: torch.as_tensor(self.conv(x)) * 1,
    "tensor": lambda self, x: torch.tensor(self.conv(x)),
    "vmap": lambda self, x: torch.vmap(torch.sin)(self.conv(x)),
    "an item": lambda self, x: x.index_fill(0, torch.tensor([0]), self.conv(x).mean().item()),
    "put into a buffer": lambda self, x: self.held.copy_(self.conv(x)) * 1,
    "set as data": lambda self, x: set_data(torch.zeros_like(x), self.conv(x)),
    "an operator": lambda self, x: torch.ops.aten.relu.default(self.norm(self.conv(x))),
}


def set_data(y: Tensor, value: Tensor) -> Tensor:
    y.data = value
    return y * 2


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", COMPILED)
def test_compiled_code_takes_what_a_convolution_gives(name):
    """Not computed yet, it is a tensor to code that asks no Python."""
    check(COMPILED[name])


def into_a_plain_buffer(self, x):
    out = torch.zeros(4, 16, 6, 6)
    out[:2, ::2].add_(self.conv(x)).mul_(2)
    out[2:, :8].copy_(self.conv(x)).relu_()
    return out


def plain_buffer_is_written_later(self, x):
    out = torch.zeros(2, 8, 6, 6).contiguous(memory_format=torch.channels_last)
    r = out.add_(self.conv(x))
    y = self.second(r)
    out.mul_(3)
    return [self.norm(y), r.contiguous(), out * 1]


def module_buffer_is_written_later(self, x):
    h = self.held.mul_(0.5).add_(self.conv(x))
    y = self.second(h)
    self.held.mul_(0)
    return self.act(self.norm(y))


def bits_are_written(self, x):
    h = F.gelu(self.conv(x))
    bits = h.view(torch.int32)
    y = self.second(h)
    bits.zero_()
    return y


def numpy_is_written(self, x):
    h = F.gelu(self.conv(x))
    numbers = h.detach().numpy()
    y = self.second(h)
    numbers[:] = 0
    return y


def tensor_is_written(self, x):
    h = F.gelu(self.conv(x))
    y = self.second(h)
    tensor_of(h).mul_(2)
    z = self.second(h)
    tensor_of(h).zero_()
    return y, z, tensor_of(self.conv(x)).sum((2, 3))


def data_is_set(self, x):
    y = self.conv(x)
    y.data = torch.zeros_like(y)
    return y + 1


def split_of_the_batch(self, x):
    first, second = self.conv(x).chunk(2, -4)
    left, right = self.conv(x).chunk(2, -3)
    return [first.reshape(1, -1), second, left * 1, right * 1, *self.conv(x).split([2, 6], 1)]


def masks(self, x):
    h = F.gelu(self.conv(x))
    return [h.gt(0).view(2, -1), torch.isnan(h), h.ge(0), h[h > 0]]


def slices_of_images(self, x):
    h = F.gelu(self.conv(x))
    a, b, c = h[:, -3:], h[..., 1:], h[:, 2:1]
    return [a.contiguous(), a.relu(), b * 1, c.sum(), h[:, 1:7:2] + 1, h[0], h[:, 3]]


CODE = [
    *(into_a_plain_buffer, plain_buffer_is_written_later, module_buffer_is_written_later),
    *(bits_are_written, numpy_is_written, tensor_is_written, data_is_set, split_of_the_batch),
    *(masks, slices_of_images),
]


@pytest.mark.parametrize("forward", CODE, ids=lambda f: f.__name__)
def test_memory_that_is_seen_otherwise(forward):
    check(forward)


@torch.no_grad()
def test_one_tensor_given_twice():
    def forward(self, a, b):
        y = self.conv(a)
        b.add_(1)
        return y * 1

    model = Net(forward).eval()
    fused = fastvision.fuse(model)
    x, y = image(), image()
    torch.testing.assert_close(fused(x, x), model(y, y))
    torch.testing.assert_close(fused(x, x[:]), model(y, y[:]))


@torch.no_grad()
def test_what_the_model_keeps_is_computed_when_it_returns():
    def forward(self, x):
        self.seen = self.norm(self.conv(x))
        return types.SimpleNamespace(maps=self.second(x), also=[self.conv(x)])

    model = Net(forward).eval()
    fused = fastvision.fuse(model)
    x, y = image(), image()
    expected, actual = model(x), fused(y)
    y.zero_()
    for a, e in (
        (fused.seen, model.seen),
        (actual.maps, expected.maps),
        (actual.also[0], expected.also[0]),
    ):
        torch.testing.assert_close(a * 1, e * 1, rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_parameters_of_a_functional_call():
    model = Net(lambda self, x: self.act(self.norm(self.conv(x)))).eval()
    fused, x = fastvision.fuse(model), image()
    fused(x)
    other = {name: torch.rand_like(p) for name, p in model.named_parameters()}
    for _ in range(2):
        torch.testing.assert_close(
            torch.func.functional_call(fused, other, (x,)),
            torch.func.functional_call(model, other, (x,)),
            rtol=1e-4,
            atol=1e-4,
        )
        torch.testing.assert_close(fused(x), model(x), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["conv.weight", "conv.bias", "norm.weight", "norm.running_mean"])
@torch.no_grad()
def test_weights_written_between_a_call_and_its_use_are_an_error(name):
    def forward(self, x):
        y = self.norm(self.conv(x)) + self.second(x)
        self.state_dict(keep_vars=True)[name].mul_(2)
        return y * 1

    with pytest.raises(RuntimeError, match="weights of a fused Conv2d, .* were written to"):
        fastvision.fuse(Net(forward))(image())


@torch.no_grad()
def test_changed_options_and_pruned_weights():
    model = Net(lambda self, x: self.act(self.norm(self.conv(x)))).eval()
    fused, x = fastvision.fuse(model), image()
    fused(x)
    model.conv.stride = fused.conv.stride = (2, 2)
    torch.testing.assert_close(fused(x), model(x), rtol=1e-4, atol=1e-4)
    assert type(fused.conv)(3, 4, 1).weight.shape == (4, 3, 1, 1)
    for m in (model, fused):
        torch.nn.utils.prune.l1_unstructured(m.second, "weight", amount=0.5)
        m.code = lambda self, x: self.norm(self.second(x))
    torch.testing.assert_close(fused(x), model(x), rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_errors_come_where_the_model_has_them():
    def forward(self, x):
        try:
            y = self.conv(x[:, :5])
        except RuntimeError:
            y = self.second(x)
        return self.act(y)

    check(forward)


class Doubling(nn.BatchNorm2d):
    def __call__(self, *args: Any) -> Any:
        return 2 * super().__call__(*args)


@torch.no_grad()
def test_layers_with_a_call_of_their_own():
    model = nn.Sequential(nn.Conv2d(8, 8, 1), Doubling(8), nn.ReLU()).eval()
    torch.testing.assert_close(
        fastvision.fuse(model)(image()), model(image()), rtol=1e-4, atol=1e-4
    )


@torch.no_grad()
def test_lists_inside_of_inputs():
    class Appends(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(8, 8, 1)

        def forward(self, state: dict[str, list[Tensor]], pair: Any) -> Tensor:
            y = self.conv(state["h"][0])
            state["h"].append(y)
            pair[0].append(y.relu())
            loop: list[Any] = [y]
            loop.append(loop)
            return y * 1

    model = Appends().eval()
    results = []
    for m in (model, fastvision.fuse(model)):
        inner = [image()]
        state, pair = {"h": inner}, ([],)
        m(state, pair)
        assert state["h"] is inner and len(inner) == 2 and len(pair[0]) == 1
        assert type(inner[0]) is type(inner[1]) is type(pair[0][0]) is Tensor
        results.append([*inner, *pair[0]])
    for a, e in zip(*results, strict=True):
        torch.testing.assert_close(a, e, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", [nn.Conv1d, nn.Conv2d, nn.Conv3d])
@torch.no_grad()
def test_autocast_is_that_of_the_call(kind):
    class Mixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = kind(3, 4, 1)

        def forward(self, x: Tensor) -> Any:
            with torch.autocast("cpu", torch.bfloat16):
                a = self.conv(x)
                with torch.autocast("cpu", enabled=False):
                    b = self.conv(x)
                c = b.mul(1)
            return [a.mul(1), c, self.conv(x)]

    model = Mixed().eval()
    x = torch.randn(2, 3, *(5,) * (len(model.conv.weight.shape) - 2))
    for a, e in zip(fastvision.fuse(model)(x), model(x), strict=True):
        assert a.dtype == e.dtype
        torch.testing.assert_close(a, e, rtol=0.02, atol=0.02)


@torch.no_grad()
def test_what_was_read_is_not_kept():
    alive = []

    def forward(self, x):
        h = torch.tanh(self.conv(x))
        y = self.second(h)
        z = y * 1
        alive.append(__import__("weakref").ref(h))
        del h
        alive.append(alive[-1]() is None)
        return z + y

    fastvision.fuse(Net(forward))(image())
    assert alive[-1]


@torch.no_grad()
def test_negated_views_of_weights():
    x, weight = image(), torch.randn(4, 8, 1, 1)
    for _ in range(2):
        fastvision.ops.conv_bn_relu(x, weight, activation="none")
    for _ in range(2):
        y = fastvision.ops.conv_bn_relu(x, torch._neg_view(weight), activation="none")
        torch.testing.assert_close(y, -F.conv2d(x, weight), rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_packed_once_whatever_normalizes(monkeypatch):
    """Also where the model's code calls F.batch_norm: there is no layer that could be known."""

    def functional(self, x):
        n = self.norm
        y = F.batch_norm(self.conv(x), n.running_mean, n.running_var, n.weight, n.bias, eps=n.eps)
        return F.relu(y)

    made = []
    layer_of = convolutions.layer_of
    monkeypatch.setattr(convolutions, "layer_of", lambda *args: made.append(0) or layer_of(*args))
    for forward in (functional, lambda self, x: self.act(self.norm(self.conv(x)))):
        made.clear()
        fused = fastvision.fuse(Net(forward))
        for seed in range(3):
            fused(image(seed))
        assert len(made) == 1
