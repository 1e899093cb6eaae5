"""Models that torchvision does not have: gradients, fusion, export and copies of each."""

import copy
import pickle

import pytest
import torch

import fastvision
from fastvision import models
from fastvision.testing.models import OTHERS, assert_same, images, randomize, tensors_of

CASES = {case.name: case for case in OTHERS}


def calibrate(model, x):
    """Weights and statistics with which activations keep their magnitude, whatever the depth, so
    that results depend on the images."""
    for module in model.modules():
        if isinstance(module, torch.nn.Conv2d):
            torch.nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = 1.0
    with torch.no_grad():
        model.train()(x)
    return model.eval()


def plain(result):
    """The tensors as float32, contiguous."""
    return [t.float().contiguous() for t in tensors_of(result)]


@pytest.fixture(scope="module", params=CASES)
def case(request):
    """The model in evaluation, and its input."""
    case = CASES[request.param]
    torch.manual_seed(0)
    model = randomize(models.get_model(case.name, **case.options))
    calibrate(model, images(case.size, batch=8, seed=1, channels=case.channels))
    return model, images(case.size, channels=case.channels)


def unfused(model, x):
    """The result with every layer called by itself."""
    model = copy.deepcopy(model)
    for module in model.modules():
        module.register_forward_hook(lambda *_: None)
    with torch.no_grad():
        return model(x)


def test_forward(case):
    model, x = case
    with torch.no_grad():
        expected = tensors_of(model(x))
        assert all((t[0] - t[1]).abs().max() > 1e-2 * t.abs().max() for t in expected)
        assert_same(expected, unfused(model, x))
        nhwc = model(x.contiguous(memory_format=torch.channels_last))
        assert_same(plain(nhwc), plain(expected))


def test_backward(case):
    model, x = case
    model = copy.deepcopy(model).train()
    sum(t.square().sum() for t in tensors_of(model(x))).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and torch.isfinite(parameter.grad).all(), name
        assert parameter.grad.abs().max() > 0, name


@torch.no_grad()
def test_fuse(case):
    model, x = case
    assert_same(fastvision.fuse(model)(x), model(x))


@torch.no_grad()
def test_export(case):
    model, x = case
    assert_same(torch.export.export(model, (x,)).module()(x), model(x))


@torch.no_grad()
def test_pickle_and_types(case):
    model, x = case
    expected = model(x)
    other = pickle.loads(pickle.dumps(model))
    assert_same(other(x), expected)
    assert_same(plain(other.double()(x.double())), plain(expected))
    for narrow in tensors_of(other.bfloat16()(x.bfloat16())):
        assert narrow.dtype == torch.bfloat16 and torch.isfinite(narrow).all()


@torch.no_grad()
def test_plain_bottleneck_is_its_layers_in_turn():
    block = randomize(models.plain.PlainBottleneck(64, 16)).eval()
    x = torch.randn(2, 64, 8, 8, generator=torch.Generator().manual_seed(0))
    layers = ("conv1", "bn1", "relu", "conv2", "bn2", "relu", "conv3", "bn3", "relu")
    expected = x.clone()
    for name in layers:
        expected = getattr(block, name)(expected)
    assert (block(x) - expected).abs().max() <= 1e-5 * expected.abs().max()
