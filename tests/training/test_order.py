"""Which samples a step takes, and that their random transforms depend on nothing else."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch

from fastvision.training._data import Draws, TrainingOrder, batches, data_set, evaluation_order
from fastvision.training._random import (
    kept_cpu_state,
    random_state,
    seed_all,
    seed_cpu,
    set_random_state,
)


def draws_of_all_generators() -> tuple[float, float, float]:
    return random.random(), float(np.random.rand()), float(torch.rand(()))


def test_an_epoch_takes_every_sample_at_most_once() -> None:
    order = TrainingOrder(length=22, batch_size=4, parts=1, seed=0)
    assert order.steps_per_epoch == 5
    epochs = [[order.samples(5 * epoch + step) for step in range(5)] for epoch in range(2)]
    for number, steps in enumerate(epochs):
        samples = sum(steps, [])
        assert {epoch for epoch, _ in samples} == {number}
        assert len({index for _, index in samples}) == len(samples) == 20
    assert [i for step in epochs[0] for _, i in step] != [i for step in epochs[1] for _, i in step]


def test_order_depends_on_the_seed() -> None:
    orders = [TrainingOrder(100, 50, 1, seed).samples(0) for seed in (0, 0, 1)]
    assert orders[0] == orders[1] != orders[2]


@pytest.mark.parametrize(("parts", "count"), [(1, 2), (2, 1), (2, 2), (2, 3), (3, 2), (3, 4)])
def test_parts_and_processes_divide_a_batch(parts: int, count: int) -> None:
    """Each part is of the same samples for any number of processes: it is normalized by itself."""
    length, size = 100, 24
    one = TrainingOrder(length, size, parts, seed=4)
    shares = [TrainingOrder(length, size, parts, 4, rank, count) for rank in range(count)]
    for step in (0, 3, 4, 9):
        divided = [list(share.between(step, step + 1)) for share in shares]
        assert {len(part) for share in divided for part in share} == {size // parts // count}
        together = [sorted(sum(part, [])) for part in zip(*divided, strict=True)]
        assert together == [sorted(part) for part in one.between(step, step + 1)]
        assert sorted(sum(together, [])) == sorted(one.samples(step))


def test_order_between_steps_is_where_it_was() -> None:
    order = TrainingOrder(20, 4, 2, seed=0)
    assert list(order.between(0, 13))[2 * 7 :] == list(order.between(7, 13))


def test_batches_that_cannot_be_divided() -> None:
    with pytest.raises(ValueError, match="batch_size 9 cannot be divided among 2 processes"):
        TrainingOrder(50, 9, 1, 0, 0, 2)


@pytest.mark.parametrize("count", [1, 2, 5])
def test_testing_takes_every_sample_once(count: int) -> None:
    taken = [batch for rank in range(count) for batch in evaluation_order(13, 3, rank, count)]
    assert sorted(index for batch in taken for _, index in batch) == list(range(13))


def test_transforms_are_the_same_alone_and_with_workers(small) -> None:
    recipe = small("digits")
    draws = Draws(data_set(recipe, "train"), seed=1)
    keys = [[(0, 5), (0, 6)], [(1, 5), (0, 5)]]
    before = torch.get_rng_state()
    here = list(batches(draws, keys, torch.utils.data.default_collate, 0))
    assert torch.equal(before, torch.get_rng_state()), "torch's generator is left alone"
    there = list(batches(draws, keys, torch.utils.data.default_collate, 2))
    for (images, labels), (others, other_labels) in zip(here, there, strict=True):
        assert torch.equal(images, others) and torch.equal(labels, other_labels)
    assert torch.equal(here[0][0][0], here[1][0][1]), "same epoch and index"
    assert not torch.equal(here[0][0][0], here[1][0][0]), "another epoch"


def test_states_of_generators_come_back(tmp_path) -> None:
    seed_all(3)
    draws_of_all_generators()
    torch.save(random_state(), tmp_path / "states")
    expected = draws_of_all_generators()
    seed_all(4)
    assert draws_of_all_generators() != expected
    set_random_state(torch.load(tmp_path / "states", weights_only=True))
    assert draws_of_all_generators() == expected


def test_seeding_a_sample_leaves_no_trace() -> None:
    seed_all(3)
    expected = draws_of_all_generators()
    seed_all(3)
    with kept_cpu_state():
        seed_cpu(0, 1, 2)
        first = draws_of_all_generators()
        seed_cpu(0, 1, 2)
        assert draws_of_all_generators() == first
        seed_cpu(0, 2, 1)
        assert draws_of_all_generators() != first
    assert draws_of_all_generators() == expected
