"""Times the candidates for a problem once and caches the fastest, in memory and on disk.

The cache folder is $FASTVISION_CACHE_DIR, else $XDG_CACHE_HOME/fastvision, else
~/.cache/fastvision. With FASTVISION_CACHE_DIR set to the empty string, choices last as long as the
process. A cache that cannot be read or written only costs time.
"""

from __future__ import annotations

import contextlib
import json
import logging
import math
import os
import tempfile
import threading
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from torch import Tensor

ROUNDS = 10
NOISE = 0.02  # relative; a candidate must gain more to replace an earlier one
GROSS_ERROR = 0.05  # relative to the largest value of an image
_logger = logging.getLogger(__name__)


def cache_folder() -> Path | None:
    """The cache folder, or None."""
    folder = os.environ.get("FASTVISION_CACHE_DIR")
    if folder is not None:
        return Path(folder) if folder else None
    root = os.environ.get("XDG_CACHE_HOME")
    with contextlib.suppress(RuntimeError):  # there may be no home
        return (Path(root) if root else Path.home() / ".cache") / "fastvision"
    return None


def cuda_seconds(call: Callable[[], object]) -> float:
    """Device time of one call with a cold L2 cache, since in a model other layers run in between.

    The host prepares the call while the device flushes its cache, which hides the launch.
    """
    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    device = torch.cuda.current_device()
    size = 2 * torch.cuda.get_device_properties(device).L2_cache_size
    torch.zeros(size, dtype=torch.uint8, device=f"cuda:{device}")
    start.record()
    call()
    end.record()
    end.synchronize()
    return start.elapsed_time(end) / 1e3


def _poison(like: Tensor) -> None:
    """Leaves NaN in the memory of the next tensor of this size, to expose uninitialized reads."""
    torch.full_like(like, math.nan)


def _agrees(actual: Tensor, expected: Tensor) -> bool:
    """Whether there is no gross error; candidates may round differently."""
    if actual.shape != expected.shape or actual.dtype != expected.dtype:
        return False
    for a, e in zip(actual, expected, strict=True):  # image by image, to save memory
        e = e.float()
        if not (a.float() - e).abs().max() <= GROSS_ERROR * e.abs().max():  # a NaN is an error
            return False
    return True


class Tuner:
    """Choices among named candidates, by a string that describes the problem."""

    def __init__(
        self,
        file: Path | None,
        seconds: Callable[[Callable[[], object]], float] = cuda_seconds,
    ) -> None:
        self._file, self._seconds = file, seconds
        self._lock = threading.Lock()
        self._choices = self._read()

    def known(self, key: str) -> str | None:
        """The cached choice, or None."""
        return self._choices.get(key)

    def choose(self, key: str, candidates: Mapping[str, Callable[[], Tensor]]) -> str:
        """Name of the fastest candidate whose result agrees with the first candidate's."""
        with self._lock:
            choice = self._choices.get(key)
            if choice is None or choice not in candidates:
                choice = self._fastest(candidates)
                self._choices[key] = choice
                self._write()
            return choice

    def _fastest(self, candidates: Mapping[str, Callable[[], Tensor]]) -> str:
        first, *others = candidates
        if not others:
            return first
        expected = candidates[first]()
        seconds = {first: math.inf}
        for name in others:
            try:
                _poison(expected)
                agrees = _agrees(candidates[name](), expected)
            except torch.OutOfMemoryError:
                raise
            except Exception as error:  # a library may raise anything for an unsupported problem
                _logger.debug("candidate %s fails: %s", name, error)
            else:
                if agrees:
                    seconds[name] = math.inf
                else:
                    _logger.warning("candidate %s gives a wrong result and is left out", name)
        del expected
        for _ in range(ROUNDS):  # in turns, so that a change of clock rate affects all
            for name in seconds:
                seconds[name] = min(seconds[name], self._seconds(candidates[name]))
        limit = min(seconds.values()) * (1 + NOISE)
        return next(name for name in seconds if seconds[name] <= limit)

    def _read(self) -> dict[str, str]:
        try:
            choices = json.loads(self._file.read_text())["choices"] if self._file else {}
            return {str(key): str(name) for key, name in choices.items()}
        except (OSError, ValueError, LookupError, TypeError, AttributeError):
            return {}

    def _write(self) -> None:
        if self._file is None:
            return
        # other processes may have added choices
        self._choices = self._read() | self._choices
        try:
            self._file.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.NamedTemporaryFile(
                "w", dir=self._file.parent, suffix=".tmp", delete=False
            ) as file:
                json.dump({"choices": self._choices}, file, indent=1)
            os.replace(file.name, self._file)  # readers see the old file or the new one
        except OSError as error:
            _logger.debug("choices are not kept: %s", error)
