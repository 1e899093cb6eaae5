"""Batches of samples."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset


def collate_detection(samples: Sequence[tuple[Any, Any]]) -> tuple[list[Any], list[Any]]:
    """Images and targets in two lists, as detectors take them: no two need to agree in size."""
    images, targets = zip(*samples, strict=True)
    return list(images), list(targets)


def loader(
    dataset: Dataset[Any],
    batch_size: int,
    *,
    training: bool,
    collate: Callable[[Any], Any] | None = None,
    workers: int = 0,
    seed: int = 0,
) -> DataLoader[Any]:
    """A DataLoader that gives the same batches for the same seed.

    Args:
        dataset: of images and targets.
        batch_size: samples per batch.
        training: whether to shuffle, with a new order in each epoch, and leave out the last batch
            if it is not full.
        collate: makes a batch of samples; :func:`collate_detection`, or None to stack them.
        workers: processes that read samples.
        seed: of the order, and of random transforms in workers.

    Random transforms repeat for the same number of workers, and differ between epochs. Without
    workers they draw from the generators of this process, which the caller may seed. Training can
    be continued with the batches of any epoch if each one begins with
    ``loader.generator.manual_seed(seed + epoch)``.
    """
    return DataLoader(
        dataset,
        batch_size,
        shuffle=training,
        drop_last=training,
        collate_fn=collate,
        num_workers=workers,
        pin_memory=torch.cuda.is_available(),
        generator=torch.Generator().manual_seed(seed),  # workers seed all theirs from it
    )
