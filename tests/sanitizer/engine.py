"""One input through an op at all CPU levels."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from fastvision import _extension
from fastvision.ops.conv import linear, onednn, transposed_layer, winograd
from fastvision.testing.backends import LEVELS
from fastvision.testing.numerics import TOLERANCES, assert_matches

from . import boxes, convolutions, layers, losses, rois, suppression
from .inputs import Call, Results, Source

# by name: of each public op, and of kernels that only some of its calls reach
FUZZERS: dict[str, Callable[[Source], Call]] = {
    **boxes.FUZZERS,
    **rois.FUZZERS,
    **suppression.FUZZERS,
    **losses.FUZZERS,
    **layers.FUZZERS,
    **convolutions.FUZZERS,
}
# of arguments that may be nonsense
REFUSALS = (
    "rois: ",
    "targets: ",
    "indices must",
    "padding must",
    "output_size must",
    "does not fit",
    "has none of",
)
_SCALE = 8.0  # levels differ in fused multiply-adds
_REPEATED = 1 / 4  # of the inputs: the repetition costs as much as a level
_BITS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
Outcome = Results | str  # a string: why the op refused the arguments


def reach_kernels() -> None:
    """Small problems run in our kernels, where calls take those of others or of torch."""
    onednn.is_available = lambda: False
    linear._MIN_PACKED = 64
    winograd._MIN_PIXELS = winograd._MIN_STRIDED_PIXELS = winograd._MIN_PIXELS_ONCE = 1
    transposed_layer._MIN_PACKED_PIXELS = 1
    winograd._MIN_PIXELS_OF_TILE = winograd._MIN_PIXELS_OF_SLOW_TILE = winograd._MIN_STRIDED = 1
    warnings.filterwarnings("ignore", message=".*deterministic")


def levels() -> tuple[str, ...]:
    """The levels that this CPU can run."""
    assert _extension.missing is None, _extension.missing
    return LEVELS


def _outcome(call: Call, level: str, filled: bool) -> Outcome:
    """``filled``: new tensors hold NaN, or the largest integer, until they are written."""
    _extension.set_cpu_level(level)
    torch._C._set_deterministic_algorithms(filled, warn_only=True)
    try:
        return call()
    except (RuntimeError, ValueError) as error:
        if not any(name in str(error) for name in REFUSALS):
            raise
        return str(error)
    finally:
        torch._C._set_deterministic_algorithms(False)


def _same_bits(one: Tensor, other: Tensor) -> bool:
    kind = _BITS[one.itemsize]
    return torch.equal(one.view(kind), other.view(kind))


def _assert_close(actual: Sequence[Tensor], expected: Sequence[Tensor]) -> None:
    for one, other in zip(actual, expected, strict=True):
        if _same_bits(one, other):
            continue
        assert one.is_floating_point(), f"{one} instead of {other}"
        tolerance = TOLERANCES[one.dtype] * _SCALE
        a, b = one.double(), other.double()
        # a tenth of the time of assert_matches, which handles what is not finite
        if not bool(((a - b).abs() <= b.abs().add_(1).mul_(tolerance)).all()):
            assert_matches(one, other, scale=_SCALE)


def _assert_repeated(actual: Outcome, expected: Outcome) -> None:
    if isinstance(actual, str) or isinstance(expected, str):
        assert actual == expected
        return
    for one, other in zip(
        (*actual.close, *actual.repeated), (*expected.close, *expected.repeated), strict=True
    ):
        if _same_bits(one, other):
            continue
        # NaN has many forms
        ok = torch.equal(one.isnan(), other.isnan()) and _same_bits(
            one.nan_to_num(), other.nan_to_num()
        )
        assert ok, f"uninitialised or not deterministic: {one} and {other}"


class Engine:
    """Runs inputs of one fuzzer."""

    def __init__(self, name: str) -> None:
        self.name, self.fuzz = name, FUZZERS[name]
        self.rng = Source()
        self.levels = levels()
        self.threads = torch.get_num_threads()

    def run(self, seed: int) -> bool:
        """One input; whether the op took it."""
        rng = self.rng
        rng.begin(f"{self.name} {seed}")
        threads = 2 if rng.chance(0.25) else 1
        if threads != self.threads:
            torch.set_num_threads(threads)
            self.threads = threads
        call = self.fuzz(rng)
        found = [_outcome(call, level, False) for level in self.levels]
        first = found[0]
        for other in found[1:]:
            if isinstance(first, str) or isinstance(other, str):
                assert first == other
            else:
                _assert_close(other.close, first.close)
        if not isinstance(first, str) and rng.chance(_REPEATED):
            i = rng.randrange(len(found))
            _assert_repeated(_outcome(call, self.levels[i], True), found[i])
        return not isinstance(first, str)
