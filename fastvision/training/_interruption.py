"""Ctrl-C and the request to end, noted and obeyed after a step."""

from __future__ import annotations

import signal
import threading
from typing import Any

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Interrupted(KeyboardInterrupt):
    """Training was stopped from outside, after a checkpoint.

    Args:
        step: that was the last.
        signal: number of the signal; 128 more is the exit code that shells expect.
    """

    def __init__(self, step: int, signal: int) -> None:
        super().__init__(f"stopped after step {step} by {_name(signal)}")
        self.step = step
        self.signal = signal


class Interruption:
    """A context in which the first SIGINT or SIGTERM is only noted, and a second one acts as ever.

    Outside of the main thread, where Python does not allow it, signals are left alone.
    """

    signal = 0  # the one that came

    def __enter__(self) -> Interruption:
        self._before: dict[int, Any] = {}
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._note) for number in _SIGNALS}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}

    def _note(self, number: int, frame: Any) -> None:
        self.signal = number
        self.__exit__()


def _name(number: int) -> str:
    return signal.Signals(number).name
