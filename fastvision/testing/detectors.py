"""Images, targets and comparisons for tests of detectors."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from fastvision.testing import cases


def scenes(dtype: torch.dtype = torch.double) -> tuple[list[Tensor], list[dict[str, Tensor]]]:
    """Images of two sizes, and their objects, of which the second image has none."""
    images = [cases.feature_map(3, 70, 90, seed=1), cases.feature_map(3, 66, 60, seed=2)]
    boxes = torch.tensor([[5.0, 6, 50, 61], [20, 11, 57, 64], [30, 30, 58, 62]], dtype=dtype)
    targets = [
        {"boxes": boxes, "labels": torch.tensor([1, 3, 1])},
        {"boxes": boxes[:0], "labels": torch.tensor([], dtype=torch.int64)},
    ]
    return [x.to(dtype).sigmoid() for x in images], targets


def spread_scores(model: nn.Module, names: tuple[str, ...], seed: int = 0) -> nn.Module:
    """Gives the convolutions of these names, which predict, weights so large that scores differ
    by more than rounding."""
    generator = cases.generator(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith(names):
                values = torch.randn(parameter.shape, generator=generator, dtype=torch.double)
                fan = max(1, parameter[0].numel())
                parameter.copy_(values * (2 / fan**0.5 if parameter.dim() > 1 else 0.5))
    return model


def assert_same_losses(
    ours: nn.Module, theirs: nn.Module, images: list[Tensor], targets: list[dict[str, Tensor]]
) -> None:
    """The losses of a step of training, and all gradients."""
    results: list[tuple[dict[str, Tensor], dict[str, Any]]] = []
    for model in (ours, theirs):
        model.train().zero_grad()
        losses = model(images, targets)
        sum(losses.values()).backward()
        results.append((losses, {name: p.grad for name, p in model.named_parameters()}))
    (losses, gradients), (their_losses, their_gradients) = results
    assert losses.keys() == their_losses.keys()
    torch.testing.assert_close(losses, their_losses, rtol=1e-9, atol=1e-12, check_dtype=False)
    floor = 1e-12 * max(g.abs().max() for g in their_gradients.values() if g is not None)
    for name, expected in their_gradients.items():
        assert (gradients[name] is None) == (expected is None), name
        if expected is not None:
            off = (gradients[name] - expected).abs().max()
            assert off <= 1e-6 * expected.abs().max() + floor, name
