"""What the test of all models does not reach in VGG, DenseNet, GoogLeNet and Inception-v3."""

import pytest
import torch

from fastvision import models
from fastvision.models.densenet import Transition, _load
from fastvision.testing.models import images, randomize

DEEP = ["vgg11_bn", "vgg13", "vgg16", "vgg16_bn", "vgg19", "vgg19_bn"]
DEEP += ["densenet161", "densenet169", "densenet201"]


@pytest.fixture(scope="module")
def torchvision():
    return pytest.importorskip("torchvision")


@pytest.mark.parametrize("name", DEEP)
def test_structure(torchvision, name):
    with torch.device("meta"):
        ours, theirs = models.get_model(name), torchvision.models.get_model(name)
    shapes = [(key, value.shape) for key, value in theirs.state_dict().items()]
    assert [(key, value.shape) for key, value in ours.state_dict().items()] == shapes
    layers = [[m for m in model.modules() if not list(m.children())] for model in (ours, theirs)]
    assert list(map(repr, layers[0])) == list(map(repr, layers[1]))


def test_auxiliary_classifier_of_inception(torchvision):
    torch.manual_seed(0)
    theirs = torchvision.models.inception_v3(init_weights=True, num_classes=10)
    torch.manual_seed(0)
    ours = models.inception_v3(num_classes=10)
    state = theirs.state_dict()
    assert list(ours.state_dict()) == list(state)
    assert all(torch.equal(value, state[key]) for key, value in ours.state_dict().items())
    results = []
    for model in (ours, theirs):
        torch.manual_seed(1)
        with torch.no_grad():
            results.append(model.train()(images(299)))
    assert results[0]._fields == results[1]._fields == ("logits", "aux_logits")
    for a, b in zip(*results, strict=True):
        assert a.shape == b.shape == (2, 10) and (a - b).abs().max() <= 1e-3 * b.abs().max()


@pytest.mark.parametrize(
    ("name", "file", "heads"),
    [
        ("googlenet", "googlenet-1378be20.pth", ("aux1", "aux2")),
        ("inception_v3", "inception_v3_google-0cc3c7bd.pth", ("AuxLogits",)),
    ],
)
def test_weights_with_auxiliary_classifiers(tmp_path, name, file, heads):
    state = models.get_model(name, init_weights=False, num_classes=10).state_dict()
    torch.save(state, tmp_path / file)
    options = {"num_classes": 10, "aux_logits": False}
    model = models.get_model(name, weights=tmp_path / file, **options)
    assert model.transform_input and not model.aux_logits
    assert all(getattr(model, head) is None for head in heads)
    kept = {key: value for key, value in state.items() if not key.startswith(heads)}
    assert kept.keys() == model.state_dict().keys() != state.keys()
    assert all(torch.equal(value, kept[key]) for key, value in model.state_dict().items())
    # the state dict of a model of one's own, in evaluation: nothing is missing, nothing is changed
    model = models.get_model(name, weights=kept, **options)
    assert not model.transform_input
    model = models.get_model(name, weights=state, num_classes=10, aux_logits=True)
    assert model.state_dict().keys() == state.keys()
    with pytest.raises(RuntimeError, match=heads[0]):
        models.get_model(name, weights=kept, num_classes=10, aux_logits=True)


def test_blocks():
    with pytest.raises(ValueError, match="3 elements, got 1"):
        models.GoogLeNet(blocks=[torch.nn.Conv2d])
    with pytest.raises(ValueError, match="7 elements, got 1"):
        models.Inception3(inception_blocks=[torch.nn.Conv2d])


def test_old_keys_of_densenet():
    options = {"growth_rate": 4, "block_config": (2, 1), "num_init_features": 8, "num_classes": 3}
    state = models.DenseNet(**options).state_dict()
    old = {}
    for key, value in state.items():
        for name in ("norm", "relu", "conv"):
            for i in "12":
                key = key.replace(f"{name}{i}.", f"{name}.{i}.") if "denselayer" in key else key
        old[key] = value
    assert "features.denseblock1.denselayer1.norm.1.weight" in old
    model = models.DenseNet(**options)
    _load(model, "densenet121", old, True)
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())


@pytest.mark.parametrize("training", [False, True])
def test_transition_pools_first(training):
    transition = randomize(Transition(16, 8)).train(training)
    x = torch.randn(2, 16, 7, 7).contiguous(memory_format=torch.channels_last)
    sizes = []
    expected = transition.pool(transition.conv(torch.relu(transition.norm(x))))
    assert torch.allclose(transition(x), expected, atol=1e-5)
    transition.conv.register_forward_hook(lambda module, args, result: sizes.append(result.shape))
    assert torch.allclose(transition(x), expected, atol=1e-5)
    assert sizes == [(2, 8, 7, 7)]  # what a hook sees is what the layers are named for
    transition.pool = torch.nn.MaxPool2d(2)
    changed = Transition(16, 8)
    changed.load_state_dict(transition.state_dict())
    changed.train(training).pool = transition.pool
    assert torch.allclose(changed(x), transition(x), atol=1e-5)


def test_memory_efficient_keeps_less():
    kept = []
    for memory_efficient in (False, True):
        model = models.DenseNet(8, (24,), 8, memory_efficient=memory_efficient)
        storages = {}

        def pack(x, storages=storages):
            storages[x.untyped_storage().data_ptr()] = x.untyped_storage().nbytes()
            return x

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
            result = model(images(64))  # whose graph keeps the storages alive
        kept.append(sum(storages.values()))
        del result
    assert kept[1] < 0.5 * kept[0], kept
