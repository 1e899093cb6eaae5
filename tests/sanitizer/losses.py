"""Fuzzer of the focal losses."""

from __future__ import annotations

import random

import torch
from inputs import DTYPES, HOSTILE, random_layout
from torch import Tensor

from fastvision import ops


def random_logits(rng: random.Random, *shape: int) -> Tensor:
    x = torch.randn(shape) * rng.choice((1, 10, 200))
    for _ in range(rng.choice((0, 0, 3)) if x.numel() else 0):
        x.view(-1)[rng.randrange(x.numel())] = rng.choice(HOSTILE)
    return random_layout(rng, x.to(rng.choice(DTYPES)))


def random_labels(rng: random.Random, shape: tuple[int, ...], classes: int) -> Tensor:
    labels = torch.randint(-3, classes, shape) if classes > 0 else torch.full(shape, -1)
    if labels.numel() and rng.random() < 0.1:
        wrong = rng.choice((classes, classes + 1, 1 << 40, -(1 << 62)))
        labels.view(-1)[rng.randrange(labels.numel())] = wrong
    return random_layout(rng, labels)


def fuzz_focal_loss(rng: random.Random) -> list[Tensor]:
    classes = rng.choice((0, 1, 2, 7, 8, 9, 17, 80, 91))
    gamma = rng.choice((0, 0.5, 1, 1.5, 2, 3, 5.5))
    reduction = rng.choice(("none", "sum", "mean"))
    kind = rng.choice(("numbers", "labels", "levels", "softmax"))
    rows = rng.choice((0, 1, 3, 40, 1000))
    if kind == "levels":
        reduction = "sum" if reduction == "none" else reduction
        sizes = [rng.choice((0, 1, 5, 60)) for _ in range(rng.randint(1, 8))]
        inputs = [random_logits(rng, 2, size, classes) for size in sizes]
        targets: Tensor | list[Tensor] = random_labels(rng, (2, sum(sizes)), classes)
    else:
        inputs = [random_logits(rng, rows, classes)]
        targets = random_labels(rng, (rows,), classes)
    for x in inputs:
        x.requires_grad_(rng.random() < 0.8)
    if kind == "softmax":
        weights = torch.rand(classes) if rng.random() < 0.5 else None
        ignore_index = rng.choice((-100, -1, 0))
        if rng.random() < 0.7:  # most labels are no class otherwise
            assert isinstance(targets, Tensor)
            targets = targets.clamp(min=0) if classes else torch.full((rows,), ignore_index)
        loss = ops.softmax_focal_loss(inputs[0], targets, weights, gamma, reduction, ignore_index)
    else:
        alpha = rng.choice((-1, 0, 0.25, 1))
        if kind == "numbers":
            t = torch.rand(rows, classes)
            t = (t > 0.9).float() if rng.random() < 0.5 else t
            if t.numel() and rng.random() < 0.2:
                t.view(-1)[rng.randrange(t.numel())] = rng.choice(HOSTILE)
            targets = random_layout(rng, t.to(inputs[0].dtype))
        arguments = inputs if kind == "levels" else inputs[0]
        loss = ops.sigmoid_focal_loss(arguments, targets, alpha, gamma, reduction)
    wanted = [x for x in inputs if x.requires_grad]
    grads: list[Tensor] = []
    if wanted:
        grad = torch.rand_like(loss)
        grads = list(torch.autograd.grad(loss, wanted, grad, retain_graph=True))
        again = torch.autograd.grad(loss, wanted, grad)
        assert all(g.shape == x.shape for g, x in zip(grads, wanted, strict=True))
        for one, other in zip(grads, again, strict=True):
            assert torch.equal(one.isnan(), other.isnan())
            assert torch.equal(one.nan_to_num(), other.nan_to_num())
    return [loss.detach(), *grads]


FUZZERS = (fuzz_focal_loss,)
