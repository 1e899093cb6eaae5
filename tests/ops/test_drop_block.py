"""DropBlock against torchvision's under the same seed."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from fastvision import ops
from fastvision.testing.numerics import assert_matches

SHAPES = [(2, 3, 12, 15), (1, 2, 5, 3), (2, 1, 1, 7), (8, 64, 14, 13)]
VOLUMES = [(2, 3, 8, 7, 9), (1, 2, 1, 3, 5), (2, 8, 9, 14, 13)]


def modules(library, shape, *args, **kwargs):
    cls = library.DropBlock2d if len(shape) == 4 else library.DropBlock3d
    return cls(*args, **kwargs)


@pytest.mark.parametrize("inplace", [False, True])
@pytest.mark.parametrize("block", [1, 3, 7])
@pytest.mark.parametrize("shape", SHAPES + VOLUMES, ids=str)
def test_same_as_torchvisions(torchvision, shape, block, inplace):
    results = []
    for library in (ops, torchvision.ops):
        layer = modules(library, shape, 0.2, block, inplace)
        x = torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
        x.requires_grad_()
        torch.manual_seed(3)
        given = x * 2
        y = layer(given)
        assert (y is given) == inplace
        (grad,) = torch.autograd.grad(y.square().sum(), x)
        results.append((y.detach(), grad, torch.get_rng_state()))
        assert layer.eval()(x) is x
    (y, grad, state), (expected, expected_grad, expected_state) = results
    assert torch.equal(state, expected_state)
    assert torch.equal(y == 0, expected == 0) and torch.equal(grad == 0, expected_grad == 0)
    assert_matches(y, expected)
    assert_matches(grad, expected_grad, scale=8)


@pytest.mark.parametrize("small", [True, False], ids=["torch's pooling", "doubling"])
@pytest.mark.parametrize("block", [3, 5, 9, 11])
def test_drops_whole_blocks(monkeypatch, small, block):
    monkeypatch.setattr("fastvision.ops.drop_block._MIN_READS", 10**9 if small else 0)
    torch.manual_seed(block)
    x = torch.ones(4, 2, 20, 30)
    y = ops.drop_block2d(x, 0.3, block)
    dropped = (y == 0).float()
    assert 0 < dropped.mean() < 1
    # each dropped element is in a dropped block: opening the set with a block keeps it
    whole = -nn.functional.max_pool2d(-dropped, block, 1)
    pad = [block - 1] * 4
    covered = nn.functional.max_pool2d(nn.functional.pad(whole, pad), block, 1)
    assert torch.equal(covered, dropped)
    torch.testing.assert_close(y.sum(), x.sum(), rtol=1e-4, atol=0)


def test_drops_as_much_as_asked():
    torch.manual_seed(0)
    y = ops.drop_block2d(torch.ones(64, 16, 28, 28), 0.1, 3)
    assert abs((y == 0).float().mean() - 0.1) < 0.01


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_counts_in_float32(dtype):
    """100,352 elements: more than float16 can hold."""
    x = torch.ones(2, 16, 56, 56, dtype=dtype)
    torch.manual_seed(1)
    y = ops.drop_block2d(x, 0.1, 5)
    torch.manual_seed(1)
    expected = ops.drop_block2d(x.double(), 0.1, 5)
    assert y.dtype == dtype
    kept = (y > 0).double().mean()
    torch.testing.assert_close(y.double().max(), 1 / kept, rtol=4e-3, atol=0)
    assert expected.max() > 1


def test_channels_last_stays():
    x = torch.rand(2, 8, 12, 12).to(memory_format=torch.channels_last)
    assert ops.drop_block2d(x, 0.1, 3).is_contiguous(memory_format=torch.channels_last)


def test_errors(torchvision):
    for shape, p, block in (((1, 1, 4, 4), 1.5, 3), ((1, 4, 4), 0.1, 3), ((1, 1, 4, 4), 0.1, 2)):
        messages = []
        for library in (ops, torchvision.ops):
            with pytest.raises(ValueError, match="drop prob|dimensional|odd") as error:
                library.drop_block2d(torch.ones(shape), p, block)
            messages.append(str(error.value))
        assert messages[0] == messages[1]
    with pytest.raises(ValueError, match=r"input should be 5 dimensional\. Got 4 dimensions"):
        ops.drop_block3d(torch.ones(1, 1, 4, 4), 0.1, 3)
    with pytest.raises(ValueError, match=r"block size should be positive\. Got -1"):
        ops.drop_block2d(torch.ones(1, 1, 4, 4), 0.1, -1)
    with pytest.raises(TypeError, match="input must be float16"):
        ops.drop_block2d(torch.ones(1, 1, 4, 4, dtype=torch.int64), 0.1, 3)
    with pytest.raises(TypeError, match="p must be a number, got 'a'"):
        ops.drop_block2d(torch.ones(1, 1, 4, 4), "a", 3)
    with pytest.raises(TypeError, match="block_size must be an integer, got 2.5"):
        ops.drop_block2d(torch.ones(1, 1, 4, 4), 0.1, 2.5)
    assert ops.drop_block2d(torch.ones(0, 2, 4, 4), 0.1, 3).shape == (0, 2, 4, 4)
    assert ops.drop_block2d(torch.ones(1, 2, 0, 4), 0.1, 3).shape == (1, 2, 0, 4)


@pytest.mark.parametrize("shape", [(2, 8, 16, 16), (2, 4, 6, 8, 8)], ids=str)
def test_in_programs(torchvision, shape):
    layer = modules(ops, shape, 0.2, 3)
    assert repr(layer) == repr(modules(torchvision.ops, shape, 0.2, 3))
    graph = torch.fx.symbolic_trace(nn.Sequential(layer, nn.ReLU()))
    assert [node.op for node in graph.graph.nodes].count("call_function") == 1
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    x = torch.rand(shape)
    results = []
    for run in (layer, graph, compiled):
        torch.manual_seed(1)
        results.append(run(x))
    assert torch.equal(results[0], results[1]) and torch.equal(results[0], results[2])


@pytest.mark.parametrize("shape", [(1, 1, 5, 6), (1, 1, 3, 4, 5)], ids=str)
def test_is_differentiable(shape):
    def drop(x):
        torch.manual_seed(0)
        return modules(ops, shape, 0.2, 3)(x)

    x = torch.rand(shape, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(drop, x, check_forward_ad=True)
