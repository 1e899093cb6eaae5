"""Runs commands one after the other, each within its share of the time, and records each at once.

The record is complete at every moment: a step that has not begun says so, and one that was running
when the whole was stopped says that. So whatever ends the run, what was measured is there.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

NOT_REACHED, RUNNING, STOPPED = "not reached", "running", "stopped"
PASSED, FAILED, OUT_OF_TIME = "passed", "failed", "out of time"
MIN_SECONDS = 3.0  # with less, a step would only start Python
GRACE_SECONDS = 2.0  # between asking a step to end and killing it


@dataclass(frozen=True)
class Step:
    name: str
    command: Sequence[str]
    share: float  # of the time that is left, as a weight among this step and the later ones
    needed: bool = False  # without it the later steps cannot run
    environment: Mapping[str, str] = field(default_factory=dict)


def time_limit(steps: Sequence[Step], index: int, seconds_left: float) -> float:
    """What a step leaves unused passes on to the later ones, in proportion to their shares."""
    return seconds_left * steps[index].share / sum(step.share for step in steps[index:])


def plan(steps: Sequence[Step], seconds: float) -> list[tuple[Step, float]]:
    """Each step with its limit if all of them use up theirs."""
    limits = []
    for index in range(len(steps)):
        limits.append(time_limit(steps, index, seconds))
        seconds -= limits[-1]
    return list(zip(steps, limits, strict=True))


def _end(process: subprocess.Popen[bytes]) -> None:
    """Ends the step's process group: it may have children of its own."""
    for sign, patience in ((signal.SIGTERM, GRACE_SECONDS), (signal.SIGKILL, None)):
        try:
            os.killpg(process.pid, sign)
        except ProcessLookupError:
            break
        try:
            process.wait(patience)
        except subprocess.TimeoutExpired:
            continue
        if sign == signal.SIGTERM:
            time.sleep(0.1)  # children that were asked too
    process.wait()


def execute(step: Step, limit: float, log: Path, folder: Path) -> int | None:
    """The exit status of the command, run in ``folder``; None if it ran out of time."""
    environment = {**os.environ, **step.environment, "PYTHONUNBUFFERED": "1"}
    with log.open("wb") as output:
        process = subprocess.Popen(
            step.command,
            cwd=folder,
            env=environment,
            stdout=output,
            stderr=subprocess.STDOUT,
            preexec_fn=os.setpgrp,
        )
        try:
            return process.wait(limit)
        except subprocess.TimeoutExpired:
            return None
        finally:
            if process.returncode is None:
                _end(process)


def test_counts(log: Path) -> dict[str, Any]:
    """Outcomes so far and names of failed tests, from what pytest -v has written of them."""
    text = log.read_text(errors="replace") if log.exists() else ""
    outcomes = re.findall(r"^(\S+::.*?) (PASSED|FAILED|ERROR|SKIPPED|XFAIL)\b", text, re.MULTILINE)
    if not outcomes:
        return {}
    failed = [name for name, outcome in outcomes if outcome in ("FAILED", "ERROR")]
    counts = Counter(outcome.lower() for _, outcome in outcomes)
    return {"tests": dict(counts), **({"failed tests": failed} if failed else {})}


class Record:
    """gpu_record.json, written whenever something changes."""

    def __init__(self, path: Path, facts: Mapping[str, Any], steps: Sequence[Step]) -> None:
        self.path = path
        self.content: dict[str, Any] = {"facts": dict(facts)}
        self.steps: dict[str, dict[str, Any]] = {
            step.name: {"status": NOT_REACHED, "command": " ".join(step.command)} for step in steps
        }
        path.parent.mkdir(parents=True, exist_ok=True)
        self.write()

    def update(self, step: Step, **values: Any) -> None:
        self.steps[step.name].update(values)
        self.write()

    def write(self) -> None:
        missing = [name for name, entry in self.steps.items() if entry["status"] == NOT_REACHED]
        content = self.content | {"not reached": missing, "steps": self.steps}
        partial = self.path.with_name(self.path.name + ".partial")
        partial.write_text(json.dumps(content, indent=1) + "\n")
        os.replace(partial, self.path)  # a reader never meets a part


def run(
    steps: Sequence[Step],
    seconds: float,
    record: Record,
    execute_step: Callable[[Step, float, Path], int | None],
    clock: Callable[[], float] = time.monotonic,
) -> bool:
    """Runs the steps in their order. Returns whether all of them passed.

    KeyboardInterrupt marks the running step as stopped and passes on.
    """
    end = clock() + seconds
    for index, step in enumerate(steps):
        left = end - clock()
        if left < MIN_SECONDS:
            break
        limit = time_limit(steps, index, left)
        log = record.path.parent / f"gpu_{step.name}.txt"
        begin = clock()
        status = STOPPED
        try:
            record.update(step, status=RUNNING, limit_seconds=round(limit, 1))
            print(f"{step.name}: at most {limit:.0f} s", flush=True)
            code = execute_step(step, limit, log)
            status = OUT_OF_TIME if code is None else FAILED if code else PASSED
        except OSError as error:  # the command is not there
            status = FAILED
            record.update(step, reason=str(error))
        finally:
            taken = round(clock() - begin, 1)
            record.update(step, status=status, seconds=taken, **test_counts(log))
        print(f"{step.name}: {status} after {taken:.0f} s", flush=True)
        if step.needed and status != PASSED:
            break
    return all(entry["status"] == PASSED for entry in record.steps.values())
