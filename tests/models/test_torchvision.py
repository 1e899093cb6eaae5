"""Models that torchvision has: same keys, same initialization, same results, same gradients."""

import pytest
import torch
from torch import nn

import fastvision
from fastvision import models
from fastvision.testing.models import TORCHVISION, assert_same, images, randomize, tensors_of

pytestmark = pytest.mark.long

CASES = {"-".join([case.name, *map(str, case.options)]): case for case in TORCHVISION}


@pytest.fixture(scope="module")
def torchvision():
    return pytest.importorskip("torchvision")


def loss_of(result):
    """A scalar that all results have a part in."""
    return sum((t.double() * torch.linspace(0.5, 1, t.numel()).view(t.shape)).sum() for t in result)


@pytest.mark.parametrize("name", CASES)
def test_model(torchvision, name):
    case = CASES[name]
    torch.manual_seed(0)
    theirs = torchvision.models.get_model(case.name, weights=None, **case.options)
    torch.manual_seed(0)
    ours = models.get_model(case.name, **case.options)
    state = theirs.state_dict()
    assert list(ours.state_dict()) == list(state)
    for key, value in ours.state_dict().items():
        assert torch.equal(value, state[key]), f"{key} starts with other values"
    assert [n for n, _ in ours.named_parameters()] == [n for n, _ in theirs.named_parameters()]

    theirs.load_state_dict(randomize(ours).state_dict())
    x = images(case.size)
    with torch.no_grad():
        expected = theirs.eval()(x)
        assert_same(ours.eval()(x), expected)
        assert_same(fastvision.fuse(ours)(x), expected)

    # which draws in the order of memory, and so differently for maps in another format
    dropouts = [
        [m for m in model.modules() if isinstance(m, nn.Dropout)] for model in (ours, theirs)
    ]
    assert [m.p for m in dropouts[0]] == [m.p for m in dropouts[1]]
    for module in sum(dropouts, []):
        module.p = 0.0
    gradients = []
    for model in (ours, theirs):
        model.double().train()
        outputs = tensors_of(model(x.double()))
        loss_of(outputs).backward()
        gradients.append([*outputs, *(p.grad for p in model.parameters())])
        gradients[-1] += [b for b in model.buffers() if b.is_floating_point()]
    # a parameter without effect, such as a bias before a normalization, has rounding errors only
    floor = 1e-12 * max(b.abs().max() for b in gradients[1])
    for a, b in zip(*gradients, strict=True):
        assert a.shape == b.shape and (a - b).abs().max() <= 1e-6 * b.abs().max() + floor
