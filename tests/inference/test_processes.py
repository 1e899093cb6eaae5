"""Two processes give what one gives."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

pytestmark = pytest.mark.skipif(
    not torch.distributed.is_gloo_available(), reason="torch has no gloo"
)


def run(folder: Path, checkpoint: str, out: Path, *launch: str) -> subprocess.CompletedProcess[str]:
    options = ["--weights", checkpoint, "--score", "0", "--out", str(out), "--device", "cpu"]
    return subprocess.run(
        [sys.executable, *launch, "-m", "fastvision", "detect", str(folder), *options, "--quiet"],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        timeout=300,
        capture_output=True,
        text=True,
    )


def files(out: Path) -> dict[str, Any]:
    return {
        str(path.relative_to(out)): path.read_bytes() for path in out.rglob("*") if path.is_file()
    }


def test_two_processes_are_one(folder: Path, checkpoint: str, tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    alone = run(folder, checkpoint, one)
    assert alone.returncode == 1, alone.stderr  # two files are no pictures
    launch = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
    both = run(folder, checkpoint, two, *launch)
    assert both.returncode == 1, both.stderr
    assert both.stderr.count("not done: ") == alone.stderr.count("not done: ") == 2
    assert len(json.loads((one / "results.json").read_text())) == 11
    assert files(two) == files(one)
