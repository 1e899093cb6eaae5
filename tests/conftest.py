"""Fixtures of all tests: one ``backend`` after the other, as far as this machine has them."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Iterator
from dataclasses import dataclass

import pytest
import torch

if not torch.cuda.is_available():
    # Triton reads it when a kernel is defined: without a GPU its kernels run on CPU tensors
    os.environ.setdefault("TRITON_INTERPRET", "1")

from fastvision import _extension
from fastvision.ops._backend import unsupported

CPU_LEVELS = ("baseline", "avx2", "avx512")


@dataclass(frozen=True)
class Backend:
    name: str  # for the argument ``backend`` of the ops
    device: str

    @property
    def interpreted(self) -> bool:
        """Triton's interpreter takes about a millisecond per program: keep its inputs small."""
        return self.name == "triton" and self.device == "cpu"


@pytest.fixture
def cpu_level() -> Iterator[None]:
    """Puts the level of the CPU kernels back after a test that changes it."""
    if _extension.missing is not None:
        pytest.skip(_extension.missing)
    yield
    _extension._C.set_cpu_capability(_extension._C.cpu_capability_supported())


@pytest.fixture(
    params=[
        *(f"cpp-{level}" for level in CPU_LEVELS),
        "reference",
        "triton",
        pytest.param("cuda", marks=pytest.mark.gpu),
        pytest.param("triton-gpu", marks=pytest.mark.gpu),
    ]
)
def backend(request: pytest.FixtureRequest) -> Backend:
    """Each implementation of an op; skips what cannot run here and says why."""
    name, _, variant = request.param.partition("-")
    device = "cuda" if request.param in ("cuda", "triton-gpu") else "cpu"
    if device == "cuda" and not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    reason = unsupported(name, device, 0 if device == "cuda" else None)
    if reason is not None:
        pytest.skip(reason)
    if name == "cpp":
        request.getfixturevalue("cpu_level")
        try:
            _extension._C.set_cpu_capability(variant)
        except ValueError as error:
            pytest.skip(str(error))
    return Backend(name, device)


@pytest.fixture
def poisoned_memory() -> Iterator[None]:
    """Fresh tensors are full of NaN (or the largest integer): what a kernel forgets shows."""
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True, warn_only=True)
    assert torch.empty(1).isnan().all()
    yield
    torch.use_deterministic_algorithms(before)


@pytest.fixture(scope="session")
def torchvision():
    """The installed torchvision, or a skip."""
    if importlib.util.find_spec("torchvision") is None:
        pytest.skip("torchvision is not installed")
    return pytest.importorskip("torchvision")
