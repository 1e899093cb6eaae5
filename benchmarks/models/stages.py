"""Where a detector's time goes: stages by hooks on modules and by wrapping functions."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

import torch
import torchvision
from torch import nn

from fastvision.models.detection import _selection, postprocess

# modules that are stages where a model has them; a stage within another counts for itself only
MODULES = {
    "backbone": "backbone",
    "rpn": "proposals without NMS",
    "roi_heads.box_roi_pool": "RoIAlign of boxes",
    "roi_heads.mask_roi_pool": "RoIAlign of masks",
    "roi_heads.mask_head": "mask head",
    "roi_heads": "RoI heads, rest",
    "head": "head",
}
NMS, REST = "NMS", "rest"
# torchvision's, and this package's detectors'
SUPPRESSIONS = (
    (torchvision.ops.boxes, "batched_nms"),
    (postprocess, "batched_nms"),
    (postprocess, "batched_nms_padded"),
    (_selection, "batched_nms_padded"),
)


class Stages:
    """Records runs of ``model`` on one device."""

    def __init__(self, model: nn.Module, device: torch.device) -> None:
        self.model, self.cuda = model, device.type == "cuda"
        self.runs: list[list[tuple[str, Any]]] = []  # (stage from here on, time or event) per run
        self.open: list[str] = []
        self.nms_sizes: list[tuple[int, int]] = []  # boxes in and kept, per call of the last run

    def _mark(self) -> None:
        if self.cuda:  # an event does not make the host wait, which would slow the run itself
            now = torch.cuda.Event(enable_timing=True)
            now.record()
        else:
            now = time.perf_counter()
        self.runs[-1].append((self.open[-1] if self.open else "", now))

    def _enter(self, stage: str) -> None:
        self.open.append(stage)
        self._mark()

    def _leave(self) -> None:
        self.open.pop()
        self._mark()

    @contextlib.contextmanager
    def watching(self) -> Iterator[None]:
        """Hooks are in place; NMS is whatever its functions are at this time."""
        modules = dict(self.model.named_modules())
        with contextlib.ExitStack() as stack:
            for path, stage in MODULES.items():
                if path not in modules:
                    continue
                if hasattr(modules[path], "levels"):  # a head that is not called itself
                    stack.enter_context(self._wrapped(modules[path], "levels", stage))
                    continue
                enter = lambda *_, s=stage: self._enter(s)  # noqa: E731
                stack.enter_context(modules[path].register_forward_pre_hook(enter))
                hook = modules[path].register_forward_hook(lambda *_: self._leave())
                stack.enter_context(hook)
            for owner, name in SUPPRESSIONS:
                stack.enter_context(self._wrapped(owner, name, NMS))
            yield

    def _wrapped(self, owner: Any, name: str, stage: str) -> Any:
        inner = getattr(owner, name)

        def function(*arguments: Any, **options: Any) -> Any:
            self._enter(stage)
            result = inner(*arguments, **options)
            self._leave()
            if stage == NMS and isinstance(result, torch.Tensor):
                self.nms_sizes.append((len(arguments[0]), len(result)))
            return result

        return mock.patch.object(owner, name, function)

    def run(self, call: Callable[[], Any]) -> Any:
        self.runs.append([])
        self.nms_sizes.clear()
        self._enter(REST)
        result = call()
        self._leave()
        return result

    def _seconds(self, run: list[tuple[str, Any]]) -> dict[str, float]:
        seconds: dict[str, float] = {}
        for (stage, start), (_, end) in zip(run, run[1:], strict=False):
            passed = start.elapsed_time(end) / 1e3 if self.cuda else end - start
            seconds[stage] = seconds.get(stage, 0) + passed
        return seconds

    def of_fastest_run(self) -> dict[str, float]:
        """Seconds of each stage in the fastest run, whose time is the one that counts."""
        if self.cuda:
            torch.cuda.synchronize()
        fastest = min(map(self._seconds, self.runs), key=lambda run: sum(run.values()))
        return {s: fastest[s] for s in (*MODULES.values(), NMS, REST) if s in fastest}
