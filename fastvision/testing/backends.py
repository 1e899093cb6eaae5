"""The implementations of an op that tests run one after the other, and which of them run here."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from fastvision import _extension
from fastvision.ops._backend import unsupported


@dataclass(frozen=True)
class Backend:
    name: str  # for the argument ``backend`` of the ops
    device: str
    level: str | None = None  # of the CPU kernels

    def __str__(self) -> str:
        if self.level is not None:
            return f"{self.name}-{self.level}"
        return "triton-gpu" if (self.name, self.device) == ("triton", "cuda") else self.name

    @property
    def interpreted(self) -> bool:
        """Triton's interpreter takes about a millisecond per program: keep its inputs small."""
        return self.name == "triton" and self.device == "cpu"

    @property
    def missing(self) -> str | None:
        """Why it cannot run on this machine, or None."""
        if self.device == "cuda" and not torch.cuda.is_available():
            return "no CUDA device"
        reason = unsupported(self.name, self.device, 0 if self.device == "cuda" else None)
        return reason if reason is not None or self.level is None else _level_missing(self.level)


def _level_missing(level: str) -> str | None:
    if _extension.missing is not None:
        return _extension.missing
    before = _extension.cpu_level()
    try:
        _extension.set_cpu_level(level)
    except ValueError as error:
        return str(error)
    _extension.set_cpu_level(before)
    return None


# of the CPU kernels, those that run on this machine, lowest first
LEVELS = tuple(level for level in _extension.cpu_levels() if _level_missing(level) is None)
BACKENDS = (
    *(Backend("cpp", "cpu", level) for level in ("baseline", "avx2", "avx512")),
    Backend("reference", "cpu"),
    Backend("triton", "cpu"),
    Backend("cuda", "cuda"),
    Backend("triton", "cuda"),
)
