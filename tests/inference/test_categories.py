"""Categories of COCO: results that pycocotools evaluates against the annotations."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from fastvision.cli import main
from fastvision.inference import load_predictor
from fastvision.inference.findings import Findings
from fastvision.inference.predictor import Predictor

IDS = {"far": 18, "near": 90, "between": 7}
BOX = [16, 8, 8, 24]  # of the rectangle that the detector finds as label 2


@pytest.fixture
def annotations(tmp_path: Path) -> Path:
    """Of the picture 12, in which the rectangle is of the category with the second lowest id."""
    found: dict[str, Any] = {
        "images": [{"id": 12, "file_name": "12.png", "width": 64, "height": 48}],
        "categories": [{"id": number, "name": name} for name, number in IDS.items()],
        "annotations": [
            {"id": 1, "image_id": 12, "category_id": 18, "bbox": BOX, "area": 192, "iscrowd": 0}
        ],
    }
    path = tmp_path / "instances.json"
    path.write_text(json.dumps(found))
    return path


def average_precision(annotations: Path, out: Path) -> float:
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    truth = COCO(str(annotations))
    evaluation = COCOeval(truth, truth.loadRes(str(out / "results.json")), "bbox")
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summarize()
    return float(evaluation.stats[1])  # of boxes that overlap by half


def detect(*arguments: Any) -> int:
    return main(["detect", "--device", "cpu", "--quiet", *map(str, arguments)])


def test_annotations_name_the_categories(
    folder: Path, detector: list[str], annotations: Path, tmp_path: Path, capsys
) -> None:
    picture, out = folder / "12.png", tmp_path / "out"
    (folder / "plain.png").rename(picture)
    options = (picture, *detector, "--score", "0.7", "--out", out)
    assert detect(*options) == 0
    assert average_precision(annotations, out) == 0  # the label is no category's id
    assert detect(*options, "--classes", annotations) == 0
    assert average_precision(annotations, out) == pytest.approx(1)
    assert "12.png: far 0.90\n" in capsys.readouterr().out
    index = json.loads((out / "images.json").read_text())
    assert {c["name"]: c["id"] for c in index["categories"]} == IDS
    (result,) = json.loads((out / "results.json").read_text())
    assert result["category_id"] == 18 and "label" not in result


def test_categories_of_a_checkpoint(
    folder: Path, checkpoint: str, annotations: Path, tmp_path: Path, capsys
) -> None:
    content = torch.load(checkpoint)
    ids = [0, *range(20, 40, 2)]
    torch.save({**content, "category_ids": ids}, checkpoint)
    out = tmp_path / "out"
    options = (folder / "plain.png", "--weights", checkpoint, "--score", 0, "--out", out)
    assert detect(*options) == 0
    index = json.loads((out / "images.json").read_text())
    assert index["categories"] == [{"id": 20 + 2 * i, "name": str(i)} for i in range(10)]
    (result,) = json.loads((out / "results.json").read_text())
    predictor = load_predictor("detection", weights=checkpoint, score=0)
    assert predictor.category_ids == tuple(ids[1:])  # a localizer has no label for the background
    assert f": {(result['category_id'] - 20) // 2} " in capsys.readouterr().out

    assert detect(*options, "--classes", annotations) == 1
    assert "classes must name all 10 labels of the weights, got 3 names" in capsys.readouterr().err


def test_classifiers_have_no_background(tmp_path: Path) -> None:
    from fastvision.models import get_model

    model = get_model("lenet5", num_classes=3)
    torch.save(model.state_dict(), tmp_path / "weights.pth")
    predictor = load_predictor(
        "classification",
        "lenet5",
        str(tmp_path / "weights.pth"),
        options={"num_classes": 3},
        classes=("background", "between", "far", "near"),
        category_ids=(0, 7, 18, 90),
    )
    assert predictor.classes == ("between", "far", "near")
    assert predictor.category_ids == (7, 18, 90)


def test_labels_without_a_category_are_named(
    folder: Path, detector: list[str], annotations: Path, tmp_path: Path, capsys
) -> None:
    content = json.loads(annotations.read_text())
    del content["categories"][1:]
    annotations.write_text(json.dumps(content))
    options = (folder / "plain.png", *detector, "--out", tmp_path / "out", "--classes", annotations)
    assert detect(*options) == 1
    message = "found a label 2, but there are categories for labels up to 1"
    assert message in capsys.readouterr().err

    annotations.write_text("[]")
    assert detect(*options) == 1
    assert f"{annotations} has no list 'categories'" in capsys.readouterr().err


def test_ids_are_as_many_as_classes() -> None:
    with pytest.raises(ValueError, match="as many as the 2 classes, got 3"):
        Predictor(torch.nn.Identity(), "detection", ("background", "cat"), category_ids=(0, 1, 2))


def test_records_have_labels_and_ids() -> None:
    from fastvision.inference.results import as_records

    findings = Findings(torch.tensor([2, 1]), torch.tensor([0.5, 0.25]))
    records = as_records(findings, (0, 3, 90))
    assert [(r["label"], r["category_id"]) for r in records] == [(2, 90), (1, 3)]
    assert [r["category_id"] for r in as_records(findings)] == [2, 1]
