"""Fixtures of all tests: one ``backend`` after the other, as far as this machine has them."""

from __future__ import annotations

import importlib
import importlib.util
import os
from collections.abc import Iterator

import pytest

# OpenMP reads it when torch is loaded. Test processes share the cores: a thread that spins while it
# waits would take the time of another process.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import torch

if not torch.cuda.is_available():
    # Triton reads it when a kernel is defined: without a GPU its kernels run on CPU tensors
    os.environ.setdefault("TRITON_INTERPRET", "1")

from fastvision import _extension
from fastvision.testing.backends import BACKENDS, Backend

HAS_GPU = torch.cuda.is_available()


def pytest_configure(config: pytest.Config) -> None:
    if config.option.markexpr == "gpu" and not HAS_GPU:
        pytest.exit("the tests marked gpu need a CUDA device, and torch sees none", returncode=1)


def pytest_report_header() -> list[str]:
    reasons = {str(backend): backend.missing for backend in BACKENDS}
    here = [name for name, reason in reasons.items() if reason is None]
    missing = [f"{name} ({reason})" for name, reason in reasons.items() if reason is not None]
    return [f"backends: {', '.join(here)}", *([f"not here: {', '.join(missing)}"] * bool(missing))]


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leaves out what is for a GPU if there is none, and cases that a test says are not for it.

    Long files come first: a process that began one last would be the only one at the end.
    """
    kept = [item for item in items if _runs_here(item) and _is_wanted(item)]
    if len(kept) < len(items):
        wanted = set(kept)
        config.hook.pytest_deselected(items=[item for item in items if item not in wanted])
    items[:] = sorted(kept, key=lambda item: item.get_closest_marker("long") is None)


def _runs_here(item: pytest.Item) -> bool:
    return HAS_GPU or item.get_closest_marker("gpu") is None


def _is_wanted(item: pytest.Item) -> bool:
    """By the test's marks ``only(condition)``, asked with the parameters that they name."""
    for mark in item.iter_markers("only"):
        (condition,) = mark.args
        names = condition.__code__.co_varnames[: condition.__code__.co_argcount]
        if not condition(*(item.callspec.params[name] for name in names)):
            return False
    return True


@pytest.fixture
def cpu_level() -> Iterator[None]:
    """Puts the level of the CPU kernels back after a test that changes it."""
    if _extension.missing is not None:
        pytest.skip(_extension.missing)
    yield
    _extension.set_cpu_level(_extension.cpu_level_supported())


@pytest.fixture(
    params=[
        pytest.param(backend, id=str(backend), marks=[pytest.mark.gpu] * (backend.device == "cuda"))
        for backend in BACKENDS
        if backend.missing is None
    ]
)
def backend(request: pytest.FixtureRequest) -> Backend:
    """Each implementation of an op that this machine has."""
    if request.param.level is not None:
        request.getfixturevalue("cpu_level")
        _extension.set_cpu_level(request.param.level)
    return request.param


@pytest.fixture
def poisoned_memory() -> Iterator[None]:
    """Fresh tensors are full of NaN (or the largest integer): what a kernel forgets shows."""
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True, warn_only=True)
    assert torch.empty(1).isnan().all()
    yield
    torch.use_deterministic_algorithms(before)


@pytest.fixture
def small_weights_are_packed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Linear layers of any size take the way of large ones."""
    module = importlib.import_module("fastvision.ops.conv.linear")
    monkeypatch.setattr(module, "_MIN_PACKED", 1)


@pytest.fixture(scope="session")
def torchvision():
    """The installed torchvision, or a skip."""
    if importlib.util.find_spec("torchvision") is None:
        pytest.skip("torchvision is not installed")
    return pytest.importorskip("torchvision")
