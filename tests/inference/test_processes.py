"""Two processes give what one gives."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from fastvision.cli import main

pytestmark = pytest.mark.skipif(
    not torch.distributed.is_gloo_available(), reason="torch has no gloo"
)


@pytest.fixture
def one_thread() -> Iterator[None]:
    """As torchrun sets it, since the order of sums may depend on the number."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def files(out: Path) -> dict[str, bytes]:
    return {str(path.relative_to(out)): path.read_bytes() for path in out.rglob("*.*")}


def test_two_processes_are_one(
    folder: Path, checkpoint: str, tmp_path: Path, one_thread: None, capsys
) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    options = ["detect", str(folder), "--weights", checkpoint, "--score", "0", "--device", "cpu"]
    assert main([*options, "--quiet", "--out", str(one)]) == 1  # two files are no pictures
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    both = subprocess.run(
        [sys.executable, *launch, "-m", "fastvision", *options, "--quiet", "--out", str(two)],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        timeout=300,
        capture_output=True,
        text=True,
    )
    assert both.returncode == 1, both.stderr
    assert both.stderr.count("not done: ") == capsys.readouterr().err.count("not done: ") == 2
    assert len(json.loads((one / "results.json").read_text())) == 11
    assert files(two) == files(one)
