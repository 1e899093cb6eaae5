"""Runs the tests marked ``gpu`` and records the device, versions and results.

The record goes to benchmarks/results/<device>/gpu_tests.txt. Arguments are handed to pytest.
"""

from __future__ import annotations

import subprocess
import sys

import torch
from gpu_facts import ROOT, facts, results_folder

import fastvision


def main() -> int:
    if not torch.cuda.is_available():
        print("the GPU tests need a CUDA device, and torch sees none", file=sys.stderr)
        return 1
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

    info = fastvision.info()
    library = info["library"]
    head = {
        **facts(),
        "fastvision": info["fastvision"],
        "library": library["missing"] or f"CUDA {library['cuda']}, {library['cuda_architectures']}",
        "command": "python " + " ".join(command),
    }
    folder = results_folder(head["device"])
    folder.mkdir(parents=True, exist_ok=True)
    record = folder / "gpu_tests.txt"
    lines = [f"{name}: {value}\n" for name, value in head.items()]
    record.write_text("".join([*lines, "\n", *output]))
    print(f"record: {record.relative_to(ROOT)}")
    return code


if __name__ == "__main__":
    sys.exit(main())
