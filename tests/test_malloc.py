"""Freed memory is kept in a process of its own: the setting cannot be undone."""

from __future__ import annotations

import subprocess
import sys

import pytest

PROGRAM = """
import resource, sys
import torch
import fastvision

if sys.argv[1] == "kept" and not fastvision.keep_freed_memory():
    print("unsupported")
    sys.exit()

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(4):
        torch.zeros(16 << 20).add_(1)  # 64 MiB: more than the largest block that glibc keeps
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

for _ in range(3):  # the heap grows until it has room for all that is alive at once
    faults()
print(faults())
"""


def page_faults(setting: str) -> str:
    command = [sys.executable, "-c", PROGRAM, setting]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def test_kept_memory_costs_no_page_faults():
    kept = page_faults("kept")
    if kept == "unsupported":
        pytest.skip("the C library has no mallopt")
    assert int(kept) * 10 < int(page_faults("default"))
