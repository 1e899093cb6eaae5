"""The states of all random generators."""

from __future__ import annotations

import contextlib
import hashlib
import random
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch

_memory: Any = torch.utils.deterministic  # untyped


def seed_all(*seeds: int) -> None:
    """Seeds Python's, NumPy's and torch's generators, that of a GPU included."""
    seed = mixed(*seeds)
    _seed_cpu(seed)
    if torch.cuda.is_available():
        torch.cuda.manual_seed(seed)


@contextlib.contextmanager
def reproducible(deterministic: bool) -> Iterator[None]:
    """Keeps the caller's generators, and torch's choice of algorithms, as they were."""
    states = random_state()
    before = (
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
        _memory.fill_uninitialized_memory,
        torch.backends.cudnn.benchmark,
    )
    if deterministic:
        torch.use_deterministic_algorithms(True, warn_only=True)
        _memory.fill_uninitialized_memory = False  # takes time, changes nothing
        torch.backends.cudnn.benchmark = False
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])
        _memory.fill_uninitialized_memory = before[2]
        torch.backends.cudnn.benchmark = before[3]
        set_random_state(states)


@contextlib.contextmanager
def kept_cpu_state() -> Iterator[None]:
    """Puts the generators that :func:`seed_cpu` changes back as they were."""
    states = random.getstate(), np.random.get_state(), torch.get_rng_state()
    try:
        yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
        torch.set_rng_state(states[2])


def seed_cpu(*seeds: int) -> None:
    """Seeds Python's, NumPy's and torch's generators of this process."""
    _seed_cpu(mixed(*seeds))


def random_state() -> dict[str, Any]:
    """All states, of types that ``torch.load`` reads without running code."""
    version, words, gauss = random.getstate()
    name, keys, *rest = np.random.get_state(legacy=True)
    state = {
        "python": [version, list(words), gauss],
        "numpy": [name, torch.from_numpy(np.asarray(keys).astype(np.int64)), *rest],
        "torch": torch.get_rng_state(),
    }
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state()
    return state


def set_random_state(state: dict[str, Any]) -> None:
    version, words, gauss = state["python"]
    random.setstate((version, tuple(words), gauss))
    name, keys, *rest = state["numpy"]
    np.random.set_state((name, keys.numpy().astype(np.uint32), *rest))
    torch.set_rng_state(state["torch"])
    if torch.cuda.is_available() and "cuda" in state:
        torch.cuda.set_rng_state(state["cuda"])


def mixed(*seeds: int) -> int:
    """One seed of several numbers; neighbours among them give unrelated ones."""
    return int.from_bytes(hashlib.blake2b(repr(seeds).encode(), digest_size=8).digest(), "little")


def _seed_cpu(seed: int) -> None:
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.default_generator.manual_seed(seed)
