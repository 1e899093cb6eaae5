"""Runs the tests marked ``gpu`` and records the device, versions and results.

The record goes to benchmarks/results/<device>/gpu_tests.txt. Arguments are handed to pytest.
"""

from __future__ import annotations

import datetime
import re
import subprocess
import sys
from pathlib import Path

import torch

import fastvision

ROOT = Path(__file__).resolve().parent.parent


def revision() -> str:
    command = ["git", "describe", "--always", "--dirty"]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    return run.stdout.strip() or "unknown"


def main() -> int:
    if not torch.cuda.is_available():
        print("the GPU tests need a CUDA device, and torch sees none", file=sys.stderr)
        return 1
    facts = fastvision.info()
    device = torch.cuda.get_device_name()
    command = ["-m", "pytest", "-m", "gpu", "-rs", "--durations=10", *sys.argv[1:]]
    tests = subprocess.Popen(
        [sys.executable, *command], cwd=ROOT, stdout=subprocess.PIPE, text=True, errors="replace"
    )
    assert tests.stdout is not None
    output = []
    for line in tests.stdout:
        print(line, end="", flush=True)
        output.append(line)
    code = tests.wait()

    library = facts["library"]
    head = {
        "device": device,
        "capability": facts["gpus"][torch.cuda.current_device()]["capability"],
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "revision": revision(),
        "fastvision": facts["fastvision"],
        "torch": facts["torch"],
        "triton": facts["triton"],
        "library": library["missing"] or f"CUDA {library['cuda']}, {library['cuda_architectures']}",
        "command": "python " + " ".join(command),
    }
    folder = ROOT / "benchmarks" / "results" / re.sub(r"[^a-z0-9]+", "-", device.lower()).strip("-")
    folder.mkdir(parents=True, exist_ok=True)
    record = folder / "gpu_tests.txt"
    lines = [f"{name}: {value}\n" for name, value in head.items()]
    record.write_text("".join([*lines, "\n", *output]))
    print(f"record: {record.relative_to(ROOT)}")
    return code


if __name__ == "__main__":
    sys.exit(main())
