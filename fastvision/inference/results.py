"""Findings as COCO's results in JSON, and their summary in a table."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from .._optional import optional
from ..training._checkpoint import write_whole
from .findings import Findings
from .predictor import BACKGROUND, name_of

RESULTS = "results.json"
IMAGES = "images.json"
SUMMARY = "summary.txt"
_ROW = "{:24} {:>8} {:>9} {:>11}"


def as_records(findings: Findings, category_ids: Sequence[int] = ()) -> list[dict[str, Any]]:
    """The findings in the form of COCO's results, without the image.

    Each has its "label", "category_id" and "score", and what the task has of "bbox" (x, y, width,
    height), "segmentation" (compressed run lengths) and "keypoints" (x, y and visibility of each).

    Args:
        category_ids: by label; empty if the labels are the categories' ids.
    """
    records: list[dict[str, Any]] = [
        {"label": label, "category_id": _id_of(category_ids, label), "score": round(score, 6)}
        for label, score in zip(findings.labels.tolist(), findings.scores.tolist(), strict=True)
    ]
    if findings.boxes is not None:
        for record, (x1, y1, x2, y2) in zip(records, findings.boxes.tolist(), strict=True):
            record["bbox"] = [round(value, 3) for value in (x1, y1, x2 - x1, y2 - y1)]
    if findings.masks is not None and records:
        encode = optional("pycocotools.mask").encode
        for record, mask in zip(records, findings.masks.numpy(), strict=True):
            runs = encode(np.asfortranarray(mask, np.uint8))
            record["segmentation"] = {**runs, "counts": runs["counts"].decode("ascii")}
    if findings.keypoints is not None:
        for record, points in zip(records, findings.keypoints.flatten(1).tolist(), strict=True):
            record["keypoints"] = [round(value, 3) for value in points]
    return records


def write_results(
    folder: Path,
    records: Sequence[dict[str, Any]],
    classes: Sequence[str],
    category_ids: Sequence[int] = (),
) -> list[str]:
    """Writes results.json, images.json and summary.txt.

    Args:
        folder: of the results.
        records: of pictures in their order, with "name", "path", "width", "height" and "findings",
            with "frame" in a video; or with "name" and "error".
        classes: names by label.
        category_ids: see :func:`as_records`.

    Returns:
        The lines of the summary.

    Raises:
        OSError: a file cannot be written.
    """
    done = [record for record in records if "error" not in record]
    failed = [record for record in records if "error" in record]
    images, results = [], []
    for number, record in zip(_image_ids(done), done, strict=True):
        image = {"id": number, "file_name": record["name"], "path": record["path"]}
        image |= {key: record[key] for key in ("width", "height", "frame") if key in record}
        images.append(image)
        for finding in record["findings"]:
            known = {key: value for key, value in finding.items() if key != "label"}
            results.append({"image_id": number, **known})
    index = {
        "images": images,
        "categories": _categories(done, classes, category_ids),
        "annotations": [],
        "failed": [{"file_name": record["name"], "error": record["error"]} for record in failed],
    }
    summary = list(_summary(done, classes))
    write_whole(folder / RESULTS, json.dumps(results).encode())
    write_whole(folder / IMAGES, json.dumps(index, indent=1).encode())
    write_whole(folder / SUMMARY, "".join(f"{line}\n" for line in summary).encode())
    return summary


def _image_ids(records: Sequence[dict[str, Any]]) -> list[int]:
    """COCO's numbers where all files are named by one, as COCO's are; else 1, 2, ..."""
    stems = [Path(record["name"]).stem for record in records]
    numbers = [int(stem) if stem.isdecimal() else -1 for stem in stems]
    if min(numbers, default=-1) >= 0 and len(set(numbers)) == len(numbers):
        return numbers
    return list(range(1, len(records) + 1))


def _id_of(category_ids: Sequence[int], label: int) -> int:
    return category_ids[label] if category_ids else label


def _categories(
    records: Iterable[dict[str, Any]], classes: Sequence[str], category_ids: Sequence[int]
) -> list[dict[str, Any]]:
    named = {i for i, name in enumerate(classes) if name not in (*BACKGROUND, "N/A")}
    found = {finding["label"] for record in records for finding in record["findings"]}
    return [
        {"id": _id_of(category_ids, label), "name": name_of(classes, label)}
        for label in sorted(named | found)
    ]


def _summary(records: Sequence[dict[str, Any]], classes: Sequence[str]) -> Iterable[str]:
    """A line for each class; of classes without a place, only a picture's best one counts."""
    scores: dict[int, list[float]] = {}
    pictures: dict[int, int] = {}
    for record in records:
        found = record["findings"]
        if found and not {"bbox", "segmentation"} & found[0].keys():
            found = found[:1]
        for finding in found:
            scores.setdefault(finding["label"], []).append(finding["score"])
        for label in {finding["label"] for finding in found}:
            pictures[label] = pictures.get(label, 0) + 1
    yield _ROW.format("class", "found", "pictures", "mean score")
    for label in sorted(scores, key=lambda label: (-len(scores[label]), label)):
        mean = sum(scores[label]) / len(scores[label])
        yield _ROW.format(
            name_of(classes, label), len(scores[label]), pictures[label], f"{mean:.3f}"
        )
    yield _ROW.format("all", sum(map(len, scores.values())), len(records), "").rstrip()
