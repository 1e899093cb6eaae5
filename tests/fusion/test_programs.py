"""Random programs of convolutions, views and writes in place: fuse() must not show in any value."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import fastvision
from fastvision.fusion import images

C = 8  # channels of every map, so that any two fit


class Program(nn.Module):
    """Runs steps over a list of maps, [N, C, H, W] each, and returns all of them."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.convs = nn.ModuleList(nn.Conv2d(C, C, k, padding=k // 2) for k in (1, 3, 3))
        self.norms = nn.ModuleList(nn.BatchNorm2d(C) for _ in range(2))
        for norm in self.norms:
            norm.running_mean.normal_()
            norm.running_var.uniform_(0.5, 2)
            nn.init.uniform_(norm.weight, 0.5, 1.5)
        self.relu, self.relu_ = nn.ReLU(), nn.ReLU(inplace=True)
        self.seed = seed

    def forward(self, x: Tensor) -> list[Any]:
        choose = random.Random(self.seed)
        maps = [x * 1, x]
        for _ in range(14):
            step = choose.choice(STEPS)
            result = step(self, choose, choose.choice(maps), choose.choice(maps))
            if isinstance(result, Tensor):
                maps.append(result)
                if choose.random() < 0.5:  # nobody else keeps it
                    del maps[choose.randrange(len(maps) - 1)]
        return maps


def convolve(self, choose, a, b):
    return choose.choice(self.convs)(a)


def normalize(self, choose, a, b):
    return choose.choice(self.norms)(a)


def block(self, choose, a, b):
    return self.relu_(choose.choice(self.norms)(choose.choice(self.convs)(a)))


def residual_block(self, choose, a, b):
    y = choose.choice(self.norms)(choose.choice(self.convs)(a))
    y += b
    return choose.choice((F.relu, F.silu, torch.relu_, self.relu))(y)


def activate(self, choose, a, b):
    return choose.choice((F.relu, torch.relu, self.relu, self.relu_, torch.relu_, F.gelu))(a)


def add(self, choose, a, b):
    return a + b if choose.random() < 0.5 else torch.add(b, a)


def add_in_place(self, choose, a, b):
    a += b
    return a if choose.random() < 0.5 else None


def scale_in_place(self, choose, a, b):
    a.mul_(0.5)


def write_channels(self, choose, a, b):
    a[:, 1:3] *= 2


def write_pixels(self, choose, a, b):
    a[:, :, ::2, 1] = b[:, :, ::2, 0]


def write_through_chunk(self, choose, a, b):
    first, second = a.chunk(2, 1)
    y = self.convs[0](torch.cat([second, first], 1))
    second.add_(1)
    return y


def write_through_flatten(self, choose, a, b):
    a.flatten(choose.choice((1, 2))).mul_(0.5)


def write_through_permuted(self, choose, a, b):
    pixels = a.permute(0, 2, 3, 1)
    pixels += 1
    return pixels.permute(0, 3, 1, 2)


def write_to_a_copy(self, choose, a, b):
    copy = a.permute(0, 2, 3, 1).contiguous()
    copy.mul_(3)
    return copy.permute(0, 3, 1, 2).contiguous()


def write_to_contiguous(self, choose, a, b):
    same = a.contiguous()
    same.sub_(1)
    return b * 1


def shuffle(self, choose, a, b):
    N, _, H, W = a.shape
    y = a.reshape(N, 2, C // 2, H, W).transpose(1, 2)
    return y.contiguous().view(N, -1, H, W) if choose.random() < 0.5 else y.reshape(N, C, H, W)


def write_to_a_shuffled(self, choose, a, b):
    N, _, H, W = a.shape
    split = a.reshape(N, 2, C // 2, H, W)
    shuffled = split.transpose(1, 2).contiguous()
    shuffled.mul_(-1)
    split[:, 0].add_(0.5)
    return shuffled.view(N, C, H, W)


def split_and_join(self, choose, a, b):
    left, right = a.split([3, 5], dim=1)
    return torch.cat([self.relu(right), left * 2], dim=1)


def partial(self, choose, a, b):
    y = self.convs[1](a)
    return torch.cat([y[:, :4], a[:, 4:]], 1)


def attend(self, choose, a, b):
    return a * torch.sigmoid(self.convs[0](F.adaptive_avg_pool2d(a, 1)))


def by_hand(self, choose, a, b):
    y = self.convs[1](a)
    return y * torch.sigmoid(y)


def flat_product(self, choose, a, b):
    tokens = a.flatten(2).transpose(1, 2)
    weights = (tokens @ tokens.transpose(1, 2)).softmax(-1)
    return (weights @ tokens).transpose(1, 2).reshape(a.shape)


def used_late(self, choose, a, b):
    y = self.convs[1](a)
    z = self.norms[0](y)
    a.mul_(0.5)
    b.add_(1)
    return z + y


def pool(self, choose, a, b):
    return F.interpolate(F.max_pool2d(a, 2), size=a.shape[2:])


def reread(self, choose, a, b):
    return a.clone() if choose.random() < 0.5 else a.detach()


def scale_by_statistics(self, choose, a, b):
    return a / (a.abs().amax((1, 2, 3), keepdim=True) + 1)


STEPS: list[Callable[..., Any]] = [
    *(convolve, normalize, block, block, residual_block, residual_block, activate, add),
    *(add_in_place, scale_in_place, write_channels, write_pixels, write_through_chunk),
    *(write_through_flatten, write_through_permuted, write_to_a_copy, write_to_contiguous),
    *(shuffle, write_to_a_shuffled, split_and_join, partial, attend, by_hand, used_late),
    *(pool, reread, scale_by_statistics),
]


def run(model: nn.Module, x: Tensor, mode: Any) -> tuple[list[Tensor], Tensor]:
    x = x.clone(memory_format=torch.preserve_format)
    with mode():
        return model(x), x


@pytest.mark.parametrize("least", [0, 1 << 20], ids=["replacing", "keeping"])
@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode], ids=lambda m: m.__name__)
@pytest.mark.parametrize("first", range(0, 200, 20))
def test_programs(first: int, mode: Any, least: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """``least``: bytes of a residual whose memory a result may take."""
    monkeypatch.setattr(images, "_LEAST_REPLACED", least)
    for seed in range(first, first + 20):
        model = Program(seed).eval().double()
        fused = fastvision.fuse(model)
        x = torch.randn(1 + seed % 2, C, 6, 7 + seed % 3).double()
        if seed % 5 == 0:
            x = x.contiguous(memory_format=torch.channels_last)
        for _ in range(2):
            (expected, written), (actual, ours) = run(model, x, mode), run(fused, x, mode)
            for e, a in zip((*expected, written), (*actual, ours), strict=True):
                assert type(a) is Tensor
                assert a.shape == e.shape
                scale = e.abs().max().item() + 1
                torch.testing.assert_close(a, e, rtol=0, atol=1e-11 * scale, msg=f"seed {seed}")
            for e, a in zip(expected, actual, strict=True):
                if seed % 5:
                    assert a.is_contiguous() == e.is_contiguous(), f"seed {seed}"
            # what shares memory in the model does in the copy, and nothing else does
            for i in range(len(expected)):
                for j in range(i):
                    theirs = expected[i].data_ptr() == expected[j].data_ptr()
                    assert theirs == (actual[i].data_ptr() == actual[j].data_ptr()), f"seed {seed}"
