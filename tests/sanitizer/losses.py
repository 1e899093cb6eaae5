"""Fuzzers of the focal losses."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fastvision import ops

from .inputs import DTYPES, Call, Results, Source, random_layout, spoil

_CLASSES, _MORE_CLASSES = (0, 1, 2, 3, 7, 8, 9, 16, 17), (31, 33, 80, 91)
_ROWS, _MORE_ROWS = (0, 1, 2, 3, 5, 9, 17), (40, 1000, 2100)
_GAMMAS = (0, 0.5, 1, 1.5, 2, 3, 5.5)


def _logits(rng: Source, *shape: int) -> Tensor:
    x = torch.randn(shape) * rng.choice((1, 10, 200))
    if rng.chance(0.3):
        spoil(rng, x, 3)
    x = random_layout(rng, x.to(rng.choice(DTYPES)))
    return x.requires_grad_(rng.chance(0.8))


def _labels(rng: Source, shape: tuple[int, ...], classes: int) -> Tensor:
    labels = torch.randint(-3, classes, shape) if classes > 0 else torch.full(shape, -1)
    if labels.numel() and rng.chance(0.1):
        wrong = rng.choice((classes, classes + 1, 1 << 40, -(1 << 62)))
        labels.view(-1)[rng.randrange(labels.numel())] = wrong
    return random_layout(rng, labels)


def _call(run: Any, inputs: list[Tensor], again: bool) -> Call:
    """The loss and its gradients; ``again``: twice, from what the forward saved."""
    wanted = [x for x in inputs if x.requires_grad]

    def call() -> Results:
        loss = run()
        grads: list[Tensor] = []
        if wanted:
            grad = torch.full_like(loss, 0.7)
            grads = list(torch.autograd.grad(loss, wanted, grad, retain_graph=again))
            assert all(g.shape == x.shape for g, x in zip(grads, wanted, strict=True))
        if wanted and again:
            for one, other in zip(grads, torch.autograd.grad(loss, wanted, grad), strict=True):
                assert torch.equal(one.nan_to_num(), other.nan_to_num())
        return Results([loss.detach(), *grads])

    return call


def sigmoid_focal_loss(rng: Source) -> Call:
    classes, gamma = rng.size(_CLASSES, _MORE_CLASSES), rng.choice(_GAMMAS)
    reduction, alpha = rng.choice(("none", "sum", "mean")), rng.choice((-1, 0, 0.25, 1))
    kind = rng.choice(("numbers", "labels", "levels"))
    targets: Tensor
    arguments: Any
    if kind == "levels":
        reduction = "sum" if reduction == "none" else reduction
        sizes = [rng.size((0, 1, 3, 5), (60, 300)) for _ in range(rng.randint(1, 5))]
        arguments = inputs = [_logits(rng, 2, size, classes) for size in sizes]
        targets = _labels(rng, (2, sum(sizes)), classes)
    else:
        rows = rng.size(_ROWS, _MORE_ROWS)
        inputs = [_logits(rng, rows, classes)]
        arguments = inputs[0]
        targets = _labels(rng, (rows,), classes)
        if kind == "numbers":
            targets = torch.rand(rows, classes)
            targets = (targets > 0.9).float() if rng.chance(0.5) else targets
            if rng.chance(0.2):
                spoil(rng, targets)
            targets = random_layout(rng, targets.to(inputs[0].dtype))
    return _call(
        lambda: ops.sigmoid_focal_loss(arguments, targets, alpha, gamma, reduction),
        inputs,
        rng.chance(0.2),
    )


def softmax_focal_loss(rng: Source) -> Call:
    classes, rows = rng.size(_CLASSES, _MORE_CLASSES), rng.size(_ROWS, _MORE_ROWS)
    inputs = [_logits(rng, rows, classes)]
    targets = _labels(rng, (rows,), classes)
    weights = torch.rand(classes) if rng.chance(0.5) else None
    ignore_index = rng.choice((-100, -1, 0))
    if rng.chance(0.7):  # most labels are no class otherwise
        targets = targets.clamp(min=0) if classes else torch.full((rows,), ignore_index)
    gamma, reduction = rng.choice(_GAMMAS), rng.choice(("none", "sum", "mean"))
    return _call(
        lambda: ops.softmax_focal_loss(inputs[0], targets, weights, gamma, reduction, ignore_index),
        inputs,
        rng.chance(0.2),
    )


FUZZERS = {function.__name__: function for function in (sigmoid_focal_loss, softmax_focal_loss)}
