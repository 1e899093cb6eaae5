"""Whether something else was running during a measurement."""

from __future__ import annotations

import os
import statistics
import time
from pathlib import Path

from benchmarks.machine import cores

MAX_LOAD = 0.5  # processes wanting a core, per core, before the run
MAX_STEAL = 0.02  # of all time, taken by the host from a virtual machine
MAX_SPREAD = 0.15  # median over best of a loop that does the same work each time
LOOP_ADDITIONS, LOOP_ROUNDS = 20_000, 300  # some 0.2 s


def _cpu_ticks() -> tuple[int, int]:
    """Stolen and all ticks of the machine since it started; zeros where nobody counts."""
    path = Path("/proc/stat")
    if not path.exists():
        return 0, 0
    # user nice system idle iowait irq softirq steal; guest time is part of user's
    ticks = [int(field) for field in path.read_text().split("\n", 1)[0].split()[1:9]]
    return ticks[7], sum(ticks)


def loop_spread() -> float:
    """How much longer than its best round the median round of a fixed loop takes."""
    times = []
    for _ in range(LOOP_ROUNDS):
        start = time.perf_counter()
        sum(range(LOOP_ADDITIONS))
        times.append(time.perf_counter() - start)
    return statistics.median(times) / min(times) - 1


def reasons(load_per_core: float, steal: float, spread: float) -> list[str]:
    """What speaks against a quiet machine, in words."""
    found = []
    if load_per_core > MAX_LOAD:
        found.append(f"{load_per_core:.1f} processes wanting each core before the run")
    if steal > MAX_STEAL:
        found.append(f"{100 * steal:.0f} % of the time taken by the host")
    if spread > MAX_SPREAD:
        found.append(f"a loop of equal rounds takes {100 * spread:.0f} % longer than its best")
    return found


class Watch:
    """Looks when it is made and whenever it is asked; the worst of all looks counts."""

    def __init__(self) -> None:
        self.load = os.getloadavg()[0] / cores()
        self.before = _cpu_ticks()
        self.spread = loop_spread()

    def look(self) -> None:
        self.spread = max(self.spread, loop_spread())

    def busy(self) -> str:
        """The reasons, or nothing where the machine was quiet."""
        stolen, ticks = (now - then for now, then in zip(_cpu_ticks(), self.before, strict=True))
        return "; ".join(reasons(self.load, stolen / max(ticks, 1), self.spread))
