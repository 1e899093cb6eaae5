"""What the emulation of CUDA's execution model does, and what it refuses."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parents[1]))
import cuda_emulation

pytestmark = pytest.mark.skipif(cuda_emulation.COMPILER is None, reason="needs a C++ compiler")


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("selftest")
    return cuda_emulation.build(folder / "selftest", cuda_emulation.HERE / "driver_selftest.cpp")


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize(
    ("case", "printed"),
    [
        ("sum", str(3 * 2 * sum(range(90)))),
        ("ended_threads", "10"),
        ("uninitialised", "cdcdcdcd cdcdcdcd"),
        ("too_many_threads", "kernel launch: invalid configuration argument"),
    ],
)
def test_results(program: Path, tmp_path: Path, case: str, printed: str, reverse: bool) -> None:
    result = cuda_emulation.run(program, tmp_path, case, reverse=reverse)
    assert (result.returncode, result.stdout.strip()) == (0, printed), result.stderr


@pytest.mark.parametrize(
    ("case", "message"),
    [
        ("half_warp", "a lane that ended or does not exist"),
        ("divergent_barrier", "deadlock"),
        ("shared_overflow", "global-buffer-overflow|index 4 out of bounds"),
    ],
)
def test_refused(program: Path, tmp_path: Path, case: str, message: str) -> None:
    result = cuda_emulation.run(program, tmp_path, case)
    assert result.returncode != 0
    assert any(part in result.stderr for part in message.split("|")), result.stderr
