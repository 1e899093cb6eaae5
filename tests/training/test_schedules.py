"""Learning rates over the steps."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from fastvision.training._schedules import optimizer_of, schedule_of


def rates(total: int, **section: object) -> list[float]:
    optimizer = optimizer_of({"name": "SGD", "lr": 1.0}, nn.Linear(1, 1))
    schedule = schedule_of(section, optimizer, total)
    values = []
    for _ in range(total):
        values.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    return values


def test_constant() -> None:
    assert rates(3, name="constant") == [1, 1, 1]


def test_warmup() -> None:
    assert rates(6, name="constant", warmup=3) == [0.25, 0.5, 0.75, 1, 1, 1]


def test_warmup_is_not_negative() -> None:
    with pytest.raises(ValueError, match=r"schedule: cosine: warmup must be at least 0, got -1"):
        rates(3, name="cosine", warmup=-1)


def test_cosine_is_the_one_of_torch() -> None:
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], 1.0)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 20, eta_min=0.1)
    expected = []
    for _ in range(20):
        expected.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    assert rates(20, name="cosine", floor=0.1) == pytest.approx(expected)


def test_poly() -> None:
    expected = [(1 - step / 10) ** 0.9 for step in range(10)]
    assert rates(10, name="poly") == pytest.approx(expected)


def test_steps() -> None:
    expected = [1] * 2 + [0.5] * 1 + [0.25] * 1
    assert rates(4, name="step", gamma=0.5) == pytest.approx(expected)


def test_parameters_that_are_not_trained_are_left_out() -> None:
    model = nn.Linear(2, 2)
    model.bias.requires_grad = False
    optimizer = optimizer_of({"name": "AdamW", "lr": 0.1}, model)
    assert optimizer.param_groups[0]["params"] == [model.weight]
