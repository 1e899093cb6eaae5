"""MLP against torchvision's."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from fastvision import ops
from fastvision.testing.numerics import assert_matches

MLPS = [
    (8, [16, 4], {}),
    (8, [16, 12, 4], {"norm_layer": nn.LayerNorm, "activation_layer": nn.GELU}),
    (8, [4], {"bias": False, "activation_layer": nn.SiLU}),
    (8, [16, 4], {"dropout": 0.4}),
    (8, [16, 4], {"activation_layer": nn.LeakyReLU, "inplace": False}),
]


@pytest.mark.parametrize(("features", "hidden", "options"), MLPS)
def test_mlp(torchvision, features, hidden, options):
    results = []
    for library in (ops, torchvision.ops):
        torch.manual_seed(0)
        module = library.MLP(features, hidden, **options).double()
        x = torch.randn(2, 5, features, dtype=torch.float64, requires_grad=True)
        y = module(x)
        grads = torch.autograd.grad(y.square().sum(), [x, *module.parameters()])
        results.append((repr(module), list(module.state_dict()), [y, *grads]))
    assert results[0][:2] == results[1][:2]
    for actual, expected in zip(results[0][2], results[1][2], strict=True):
        assert_matches(actual, expected, scale=8)


def test_mlp_takes_the_op_for_many_rows(torchvision, monkeypatch):
    calls = []
    op = ops.linear_act

    def counted(*args, **kwargs):
        calls.append(kwargs["activation"])
        return op(*args, **kwargs)

    monkeypatch.setattr("fastvision.ops.chain.linear_act", counted)
    ours, theirs = ops.MLP(8, [16, 4]).eval(), torchvision.ops.MLP(8, [16, 4]).eval()
    theirs.load_state_dict(ours.state_dict())
    for rows in (1, 3000):
        x = torch.randn(rows, 8)
        with torch.no_grad():
            assert_matches(ours(x), theirs(x), scale=8)
        assert calls == ["relu", "none"] * (rows > 1)
    ours(x)  # with a gradient, torch's
    assert len(calls) == 2
    assert ours(torch.rand(0, 8)).shape == (0, 4)


def test_mlp_without_layers():
    with pytest.raises(ValueError, match="hidden_channels must have at least one element"):
        ops.MLP(8, [])
    assert len(ops.MLP(8, [4, 4], activation_layer=None)) == 4
