"""Random and hostile inputs through the public ops, for a library built with sanitizers.

A read or write outside a buffer and undefined behaviour end the process; all the ops may do with
nonsense is to refuse it with an exception that names the argument. Each op runs in a process of its
own, which a fault ends without ending the others.
"""

from __future__ import annotations

import argparse
import mmap
import os
import sys
import time
import traceback
from dataclasses import dataclass
from typing import NoReturn

import torch

from .engine import FUZZERS, Engine, levels, reach_kernels

_SEED, _REFUSED, _TIME = range(3)  # of a worker's state; the last as time.monotonic_ns
_HANGS = 300 * 10**9  # nanoseconds in one input, which takes milliseconds


@dataclass
class Worker:
    """A process that fuzzes one op."""

    name: str
    process: int
    state: memoryview  # of three integers, written by the process
    report: int  # file of its output: what a sanitizer found


@dataclass
class Row:
    """What became of an op."""

    name: str
    done: int
    refused: int
    seconds: float  # on the CPU
    fault: str | None

    def __str__(self) -> str:
        rate = self.done / max(self.seconds, 1e-9)
        end = "" if self.fault is None else f"  FAILED at seed {self.fault}"
        return (
            f"{self.name:26} {self.done:8} inputs {self.refused:7} refused "
            f"{self.seconds:8.1f} s of CPU {rate:7.0f}/s{end}"
        )


def _fuzz(options: argparse.Namespace, name: str, seconds: float | None, state: memoryview) -> None:
    engine, end = Engine(name), time.monotonic() + (seconds or 0)
    seed, parent = options.seed, os.getppid()
    while seconds is not None or seed < options.seed + options.inputs:
        state[_TIME] = time.monotonic_ns()
        if os.getppid() != parent:  # it was ended
            break
        if seconds is not None and state[_TIME] > end * 1e9 and seed > options.seed:
            break
        state[_REFUSED] += not engine.run(seed)
        seed += 1
        state[_SEED] = seed


def _start(options: argparse.Namespace, name: str, seconds: float | None) -> Worker:
    state = memoryview(mmap.mmap(-1, 3 * 8)).cast("q")
    state[_SEED], state[_TIME] = options.seed, time.monotonic_ns()
    report = os.memfd_create("report")
    process = os.fork()
    if process == 0:
        _child(options, name, seconds, state, report)
    return Worker(name, process, state, report)


def _child(
    options: argparse.Namespace,
    name: str,
    seconds: float | None,
    state: memoryview,
    report: int,
) -> NoReturn:
    code = 1
    try:
        os.dup2(report, 1)
        os.dup2(report, 2)
        _fuzz(options, name, seconds, state)
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(code)


def _end(worker: Worker, status: int, seconds: float, options: argparse.Namespace) -> Row:
    seed, refused = worker.state[_SEED], worker.state[_REFUSED]
    fault = None
    if status != 0:
        fault = str(seed)
        text = os.pread(worker.report, 6000, 0).decode(errors="replace")
        print(f"{worker.name}, seed {seed}, exit status {status}:\n{text}", flush=True)
    os.close(worker.report)
    return Row(worker.name, seed - options.seed, refused, seconds, fault)


def _wait(workers: list[Worker]) -> tuple[Worker, int, float]:
    """The first to end, its status and its seconds on the CPU; one that hangs is ended."""
    while True:
        for worker in workers:
            process, status, usage = os.wait4(worker.process, os.WNOHANG)
            if process:
                seconds = usage.ru_utime + usage.ru_stime
                return worker, os.waitstatus_to_exitcode(status), seconds
            if time.monotonic_ns() - worker.state[_TIME] > _HANGS:
                os.kill(worker.process, 9)
        time.sleep(0.02)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m sanitizer", description=__doc__)
    amount = parser.add_mutually_exclusive_group()
    amount.add_argument("--inputs", type=int, default=1000, metavar="N", help="N of each op")
    amount.add_argument("--seconds", type=float, help="for this long, shared among the ops")
    parser.add_argument("--seed", type=int, default=0, help="of the first input")
    parser.add_argument("--op", action="append", choices=FUZZERS, help="only this (repeatable)")
    parser.add_argument("--processes", type=int, default=os.cpu_count())
    options = parser.parse_args()
    reach_kernels()
    names = list(dict.fromkeys(options.op or sorted(FUZZERS)))
    seconds = None
    if options.seconds is not None:
        seconds = options.seconds * options.processes / len(names)
    torch.set_num_threads(1)
    # a first derivative imports much, here once for all processes
    x = torch.ones(1, requires_grad=True)
    torch.autograd.grad(x * x, x, torch.ones(1))
    # kernels of a child whose parent has threads run on a single one
    assert os.listdir("/proc/self/task") == [str(os.getpid())], "threads before forks: see build.py"
    print(f"{len(names)} ops on {', '.join(levels())}; {options.processes} processes", flush=True)

    waiting, workers, rows = names[::-1], [], []
    while waiting or workers:
        while waiting and len(workers) < options.processes:
            workers.append(_start(options, waiting.pop(), seconds))
        worker, status, used = _wait(workers)
        workers.remove(worker)
        rows.append(_end(worker, status, used, options))
        print(rows[-1], flush=True)
    print("\n" + "\n".join(str(row) for row in sorted(rows, key=lambda row: row.name)))
    failed = sorted(row.name for row in rows if row.fault is not None)
    done, refused = sum(row.done for row in rows), sum(row.refused for row in rows)
    print(f"fuzzed {len(rows)} ops with {done} inputs, {refused} of them refused")
    if failed:
        print(f"failed: {', '.join(failed)}")
    return bool(failed)


if __name__ == "__main__":
    sys.exit(main())
