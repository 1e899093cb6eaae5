"""Builds, tests and measures on the GPU of this machine, within a time, and keeps what it got.

    python scripts/gpu_record.py --minutes 6

Needs torch, pytest, pytest-benchmark, CMake, ninja, pybind11 and nvcc, but no network. The most
important comes first, and each step has its share of the time. Device, versions, results and what
was not reached go to benchmarks/results/<device>/: gpu_record.json, a log of each step, the records
of the benchmarks and their report. A stop half-way leaves what was measured.
"""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from timeboxes import Record, Step, execute, plan, run

ROOT = Path(__file__).resolve().parent.parent
PYTHON = sys.executable
QUICK_BELOW_MINUTES = 20  # less time than that is for the small cases of more ops

# tests by family, the most important first: what the names of their files contain
FAMILIES = {
    "boxes": "box",
    "conv_bn_relu": "conv_bn_relu",
    "nms": "nms",
    "roi_align": "roi_align",
    "roi_pool": "roi_pool",
    "focal_loss": "focal_loss",
    "triton": "triton",
    "conv_transpose2d": "conv_transpose2d",
    "deform_conv2d": "deform_conv2d",
    "batch_norm": "batch_norm",
    "squeeze_excitation": "squeeze_excitation",
    "max_pool2d": "max_",
}
# the steps in order, each with its share of the time; what a step leaves unused is passed on
ORDER = [
    ("build", "", 50),
    ("test", "conv_bn_relu", 10),
    ("test", "nms", 6),
    ("test", "roi_align", 6),
    ("test", "focal_loss", 6),
    ("bench", "conv_bn_relu_gpu", 14),
    ("bench", "roi_align", 5),
    ("bench", "nms", 5),
    ("bench", "focal_loss", 5),
    ("test", "triton", 5),
    ("test", "conv_transpose2d", 4),
    ("test", "batch_norm", 3),
    ("test", "deform_conv2d", 3),
    ("test", "roi_pool", 3),
    ("test", "squeeze_excitation", 2),
    ("test", "max_pool2d", 2),
    ("test", "boxes", 2),
    ("sanitize", "", 8),
    ("bench", "batched_nms_padded", 2),
    ("bench", "mask_nms", 1),
    ("bench", "matrix_nms", 1),
    ("bench", "nms_match", 1),
    ("bench", "soft_nms", 1),
    ("bench", "conv_transpose2d", 3),
    ("bench", "batch_norm_relu", 3),
    ("bench", "deform_conv2d", 2),
    ("bench", "multiscale_roi_align", 2),
    ("bench", "ps_roi_align", 1),
    ("bench", "roi_align_max", 1),
    ("bench", "roi_align_rotated", 1),
    ("bench", "ps_roi_pool", 1),
    ("bench", "roi_pool", 2),
    ("bench", "box_iou", 1),
    ("bench", "box_iou_rotated", 1),
    ("bench", "box_iou_3d", 1),
    ("bench", "nms_rotated", 1),
    ("bench", "weighted_boxes_fusion", 1),
    ("bench", "masks_to_boxes", 1),
    ("bench", "fuse", 4),
    ("report", "", 2),
]
# a pass over each kind of kernel: compute-sanitizer takes tens of times as long as the test alone
SANITIZED = "same_bits or repeats_exactly or misaligned or poisoned"


def test_files(family: str) -> list[str]:
    files = [p for folder in ("gpu", "ops") for p in (ROOT / "tests" / folder).glob("test_*.py")]
    return [str(path) for path in sorted(files) if FAMILIES[family] in path.stem]


def _pytest(*arguments: str) -> list[str]:
    # not from the root of the tree: its fastvision, which has no library, would come first
    options = ["-c", str(ROOT / "pyproject.toml"), "--rootdir", str(ROOT), "-m", "gpu", "-v"]
    return [PYTHON, "-m", "pytest", *options, "--tb=short", "--color=no", *arguments]


def make_steps(target: Path, results: Path, capability: str, *, quick: bool) -> list[Step]:
    """All steps; ``target`` is where the package is installed, and where they run."""
    environment = {
        "PYTHONPATH": str(target),
        "FASTVISION_CACHE_DIR": str(target / "cache"),  # measured for this build only
    }
    pip = [PYTHON, "-m", "pip", "install", str(ROOT), "--no-build-isolation", "--no-deps"]
    pip += ["--no-index", "--target", str(target), "--upgrade"]
    archs = {"FASTVISION_CUDA": "ON", "FASTVISION_CUDA_ARCHS": capability.replace(".", "")}
    bench = [PYTHON, "-m", "benchmarks.run", "--device", "cuda", "--output", str(results)]
    bench += ["--quick"] if quick else []
    gpu_tests = str(ROOT / "tests" / "gpu")
    commands = {
        "build": lambda _: pip,
        "test": lambda family: _pytest(*test_files(family)),
        "bench": lambda op: [*bench, "--op", op],
        "sanitize": lambda _: [
            *("compute-sanitizer", "--error-exitcode", "9"),
            *_pytest("-k", SANITIZED, gpu_tests),
        ],
        "report": lambda _: [PYTHON, "-m", "benchmarks.report", str(results)],
    }
    return [
        Step(
            f"{kind}_{part}".rstrip("_"),
            commands[kind](part),
            share,
            needed=kind == "build",
            environment=archs if kind == "build" else environment,
        )
        for kind, part, share in ORDER
    ]


def _stop(*_: object) -> None:
    raise KeyboardInterrupt


def record_all(minutes: float) -> int:
    import torch
    from gpu_facts import facts, results_folder

    if not torch.cuda.is_available():
        print("this needs a CUDA device, and torch sees none", file=sys.stderr)
        return 1
    known = facts()
    results = results_folder(known["device"])
    signal.signal(signal.SIGTERM, _stop)  # as Ctrl-C: the running step ends, too
    target = Path(tempfile.mkdtemp(prefix="fastvision-gpu-"))
    (target / "benchmarks").symlink_to(ROOT / "benchmarks")
    quick = minutes < QUICK_BELOW_MINUTES
    steps = make_steps(target, results, known["capability"], quick=quick)
    record = Record(results / "gpu_record.json", {**known, "minutes": minutes}, steps)
    print("\n".join(f"{name}: {value}" for name, value in known.items()), flush=True)
    try:
        passed = run(
            steps, 60 * minutes, record, lambda step, limit, log: execute(step, limit, log, target)
        )
    except KeyboardInterrupt:
        passed = False
    finally:
        shutil.rmtree(target, ignore_errors=True)
    print(f"record: {os.path.relpath(record.path, ROOT)}")
    return 0 if passed else 1


def print_plan(minutes: float) -> None:
    """What would run and for how long at most, on any machine."""
    results = ROOT / "benchmarks" / "results" / "<device>"
    quick = minutes < QUICK_BELOW_MINUTES
    steps = make_steps(Path("<target>"), results, "<capability>", quick=quick)
    for step, limit in plan(steps, 60 * minutes):
        command = " ".join(step.command).replace(PYTHON, "python").replace(f"{ROOT}/", "")
        print(f"{limit:5.0f} s  {step.name}: {command}")


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--minutes", type=float, default=6.0, help="for everything; default: 6")
    parser.add_argument("--dry-run", action="store_true", help="print the plan, run nothing")
    options = parser.parse_args(arguments)
    if options.dry_run:
        print_plan(options.minutes)
        return 0
    return record_all(options.minutes)


if __name__ == "__main__":
    sys.exit(main())
