"""Measures a case: every provider of an op on the same inputs, checked first, then interleaved."""

from __future__ import annotations

import contextlib
import functools
import math
import statistics
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch

from benchmarks import memory
from fastvision.ops import _backend

BASELINE = "torchvision"
# where torchvision has no such op: torch's layers one by one, in either memory format
EAGER, EAGER_CHANNELS_LAST = "eager", "eager, channels_last"
BASELINES = (BASELINE, EAGER, EAGER_CHANNELS_LAST)  # the fastest of a case's is what counts
COMPILED = "torch.compile"  # of the baseline's function
# inference engines, part of a case where they are installed
ONNX_RUNTIME, OPENVINO = "ONNX Runtime", "OpenVINO"
# boxes in Rust, the same: all pairs, and those that a tree of boxes finds
POWERBOXES, POWERBOXES_TREE, LSNMS = "powerboxes", "powerboxes, R-tree", "lsnms"
PEERS = (
    *BASELINES,
    COMPILED,
    ONNX_RUNTIME,
    OPENVINO,
    POWERBOXES,
    POWERBOXES_TREE,
    LSNMS,
)  # the other providers are fastvision's backends

# engines with threads of their own, which wait busily after their work and take time from others'
_OWN_THREADS = (ONNX_RUNTIME, OPENVINO, POWERBOXES)
_PAUSE = 0.05  # seconds until these threads sleep

Inputs = tuple[Any, ...]
Providers = dict[str, Callable[..., Any]]


@dataclass(frozen=True)
class Work:
    """The least an implementation must do: bytes from and to memory, arithmetic operations."""

    bytes: int
    flops: int


@dataclass(frozen=True)
class Case:
    """What is measured. Providers are called with the inputs; a baseline comes first.

    A provider may have ``around()``, a context of its calls that is not timed, and ``details()``,
    plain data for the row once all is measured.
    """

    op: str  # the file bench_<op>.py, and the record's name
    name: str
    inputs: Callable[[torch.device], Inputs]
    providers: Callable[[torch.device], Providers]
    check: Callable[[Any, Any], None]  # (actual, expected), raises AssertionError
    work: Callable[[Inputs, Any], Work] | None = None
    expected: Callable[..., Any] | None = (
        None  # called with the inputs; the first baseline's result if None
    )
    quick: bool = True  # part of a quick run
    peak_memory: bool = False  # on the CPU that takes a process per provider
    least_rounds: int | None = None  # of every provider, for calls that take seconds
    most_seconds: float = math.inf  # for all rounds: less than others, where an op has many cases
    host_time: bool = False  # on a GPU too: for calls that take longer to make than to run
    note: str = ""

    def __str__(self) -> str:
        return self.name


@dataclass(frozen=True)
class Effort:
    """How long to measure: seconds for all rounds of a case, and the least length of one round."""

    case_seconds: float
    round_seconds: float
    rounds: tuple[int, int]  # least, most
    once_seconds: float = 10.0  # a peer slower than that is timed in its first call alone


# short rounds and many of them: some are then undisturbed, even on a busy machine
FULL = Effort(case_seconds=4.0, round_seconds=5e-4, rounds=(5, 200))
QUICK = Effort(case_seconds=0.6, round_seconds=2e-4, rounds=(3, 50))


def backends(function: Callable[..., Any], device: torch.device, *, reference: bool) -> Providers:
    """``function`` once per backend that can run on ``device``, the default backend first.

    The reference is a specification, not an implementation to use: it is slow and only part of
    small cases, or where there is nothing else.
    """
    names = [
        name
        for name in _backend.ORDER[device.type]
        if _backend.unsupported(name, device.type, device.index) is None
    ]
    if not reference and len(names) > 1:
        names.remove("reference")
    return {name: functools.partial(function, backend=name) for name in names}


def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """``function`` compiled in its first calls, the inputs' sizes taken as constants."""
    torch.compiler.reset()  # with the graphs of earlier cases the sizes would become dynamic
    return torch.compile(function, dynamic=False)


class CudaGraph:
    """Captures ``function`` in its first call and replays it from then on."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self.function = function
        self.graph: torch.cuda.CUDAGraph | None = None

    def __call__(self, *inputs: Any) -> Any:
        if self.graph is None:
            self.function(*inputs)  # what is set up once must not be captured
            torch.cuda.synchronize()
            self.graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(self.graph):
                self.output = self.function(*inputs)
        self.graph.replay()
        return self.output


def _host_seconds(call: Callable[[], Any], calls: int) -> float:
    start = time.perf_counter()
    for _ in range(calls):
        call()
    return (time.perf_counter() - start) / calls


@functools.cache
def _flush_buffer() -> torch.Tensor:
    size = 4 * torch.cuda.get_device_properties(0).L2_cache_size
    return torch.empty(size, dtype=torch.uint8, device="cuda")


def _cuda_seconds(call: Callable[[], Any], calls: int) -> float:
    """Device time per call, each with a cold L2: in a model, other layers have run in between.

    The flush also hides the launch overhead of calls that do not wait for the device.
    """
    events = [
        (torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True))
        for _ in range(calls)
    ]
    for start, end in events:
        _flush_buffer().zero_()
        start.record()
        call()
        end.record()
    torch.cuda.synchronize()
    return sum(start.elapsed_time(end) for start, end in events) / 1e3 / calls


def _host_seconds_on_cuda(call: Callable[[], Any], calls: int) -> float:
    """Until the device is done: filling its queue alone would seem faster than it is."""

    def all_calls() -> None:
        for _ in range(calls):
            call()
        torch.cuda.synchronize()

    torch.cuda.synchronize()
    return _host_seconds(all_calls, 1) / calls


def _timer(device: torch.device, host_time: bool) -> Callable[[Callable[[], Any], int], float]:
    if device.type != "cuda":
        return _host_seconds
    return _host_seconds_on_cuda if host_time else _cuda_seconds


class Trial:
    """One provider under measurement."""

    def __init__(
        self,
        name: str,
        provider: Callable[..., Any],
        inputs: Inputs,
        device: torch.device,
        *,
        host_time: bool = False,
    ) -> None:
        self.warm_up_calls = 1 if name == COMPILED else 0
        self.call = functools.partial(provider, *inputs)
        self.around = getattr(provider, "around", contextlib.nullcontext)
        self.details = getattr(provider, "details", None)
        self.seconds_of = _timer(device, host_time)
        self.calls, self.once = 1, False
        self.samples: list[float] = []
        self.pause = _PAUSE if name in _OWN_THREADS else 0.0

    def time(self, call: Callable[[], Any], calls: int) -> float:
        with self.around():
            return self.seconds_of(call, calls)

    def first_result(self) -> Any:
        results = []
        for _ in range(self.warm_up_calls + 1):
            self.seconds = self.time(lambda: results.append(self.call()), 1)
        return results[-1]

    def prepare(self, effort: Effort, *, once: bool) -> None:
        if once:
            self.once, self.samples = True, [self.seconds]
        elif self.seconds < 0.5:
            self.seconds = self.time(self.call, 1)  # the first call was cold
            self.calls = min(max(math.ceil(effort.round_seconds / self.seconds), 1), 2000)

    def run(self) -> None:
        if not self.once:
            self.samples.append(self.time(self.call, self.calls))
            time.sleep(self.pause)

    def summary(self) -> dict[str, Any]:
        summary = {
            "seconds": min(self.samples),
            # tells how noisy the rounds were; no figure of the report comes from it
            "median_seconds": statistics.median(self.samples),
            "rounds": len(self.samples),
            "calls_per_round": self.calls,
        }
        return summary | ({"details": self.details()} if self.details else {})


def compare(
    benchmark: Any,  # pytest-benchmark's fixture
    case: Case,
    device: torch.device,
    *,
    quick: bool = False,
    effort: Effort | None = None,
) -> dict[str, Any]:
    """Checks and times the providers of ``case``; see the module's docstring.

    pytest-benchmark times the first of fastvision's backends. All others run once in the set-up of
    each of its rounds (A B A B ...), so that a change of the machine's load meets all of them.

    Returns:
        A row for the report, plain data. Its "status" is "ok", or "wrong" or "failed" if that is
        what a backend of fastvision is, and then it has no times. A peer's failure is only noted.
    """
    effort = effort or (QUICK if quick else FULL)
    row: dict[str, Any] = {"op": case.op, "case": case.name, "note": case.note, "status": "ok"}
    row["providers"] = measured = {}
    inputs = case.inputs(device)
    row["dtype"] = _dtype(inputs)
    expected = case.expected(*inputs) if case.expected else None
    trials: dict[str, Trial] = {}
    for name, provider in case.providers(device).items():
        trial = Trial(name, provider, inputs, device, host_time=case.host_time)
        try:
            result = trial.first_result()
            if expected is None:
                expected = result
            elif name not in BASELINES:
                case.check(result, expected)
        except Exception as error:  # a kernel may fail in any way: the other cases still count
            status = "wrong" if isinstance(error, AssertionError) else "failed"
            reason = f"{name}: {_first_words(str(error) or type(error).__name__)}"
            if name not in PEERS or expected is None:
                return row | {"status": status, "reason": reason, "providers": {}}
            measured[name] = {"status": status, "reason": reason}
        else:
            trials[name] = trial

    for name, trial in trials.items():
        slow = trial.seconds > effort.once_seconds and case.least_rounds is None
        trial.prepare(effort, once=slow and name in PEERS)
    one_round = sum(t.calls * t.seconds for t in trials.values() if not t.once)
    least, most = effort.rounds
    rounds = min(
        max(
            int(min(effort.case_seconds, case.most_seconds) / one_round), case.least_rounds or least
        ),
        most,
    )
    ours, *others = (trials[name] for name in sorted(trials, key=lambda name: name in PEERS))

    def run_others() -> None:
        for trial in others:
            trial.run()

    benchmark.pedantic(ours.run, setup=run_others, rounds=rounds)

    for name, trial in trials.items():
        measured[name] = trial.summary()
        if case.peak_memory or device.type == "cuda":
            with trial.around():
                measured[name]["peak_bytes"] = memory.peak_bytes(case, name, device, trial.call)
    if case.work is not None:
        work = case.work(inputs, expected)
        row |= {"least_bytes": work.bytes, "least_flops": work.flops}
    return row


def _dtype(inputs: Iterable[Any]) -> str | None:
    """Of the first floating-point tensor."""
    for value in inputs:
        if isinstance(value, torch.Tensor) and value.is_floating_point():
            return str(value.dtype).removeprefix("torch.")
        if isinstance(value, list) and (dtype := _dtype(value)):
            return dtype
    return None


def _first_words(text: str, length: int = 400) -> str:
    text = " ".join(text.split())
    return text if len(text) <= length else text[:length] + " ..."
