"""Random and hostile inputs through the public ops, for a library built with sanitizers.

A read or write outside a buffer and undefined behaviour end the process; all the ops may do with
nonsense is to refuse it with an exception that names the argument. Run by
tests/kernels/test_sanitizers.py.
"""

from __future__ import annotations

import argparse
import random
import time
from collections.abc import Callable

import boxes
import layers
import losses
import rois
import suppression
import torch
from torch import Tensor

from fastvision import _extension
from fastvision.testing.numerics import assert_matches

FUZZERS = (
    *boxes.FUZZERS,
    *rois.FUZZERS,
    *suppression.FUZZERS,
    *losses.FUZZERS,
    *layers.FUZZERS,
)
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


def outcome(fuzz: Callable[[random.Random], list[Tensor]], seed: int) -> list[Tensor] | str:
    """What one input gives, or why it is refused."""
    torch.manual_seed(seed)
    try:
        return fuzz(random.Random(seed))
    except (RuntimeError, ValueError) as error:
        if not any(name in str(error) for name in REFUSALS):
            raise
        return str(error)


def assert_same(actual: list[Tensor] | str, expected: list[Tensor] | str) -> None:
    if isinstance(actual, str) or isinstance(expected, str):
        assert actual == expected
        return
    for one, other in zip(actual, expected, strict=True):
        if one.is_floating_point():  # levels differ in fused multiply-adds
            assert_matches(one, other, scale=8)
        else:
            assert torch.equal(one, other)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--seconds", type=float, default=20)
    parser.add_argument("--seed", type=int, default=0)
    names = {fuzz.__name__.removeprefix("fuzz_"): fuzz for fuzz in FUZZERS}
    parser.add_argument("--op", action="append", choices=names, help="only this (repeatable)")
    options = parser.parse_args()
    assert _extension.missing is None, _extension.missing
    levels = _extension.cpu_levels()
    levels = levels[: levels.index(_extension.cpu_level_supported()) + 1]
    torch.set_num_threads(2)

    fuzzers = [names[name] for name in options.op or names]
    done = refused = 0
    start = time.monotonic()
    while done < 40 or time.monotonic() - start < options.seconds:
        seed = options.seed + done
        # of a stream of its own: Random takes -seed for seed, which would tie an input to its op
        fuzz = random.Random(f"op {seed}").choice(fuzzers)
        print(f"seed {seed} {fuzz.__name__}", flush=True)
        results = []
        for level in levels:
            _extension.set_cpu_level(level)
            results.append(outcome(fuzz, seed))
            assert_same(results[-1], results[0])
        refused += isinstance(results[0], str)
        done += 1
    print(f"fuzzed {done} inputs on {', '.join(levels)}; {refused} were refused")


if __name__ == "__main__":
    main()
