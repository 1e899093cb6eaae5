"""Convolutions of one input that run as one in a fused detector."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from torch import nn

import fastvision
from fastvision.fusion.layers import weight_state
from fastvision.fusion.siblings import joined
from fastvision.models.detection.fcos import FCOSRegressionHead
from fastvision.models.detection.rpn import RPNHead
from fastvision.testing import cases

PAIRS = {RPNHead: ("cls_logits", "bbox_pred"), FCOSRegressionHead: ("bbox_reg", "bbox_ctrness")}


def maps(dtype: torch.dtype = torch.float32) -> list[torch.Tensor]:
    generator = cases.generator(0)
    return [torch.randn(2, 32, *size, generator=generator).to(dtype) for size in ((7, 9), (4, 5))]


def model_of(head: type[nn.Module]) -> nn.Module:
    torch.manual_seed(0)
    model = head(32, 3)
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.2)
    return model.eval()


def is_joined(model: nn.Module) -> bool:
    """Whether the last call ran the pair as one."""
    states = [weight_state(getattr(model, name)) for name in PAIRS[type(model)._fused_from[1]]]
    found = [state.made.get("joined") for state in states]
    own = [key for state in states for key in state.made if key != "joined"]
    return found[0] is not None and found[0] is found[1] and not own


def assert_follows(fused: nn.Module, model: nn.Module, dtype: torch.dtype = torch.float32) -> None:
    with torch.no_grad():
        torch.testing.assert_close(fused(maps(dtype)), model(maps(dtype)), rtol=1e-4, atol=1e-4)


@pytest.fixture(params=PAIRS, ids=lambda head: head.__name__)
def pair(request) -> tuple[nn.Module, nn.Module]:
    """A fused model, and the one it was made of."""
    model = model_of(request.param)
    fused = fastvision.fuse(model)
    assert_follows(fused, model)
    assert is_joined(fused)
    return fused, model


def test_channels_last(pair):
    fused, model = pair
    with torch.no_grad():
        x = [m.contiguous(memory_format=torch.channels_last) for m in maps()]
        torch.testing.assert_close(fused(x), model(x), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("which", [0, 1])
def test_changes_of_weights(pair, which):
    fused, model = pair
    name = PAIRS[type(model)][which]
    theirs, ours = getattr(model, name), getattr(fused, name)
    with torch.no_grad():
        for conv in (theirs, ours):
            conv.weight.mul_(1.5)
        assert_follows(fused, model)
        for conv in (theirs, ours):
            conv.bias.add_(1)
        assert_follows(fused, model)
        for conv in (theirs, ours):
            conv.weight = nn.Parameter(conv.weight * -1, requires_grad=False)
        assert_follows(fused, model)
        for conv in (theirs, ours):
            conv.load_state_dict({key: value + 1 for key, value in conv.state_dict().items()})
        assert_follows(fused, model)
        for conv in (theirs, ours):  # replaces memory without torch counting it
            conv._apply(lambda t: t * 2)
        assert_follows(fused, model)
    assert is_joined(fused)


def test_conversions_and_copies(pair):
    fused, model = pair
    assert_follows(copy.deepcopy(fused), model)
    assert_follows(pickle.loads(pickle.dumps(fused)), model)
    fused.double()
    assert_follows(fused, model.double(), torch.float64)
    assert is_joined(fused)


def test_other_numbers_of_convolutions(pair):
    fused, model = pair
    convs = [getattr(fused, name) for name in PAIRS[type(model)]]
    with torch.no_grad():
        assert joined(convs[:1]).out_channels == convs[0].out_channels
        assert joined(convs).out_channels == sum(conv.out_channels for conv in convs)
    assert_follows(fused, model)


def test_other_windows(pair):
    fused, model = pair
    for m in (fused, model):
        conv = getattr(m, PAIRS[type(model)][1])
        conv.dilation, conv.padding = (2, 2), tuple(2 * p for p in conv.padding)
    assert_follows(fused, model)
    assert not is_joined(fused)


def test_hooks(pair):
    fused, model = pair
    seen = []
    name = PAIRS[type(model)][1]
    handle = getattr(fused, name).register_forward_hook(lambda *args: seen.append(args))
    assert_follows(fused, model)
    assert len(seen) == 2
    handle.remove()
    fused.load_state_dict(model.state_dict())
    assert_follows(fused, model)
    assert len(seen) == 2


def test_gradients(pair):
    fused, model = pair

    def gradients(m: nn.Module) -> list[torch.Tensor]:
        x = [t.requires_grad_() for t in maps()]
        results = [t for part in m(x) for t in (part if isinstance(part, list) else [part])]
        return list(torch.autograd.grad(sum(t.square().sum() for t in results), x))

    torch.testing.assert_close(gradients(fused), gradients(model), rtol=1e-3, atol=1e-3)
    conv = getattr(fused, PAIRS[type(model)][0])
    conv.weight.requires_grad_()  # tuned after all
    result = fused(maps())[0]
    (result[0] if isinstance(result, list) else result).sum().backward()
    assert conv.weight.grad.abs().sum() > 0


def test_report(pair):
    fused, model = pair
    paths = [fusion.name for fusion in fused.fastvision_report.fused]
    assert set(PAIRS[type(model)]) <= set(paths)
    assert fused.fastvision_report.waiting == 0


def test_exported(pair):
    fused, model = pair
    with torch.no_grad():
        program = torch.export.export(fused, (maps(),)).module()
        torch.testing.assert_close(program(maps()), model(maps()), rtol=1e-4, atol=1e-4)
