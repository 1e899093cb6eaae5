"""Fixtures of the tests of enable(): off again after each test, and what the answers came from."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from operator import attrgetter
from pathlib import Path

import pytest
import torch
from torch import Tensor

import fastvision
from fastvision import _extension
from fastvision.integrations.torchvision import devices, names, switch
from fastvision.testing import cases


def bindings() -> dict[tuple[str, str], object]:
    """The functions that torchvision has under the names that enable() replaces."""
    return {
        (module, row.name): attrgetter(row.name)(sys.modules[module])
        for row in names.NAMES
        for module in row.modules
        if module in sys.modules
    }


@pytest.fixture(autouse=True)
def off_again() -> Iterator[None]:
    assert not devices.active
    before = bindings()
    yield
    fastvision.disable()
    assert not devices.active
    assert before.items() <= bindings().items()


@pytest.fixture
def on(off_again: None) -> Iterator[None]:
    with fastvision.enabled():
        yield


@pytest.fixture
def needs_kernels() -> None:
    if _extension.missing is not None:
        pytest.skip(f"needs the CPU kernels: {_extension.missing}")


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """For inputs that are too small to share."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def stock() -> Callable:
    """Calls a function with torchvision's own kernels, inside the fixture ``on`` too."""

    def call(function: Callable, *args):
        state = switch._on, switch._blocks
        switch._switch(False, 0)
        try:
            return function(*args)
        finally:
            switch._switch(*state)

    return call


@pytest.fixture
def our_ops() -> Callable[..., set[str]]:
    """Which of our ops a call runs."""

    def run(function: Callable, *args) -> set[str]:
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
            function(*args)
        return {event.name for event in profile.events() if event.name.startswith("fastvision::")}

    return run


@pytest.fixture
def pool_with_gradient() -> Callable[..., tuple[Tensor, Tensor]]:
    """RoIAlign of features, by the function given, and the gradient of what it returns, squared."""

    def run(pool: Callable, features: Tensor, rois: Tensor) -> tuple[Tensor, Tensor]:
        features = features.detach().clone().requires_grad_()
        pooled = pool(features, rois)
        pooled.square().sum().backward()
        return pooled.detach(), features.grad

    return run


@pytest.fixture
def multiscale() -> Callable[..., tuple]:
    """Makes a MultiScaleRoIAlign and its arguments."""
    from torchvision import ops

    def make(levels: int = 3, **layout):
        maps, _ = cases.pyramid(2, 4, height=128, width=160, levels=levels, **layout)
        features = {str(level): feature for level, feature in enumerate(maps)}
        rois = cases.rois(20, 2, height=128, width=160, max_size=150)
        boxes = [rois[rois[:, 0] == image, 1:] for image in (0, 1)]
        module = ops.MultiScaleRoIAlign(list(features), 5, 2, canonical_scale=60, canonical_level=3)
        return module, features, boxes, [(128, 160), (120, 150)]

    return make


@pytest.fixture
def run_python() -> Callable[..., str]:
    """Runs code in a process of its own, with ``path`` before the package; what it printed."""

    def run(
        code: str,
        *arguments: str,
        path: tuple[Path, ...] = (),
        python: str = sys.executable,
        warnings: str = "error::UserWarning",
        **environment: str,
    ) -> str:
        root = Path(fastvision.__file__).resolve().parents[1]
        done = subprocess.run(
            [python, "-W", warnings, "-c", textwrap.dedent(code), *arguments],
            env={
                **os.environ,
                "OMP_NUM_THREADS": "1",
                "PYTHONPATH": os.pathsep.join(map(str, (*path, root))),
                **environment,
            },
            capture_output=True,
            text=True,
            timeout=300,
        )
        assert done.returncode == 0, done.stderr  # negative where a signal ended the process
        return done.stdout

    return run
