"""Data sets of recipes, and the batches of every step."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset, StackDataset

from .. import data
from ..data._checks import check_split
from ..models.sequence import tasks
from ._random import kept_cpu_state, mixed, seed_cpu
from .recipe import Recipe, call, named

Key = tuple[int, int]  # epoch and index of a sample

_SEEDS = {"train": 1, "test": 2}  # of generated sequences


class Sequences(Dataset[Any]):
    """Inputs and targets that a function of :mod:`fastvision.models.sequence.tasks` generates.

    Args:
        generate: called as ``generate(length, steps, symbols, generator)``.
        split: other sequences for "test" than for "train".
        length: number of sequences.
        steps: of each sequence.
        symbols: size of the alphabet.
        seed: other sequences for another seed.
    """

    def __init__(
        self,
        generate: Callable[..., Any],
        split: str = "train",
        length: int = 1000,
        steps: int = 16,
        symbols: int = 12,
        seed: int = 0,
    ) -> None:
        check_split(split)
        generator = torch.Generator().manual_seed(len(_SEEDS) * seed + _SEEDS[split])
        inputs, targets = generate(length, steps, symbols, generator)
        if isinstance(inputs, tuple):
            inputs = StackDataset(*inputs)
        self.classes = tuple(str(symbol) for symbol in range(symbols))
        self._items = StackDataset(inputs, targets)

    def __len__(self) -> int:
        return len(self._items)

    def __getitem__(self, index: int) -> Any:
        return self._items[index]


_DATA_SETS: dict[str, Callable[..., Any]] = {
    "MNIST5k": data.MNIST5k,
    "Digits8x8": data.Digits8x8,
    "DigitScenes": data.DigitScenes,
    "LidarScenes": data.LidarScenes,
    "ImageFolder": data.ImageFolder,
    "VOCDetection": data.VOCDetection,
    "VOCSegmentation": data.VOCSegmentation,
    "CocoDetection": data.CocoDetection,
    "reversal": functools.partial(Sequences, tasks.reversal),
    "next_sample": functools.partial(Sequences, tasks.next_sample),
    "sorting": functools.partial(Sequences, tasks.sorting),
}
_TRANSFORMS: dict[str, Callable[..., Any]] = {
    name: getattr(data, name)
    for name in (
        "classification_training",
        "classification_evaluation",
        "detection_training",
        "detection_evaluation",
        "segmentation_training",
        "segmentation_evaluation",
    )
}


def data_set(recipe: Recipe, split: str) -> Any:
    """The data of a recipe with its transforms.

    Args:
        split: "train" or "test"; the recipe's table of this name may name another folder.

    Raises:
        ValueError: an option is unknown or out of its range.
    """
    section = {k: v for k, v in recipe.data.items() if k not in ("train", "test", "rgb")}
    section = {"split": split, **section, **recipe.data.get(split, {})}
    factory = named(_DATA_SETS, "data", section)
    training = split == "train" and recipe.augmentation is not None
    transforms = transforms_of(
        recipe.augmentation if training else recipe.preparation,
        "augmentation" if training else "preparation",
        recipe.data.get("rgb", False),
    )
    given = {} if transforms is None else {"transforms": transforms}
    return call(factory, "data", section, **given)


def check_classes(train: Sequence[str], test: Sequence[str]) -> None:
    """Labels have to mean the same in both splits.

    Raises:
        ValueError: the classes differ.
    """
    if tuple(train) != tuple(test):
        raise ValueError(
            f"the classes of the training data are {', '.join(train)}, those of the test data "
            f"{', '.join(test)}; name the classes of both in data.classes"
        )


def transforms_of(section: dict[str, Any] | None, where: str, rgb: bool) -> Any:
    """The transforms of a recipe's table ``where``; None without one.

    Args:
        rgb: whether grey images become RGB first.

    Raises:
        ValueError: an option is unknown or out of its range.
    """
    if section is None:
        return None
    transforms = call(named(_TRANSFORMS, where, section), where, section)
    if not rgb:
        return transforms
    from torchvision.transforms import v2

    return v2.Compose([v2.RGB(), transforms])


class Draws(Dataset[Any]):
    """Samples whose random transforms depend on the seed, the epoch and the index alone.

    So a batch is the same for any number of workers and processes, and after a break. Generators of
    the process are left as they were.
    """

    def __init__(self, samples: Any, seed: int) -> None:
        self.samples = samples
        self.seed = seed

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, key: Key) -> Any:
        return self.__getitems__([key])[0]

    def __getitems__(self, keys: Sequence[Key]) -> list[Any]:
        batch = []
        with kept_cpu_state():
            for epoch, index in keys:
                seed_cpu(self.seed, epoch, index)
                batch.append(self.samples[index])
        return batch


class TrainingOrder:
    """Which samples each step takes: a random order per epoch, without its incomplete last batch.

    Args:
        length: of the data.
        batch_size: samples per step, over all processes and parts.
        parts: of each step, in each process.
        seed: of the orders.
        rank, count: of this process and of all.

    Raises:
        ValueError: the data is smaller than a batch, or a batch cannot be divided evenly.
    """

    def __init__(
        self, length: int, batch_size: int, parts: int, seed: int, rank: int = 0, count: int = 1
    ) -> None:
        if batch_size % (parts * count):
            raise ValueError(
                f"batch_size {batch_size} cannot be divided among {count} processes and "
                f"{parts} parts"
            )
        self.steps_per_epoch = length // batch_size
        if not self.steps_per_epoch:
            raise ValueError(f"batch_size {batch_size} is more than the {length} training samples")
        self.length = length
        self.batch_size = batch_size
        self.parts = parts
        self.seed = seed
        self.rank = rank
        self.count = count
        self._shuffled: tuple[int, list[int]] = (-1, [])  # epoch and its order

    def samples(self, step: int) -> list[Key]:
        """Epoch and index of each of this process's samples in a step."""
        epoch, batch = divmod(step, self.steps_per_epoch)
        start = batch * self.batch_size + self.rank
        stop = (batch + 1) * self.batch_size
        return [(epoch, index) for index in self._order(epoch)[start : stop : self.count]]

    def between(self, first: int, last: int) -> Iterator[list[Key]]:
        """The samples of one part after the other, of the steps from ``first`` to ``last``."""
        for step in range(first, last):
            samples = self.samples(step)
            size = len(samples) // self.parts
            for part in range(self.parts):  # one after the other, so that the processes' are one's
                yield samples[part * size : (part + 1) * size]

    def _order(self, epoch: int) -> list[int]:
        if self._shuffled[0] != epoch:
            generator = torch.Generator().manual_seed(mixed(self.seed, epoch))
            self._shuffled = epoch, torch.randperm(self.length, generator=generator).tolist()
        return self._shuffled[1]


def evaluation_order(length: int, batch_size: int, rank: int, count: int) -> Iterator[list[Key]]:
    """Every sample once, over all processes: none is repeated to make their shares equal."""
    samples = [(0, index) for index in range(rank, length, count)]
    for start in range(0, len(samples), batch_size):
        yield samples[start : start + batch_size]


def batches(
    draws: Draws, order: Iterable[list[Key]], collate: Callable[[Any], Any], workers: int
) -> Iterator[Any]:
    """What ``collate`` makes of the samples in each list of ``order``."""
    loader: DataLoader[Any] = DataLoader(
        draws,
        batch_sampler=order,
        collate_fn=collate,
        num_workers=workers,
        pin_memory=torch.cuda.is_available(),
        worker_init_fn=_leave_group,
        generator=torch.Generator(),  # else it draws from the one that models use
    )
    return iter(loader)


def _leave_group(_: int) -> None:
    """Ctrl-C, and the SIGTERM of torchrun, go to a group of processes, but the one that trains
    decides what they mean: it needs the batches of its last step. Signals are not ignored, since
    with SIGTERM it ends its workers."""
    os.setpgrp()
