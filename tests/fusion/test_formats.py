"""The memory format of images within a fused model, and code that depends on it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from fastvision._memory_format import is_channels_last
from fastvision.testing.fusion import adversary, check, conv, image, net

pytestmark = pytest.mark.usefixtures("one_thread", "small_weights_are_packed")


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
