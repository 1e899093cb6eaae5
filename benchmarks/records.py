"""Records of a device, one JSON file per op, and the figures that follow from them.

There is one estimator: a time is the best round's, a ratio one best round over another.
"""

from __future__ import annotations

import json
import os
import re
import statistics
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.harness import BASELINES, COMPILED, PEERS

Row = dict[str, Any]
Record = dict[str, Any]

# operations whose bound counts each tap of a direct sum; Winograd's algorithm needs fewer
DIRECT_SUM = {"batch_norm_relu", "conv_bn_relu", "conv_bn_relu_gpu", "conv_transpose2d", "fuse"}
# the part of a case's name that it shares with its group, by op; other ops' cases stay alone
GROUPS = {
    "batch_norm_relu": r"^(training step|forward and backward|forward).*?(float32|bfloat16)",
    "box_iou": r"^(\w+(?:, forward and backward)?)",
    "box_iou_3d": r"^([^,]+)",
    "calls": r"^(\w+)",
    "conv_bn_relu": r"^(\w+, batch \d+)",
    "conv_bn_relu_gpu": r"^(batch \d+),.*, (\w+)$",
    "conv_transpose2d": r"^(?:.*, (bilinear),)?.*, (\w+)$",
    "deform_conv2d": r"^([^,]+), .*, (\w+), \w+$",
    "detection": r"^(\w+)",
    "detectors": r"(training step|batch \d+|post-processing)",
    "focal_loss": r"^([^,]+, [^,]+), .*, (\w+), \w+$",
    "linear_act": r"^([^,]+)",
    "mask_nms": r"^([^,]+)",
    "matrix_nms": r"^([^,]+)",
    "max_pool2d": r"^(\w+(?:, gradient)?), .*, (\w+), \w+$",
    "multiscale_roi_align": r"(\w+, \w+)$",
    "nms": r"^(\w+, [^,]+)",
    "nms_match": r"^([^,]+)",
    "nms_rotated": r"^(\w+, [^,]+)",
    "ps_roi_align": r"^([^,]+), .* samples, (\w+)",
    "ps_roi_pool": r"^([^,]+), .* bins, (\w+)",
    "roi_align": r"^([^,]+), .* samples, (\w+)",
    "roi_align_max": r"^([^,]+), .* samples, (\w+)",
    "roi_align_rotated": r"^([^,]+), .* samples, (\w+)",
    "roi_pool": r"^([^,]+), .* bins, (\w+)",
    "soft_nms": r"^([^,]+)",
}


def write_atomically(path: Path, text: str) -> None:
    """A reader, or a stop half-way, meets the old file or the new one, never a part."""
    partial = path.with_name(path.name + ".partial")
    partial.write_text(text)
    os.replace(partial, path)


def save(
    folder: Path, rows: list[Row], machine: Row, limits: Row, *, quick: bool, finished: bool
) -> None:
    """Writes <op>.json for every op among ``rows``; the other ops' files stay.

    Ops are measured one after the other, so a run that was stopped lacks cases of the last alone.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for op in dict.fromkeys(row["op"] for row in rows):
        mine = [row for row in rows if row["op"] == op]
        record = {"machine": machine, "quick": quick, "limits": limits, "rows": mine}
        if not finished and op == rows[-1]["op"]:
            record["remark"] = "of a run that was stopped: cases may be missing"
        write_atomically(folder / f"{op}.json", json.dumps(record, indent=1) + "\n")


def load(folder: Path) -> dict[str, Record]:
    """The records by op. What other tools leave in the folder has no rows and is no record."""
    found = {path.stem: json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))}
    return {op: record for op, record in found.items() if "rows" in record}


def _most_of_each(rates: list[dict[str, float]]) -> dict[str, float]:
    names = dict.fromkeys(name for one in rates for name in one)
    return {name: max(one.get(name, 0) for one in rates) for name in names}


def highest_limits(records: Iterable[Record]) -> Row:
    """The most that any run on this machine has reached: other runs met a busier machine."""
    limits = [record["limits"] for record in records]
    copies = [one["copy_bytes_per_second"] for one in limits]
    dtypes = [one.get("flops_per_second_of", {}) for one in limits]
    return {
        "copy_bytes_per_second": _most_of_each(copies),
        "flops_per_second_of": _most_of_each(dtypes),
        "flops_per_second": max(one["flops_per_second"] for one in limits),
        "how": limits[-1]["how"],
    }


def bound_seconds(row: Row, limits: Row) -> float | None:
    """The time the least bytes or the least arithmetic take at the limits, whichever is longer.

    The bandwidth is the best copy of at least that many bytes: what fits in a cache may use it.
    """
    if "least_bytes" not in row:
        return None
    copy = {int(size): rate for size, rate in limits["copy_bytes_per_second"].items()}
    least = min(row["least_bytes"], max(copy))
    rate = max(rate for size, rate in copy.items() if size >= least)
    of_dtype = limits.get("flops_per_second_of", {})
    flops = of_dtype.get(row.get("dtype"), limits["flops_per_second"])
    return max(row["least_bytes"] / rate, row["least_flops"] / flops)


def baseline_seconds(row: Row) -> float | None:
    """The fastest of the baselines, or None where none was timed."""
    times = (row["providers"].get(name, {}).get("seconds") for name in BASELINES)
    return min((t for t in times if t is not None), default=None)


def speedup(row: Row, provider: str) -> float | None:
    """The fastest baseline's time over the provider's, or None where either is missing."""
    baseline = baseline_seconds(row)
    seconds = row["providers"].get(provider, {}).get("seconds")
    return None if baseline is None or seconds is None else baseline / seconds


def our_providers(row: Row) -> list[str]:
    """fastvision's, the default first. The reference is not meant to be fast."""
    return [name for name in row["providers"] if name not in (*PEERS, "reference")]


def our_speedup(row: Row) -> float | None:
    """The speed-up of the backend that runs by default."""
    ours = our_providers(row)
    return speedup(row, ours[0]) if ours else None


def compiled_speedup(row: Row) -> float | None:
    return speedup(row, COMPILED)


def converts(row: Row) -> bool:
    """Whether torchvision converts its input in each call: its RoIAlign is NCHW and float32."""
    return "roi_align" in row["op"] and (
        "channels_last" in row["case"] or "through float32" in row["note"]
    )


def family(row: Row) -> str:
    """The op, cases that torchvision converts apart: their ratios say more of the conversion."""
    return f"{row['op']}, converted" if converts(row) else row["op"]


def group(row: Row) -> str:
    """What a case is drawn with: its model, or its kind and dtype."""
    match = re.search(GROUPS.get(row["op"], "^(.*)$"), row["case"])
    name = ", ".join(part for part in match.groups() if part) if match else row["case"]
    return f"{name}, converted" if converts(row) else name


@dataclass(frozen=True)
class Summary:
    """The speed-ups of some rows, and the row whose baseline takes longest."""

    name: str
    count: int
    mean: float  # geometric
    least: float
    most: float
    headline: Row


def summarize(name: str, rows: Iterable[Row]) -> Summary | None:
    """Of the rows that have a speed-up; None if there are none."""
    ratios = [(ratio, row) for row in rows if (ratio := our_speedup(row)) is not None]
    if not ratios:
        return None
    values = [ratio for ratio, _ in ratios]
    return Summary(
        name,
        len(values),
        statistics.geometric_mean(values),
        min(values),
        max(values),
        max((row for _, row in ratios), key=lambda row: baseline_seconds(row) or 0),
    )


def summaries(records: dict[str, Record]) -> list[Summary]:
    """One per family."""
    families: dict[str, list[Row]] = {}
    for record in records.values():
        for row in record["rows"]:
            families.setdefault(family(row), []).append(row)
    parts = [summarize(name, rows) for name, rows in families.items()]
    return [part for part in parts if part is not None]


def slowdowns(records: dict[str, Record]) -> list[tuple[float, Row]]:
    """Cases slower than their baseline, the slowest first."""
    rows = [row for record in records.values() for row in record["rows"]]
    slow = [(ratio, row) for row in rows if (ratio := our_speedup(row)) is not None and ratio < 1]
    return sorted(slow, key=lambda pair: pair[0])
