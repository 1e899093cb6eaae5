"""Results of fuse(model, training=True) that may still be continued: writes, hooks, gradients."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import fastvision
from fastvision.fusion.pending import Pending
from fastvision.ops import FrozenBatchNorm2d
from fastvision.testing.fused_training import Uses, assert_same, images, train_once


@torch.jit.script
def scripted(y):
    return torch.tanh(y) * y


def test_writes_in_between_are_errors():
    def write_input(m, y, x):
        m.seen.mul_(2)
        return F.relu(y)

    def write_residual(m, y, x):
        r = x * 1
        y = y + r
        r.zero_()
        return F.relu(y)

    for use in (write_input, write_residual):
        model = fastvision.fuse(Uses(use), training=True)
        model.conv.register_forward_hook(
            lambda m, args, out, model=model: setattr(model, "seen", out)
        )
        with pytest.raises(RuntimeError, match="modified in place"):
            model(images().float())


def test_opaque_code_never_gets_a_wrong_gradient():
    def scripted_after_write(m, y, x):
        before = y
        y += x
        return scripted(before)

    with pytest.raises(RuntimeError):  # TorchScript keeps the message to itself
        fastvision.fuse(Uses(scripted_after_write), training=True)(images().float())

    @torch.jit.script
    def writes(y):
        return y.add_(1)

    with pytest.raises(RuntimeError):
        fastvision.fuse(Uses(lambda m, y, x: writes(y)), training=True)(images().float())


def test_a_pending_is_a_tensor():
    kept = []
    model = fastvision.fuse(Uses(lambda m, y, x: kept.append(y) or y.relu()), training=True)
    model(images().float())
    (y,) = kept
    assert type(y) is Pending and isinstance(y, torch.Tensor)
    assert y.shape == (3, 4, 6, 5) and y.requires_grad and not y.is_leaf and y.grad_fn is not None
    assert "Pending" not in repr(y) and torch.equal(copy.deepcopy(y.detach()), y)


def test_constant_statistics_are_those_of_the_call():
    def update_in_between(m, y, x):
        with torch.no_grad():
            m.norm.running_mean.add_(3)
            m.norm.running_var.mul_(2)
        return F.relu(y)

    for norm in (nn.BatchNorm2d, FrozenBatchNorm2d):
        model = Uses(update_in_between, norm)
        if norm is nn.BatchNorm2d:
            model.norm.eval()
        trained = fastvision.fuse(copy.deepcopy(model), training=True)
        torch.testing.assert_close(trained(images().float()), model(images().float()))


def test_gradients_of_a_continued_result_are_refused():
    def late_hook(m, y, x):
        z = F.relu(y)
        y.register_hook(lambda grad: grad)
        return z

    def late_gradient(m, y, x):
        z = F.relu(y)
        torch.autograd.grad(z.sum(), y, allow_unused=True)
        return z

    for use in (late_hook, late_gradient):
        with pytest.raises(RuntimeError, match="no gradient of its own"):
            fastvision.fuse(Uses(use), training=True)(images().float())


def test_hooks_are_not_lost_in_opaque_code():
    def hook_then_opaque(m, y, x):
        y.register_hook(lambda grad: grad * 2)
        return scripted(y)

    with pytest.raises(RuntimeError):
        fastvision.fuse(Uses(hook_then_opaque), training=True)(images().float())


def test_results_written_to_a_given_tensor_and_inference_mode():
    def out(m, y, x):
        with torch.no_grad():
            b = torch.empty_like(x)
            torch.add(y, x, out=b)
            torch.sigmoid(y, out=b)
        with torch.inference_mode():
            y.abs()
        return F.relu(y) + b

    model = Uses(out).double()
    expected = copy.deepcopy(model)
    trained = fastvision.fuse(model, training=True)
    assert_same(train_once(trained, images()), train_once(expected, images()))
