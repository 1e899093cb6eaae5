"""Models that torchvision does not have: gradients, fusion, export and copies of each."""

import copy
import pickle

import pytest
import torch

import fastvision
from fastvision import models
from fastvision.testing.models import OTHERS, images, randomize, tensors_of

CASES = {case.name: case for case in OTHERS}


def assert_same(actual, expected, tolerance=1e-4):
    """Each tensor to within ``tolerance`` of its largest value."""
    actual, expected = tensors_of(actual), tensors_of(expected)
    assert len(actual) == len(expected) > 0
    for a, b in zip(actual, expected, strict=True):
        assert a.shape == b.shape and a.dtype == b.dtype and a.stride() == b.stride()
        assert torch.isfinite(b).all() and (a - b).abs().max() <= tolerance * b.abs().max()


@pytest.fixture(scope="module", params=CASES)
def case(request):
    """The model in evaluation, and its input."""
    case = CASES[request.param]
    torch.manual_seed(0)
    model = randomize(models.get_model(case.name, **case.options)).eval()
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
        expected = model(x)
        assert_same(expected, unfused(model, x))
        nhwc = model(x.contiguous(memory_format=torch.channels_last))
        assert_same([t.contiguous() for t in tensors_of(nhwc)], expected)


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
    wide = tensors_of(other.double()(x.double()))
    assert_same([t.float() for t in wide], expected)
    for narrow in tensors_of(other.bfloat16()(x.bfloat16())):
        assert narrow.dtype == torch.bfloat16 and torch.isfinite(narrow).all()
