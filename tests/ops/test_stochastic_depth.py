"""Stochastic depth against torchvision's under the same seed."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from fastvision import ops


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("shape", [(6, 3, 4, 5), (6,), (0, 3)], ids=str)
@pytest.mark.parametrize("p", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("mode", ["batch", "row"])
def test_same_as_torchvisions(torchvision, mode, p, shape, dtype):
    x = torch.randn(shape, dtype=dtype, requires_grad=True)
    results = []
    for library in (ops, torchvision.ops):
        torch.manual_seed(5)
        layer = library.StochasticDepth(p, mode)
        y = layer(x)
        (grad,) = torch.autograd.grad(y.sum(), x)
        results.append((y, grad, torch.get_rng_state(), library.stochastic_depth(x, p, mode)))
        assert layer.eval()(x) is x
    assert all(map(torch.equal, *results))
    assert results[0][0].dtype == dtype


def test_rows_are_kept_as_often_as_asked():
    torch.manual_seed(0)
    y = ops.stochastic_depth(torch.ones(20_000, 2), 0.25, "row")
    kept = y[:, 0] > 0
    assert torch.equal(y, kept[:, None] / torch.full((1, 2), 0.75))
    assert abs(kept.float().mean() - 0.75) < 0.02


def test_errors(torchvision):
    x = torch.ones(2, 2)
    for p, mode in ((-0.1, "row"), (1.1, "row"), (0.5, "column")):
        messages = []
        for library in (ops, torchvision.ops):
            with pytest.raises(ValueError, match="drop probability|mode has to be") as error:
                library.stochastic_depth(x, p, mode)
            messages.append(str(error.value))
        assert messages[0] == messages[1]
    with pytest.raises(ValueError, match="but got nan"):
        ops.stochastic_depth(x, float("nan"), "row")
    with pytest.raises(TypeError, match="p must be a number, got 'a'"):
        ops.stochastic_depth(x, "a", "row")
    with pytest.raises(ValueError, match=r"input must have shape \[N, ...\] in mode 'row'"):
        ops.stochastic_depth(x[0, 0], 0.5, "row")
    with pytest.raises(TypeError, match="input must be a Tensor, got list"):
        ops.stochastic_depth([1.0], 0.5, "row")


def test_in_programs(torchvision):
    layer = ops.StochasticDepth(0.5, "row")
    assert repr(layer) == repr(torchvision.ops.StochasticDepth(0.5, "row"))
    graph = torch.fx.symbolic_trace(nn.Sequential(layer, nn.ReLU()))
    assert [node.op for node in graph.graph.nodes].count("call_function") == 1
    x = torch.rand(8, 3)
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    results = []
    for run in (layer, graph, compiled):
        torch.manual_seed(1)
        results.append(run(x))
    assert torch.equal(results[0].relu(), results[1]) and torch.equal(results[0], results[2])
