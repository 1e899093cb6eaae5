"""COCO: boxes, masks, crowds, and errors that name the file."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from fastvision.data import CocoDetection

WIDTH, HEIGHT = 40, 30


def runs(*counts: int) -> dict[str, Any]:
    return {"size": [HEIGHT, WIDTH], "counts": list(counts)}


@pytest.fixture
def content() -> dict[str, Any]:
    """Two images; the first has a polygon, a crowd by runs, and one encoded in a string."""
    import numpy as np
    from pycocotools import mask

    pixels = np.zeros((HEIGHT, WIDTH), np.uint8, order="F")
    pixels[20:25, 30:36] = 1
    outlines = [
        [[2, 3, 12, 3, 12, 8, 2, 8], [20, 3, 24, 3, 24, 8, 20, 8]],
        {"size": [HEIGHT, WIDTH], "counts": [3, 4, HEIGHT * WIDTH - 7]},  # rows 3 to 6 of column 0
        {"size": [HEIGHT, WIDTH], "counts": mask.encode(pixels)["counts"].decode()},
    ]
    boxes = [[2, 3, 22, 5], [0, 3, 1, 4], [30, 20, 6, 5]]
    return {
        "images": [
            {"id": 70, "file_name": "b.jpg", "width": WIDTH, "height": HEIGHT},
            {"id": 7, "file_name": "a.jpg", "width": WIDTH, "height": HEIGHT},
        ],
        "categories": [{"id": 90, "name": "toothbrush"}, {"id": 3, "name": "car"}],
        "annotations": [
            {
                "id": 100 + i,
                "image_id": 7,
                "category_id": (90, 3, 3)[i],
                "bbox": boxes[i],
                "iscrowd": int(i == 1),
                "segmentation": outlines[i],
            }
            for i in range(3)
        ],
    }


@pytest.fixture
def write(tmp_path: Path, save_image: Callable[..., Path]) -> Callable[[Any], Path]:
    """Writes a folder of COCO with these annotations, or with this text in their place."""

    def folder(content: Any) -> Path:
        for name in ("a", "b"):
            save_image(tmp_path / "val2017" / f"{name}.jpg")
        file = tmp_path / "annotations" / "instances_val2017.json"
        file.parent.mkdir(exist_ok=True)
        file.write_text(content if isinstance(content, str) else json.dumps(content))
        return tmp_path

    return folder


def test_items(write, content: dict[str, Any]) -> None:
    from torchvision.tv_tensors import BoundingBoxes, Mask

    data = CocoDetection(write(content), "val2017", masks=True)
    assert len(data) == 2
    assert data.classes == ("background", "car", "toothbrush") and data.category_ids == (0, 3, 90)
    image, target = data[0]
    assert image.shape == (3, HEIGHT, WIDTH) and target["image_id"] == 7
    assert type(target["boxes"]) is BoundingBoxes and type(target["masks"]) is Mask
    assert target["boxes"].tolist() == [[2, 3, 24, 8], [0, 3, 1, 7], [30, 20, 36, 25]]
    assert target["labels"].tolist() == [2, 1, 1]
    assert target["iscrowd"].tolist() == [False, True, False]
    expected = torch.zeros(3, HEIGHT, WIDTH, dtype=torch.uint8)
    expected[0, 3:8, 2:12] = expected[0, 3:8, 20:24] = 1
    expected[1, 3:7, 0] = 1
    expected[2, 20:25, 30:36] = 1
    assert target["masks"].equal(expected)
    image, empty = data[1]
    assert empty["image_id"] == 70 and empty["boxes"].shape == (0, 4)
    assert empty["masks"].shape == (0, HEIGHT, WIDTH) and empty["masks"].dtype == torch.uint8
    assert empty["labels"].dtype == torch.int64 and empty["iscrowd"].dtype == torch.bool
    assert "masks" not in CocoDetection(write(content), "val2017")[0][1]


def test_a_category_may_have_the_number_zero(write, content: dict[str, Any]) -> None:
    """It is a class like the others, not the background."""
    for entry in (*content["categories"], *content["annotations"]):
        key = "id" if "name" in entry else "category_id"
        entry[key] = {90: 1, 3: 0}[entry[key]]
    data = CocoDetection(write(content), "val2017")
    assert data.classes == ("background", "car", "toothbrush") and data.category_ids == (0, 0, 1)
    assert data[0][1]["labels"].tolist() == [2, 1, 1]


def test_masks_are_as_pycocotools_reads_them(write, content: dict[str, Any]) -> None:
    from pycocotools.coco import COCO

    root = write(content)
    reader = COCO(root / "annotations" / "instances_val2017.json")
    target = CocoDetection(root, "val2017", masks=True)[0][1]
    for mask, key in zip(target["masks"], (100, 101, 102), strict=True):
        assert mask.equal(torch.from_numpy(reader.annToMask(reader.anns[key])))


def test_boxes_without_area_can_be_left_out(write, content: dict[str, Any]) -> None:
    content["annotations"][1]["bbox"] = [5, 5, 3, 0]
    root = write(content)
    with pytest.raises(ValueError, match=r"instances_val2017\.json: annotation 101: .* no area"):
        CocoDetection(root, "val2017")[0]
    target = CocoDetection(root, "val2017", skip_empty=True)[0][1]
    assert target["labels"].tolist() == [2, 1] and target["iscrowd"].tolist() == [False] * 2


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("bbox", [30, 20, 12, 5], r"the box \[30.0, 20.0, 42.0, 25.0\] is outside of .* 40x30"),
        ("bbox", [30, 20, -3, 5], "has no area"),
        ("bbox", [30, 20, 5], r"bbox must be four numbers, got \[30, 20, 5\]"),
        ("bbox", None, "bbox must be four numbers, got None"),
        ("category_id", 4, "unknown category_id 4"),
        ("image_id", 8, "unknown image_id 8"),
        ("segmentation", [[1, 2, 3, 4]], "a polygon of the mask has fewer than 3 points"),
        ("segmentation", {"size": [3, 4], "counts": [12]}, r"mask's size is \[3, 4\], the image's"),
        ("segmentation", {"size": [HEIGHT, WIDTH]}, "cannot read the mask"),
        ("segmentation", runs(12, 30), "cannot read the mask: its runs cover 42 of 1200 pixels"),
        ("segmentation", runs(1200, 1), "cannot read the mask: its runs cover 1201 of 1200 pixels"),
        ("segmentation", None, "cannot read the mask"),
    ],
)
def test_bad_annotations(write, content: dict[str, Any], key: str, value, message: str) -> None:
    content["annotations"][2][key] = value
    match = rf"annotations/instances_val2017\.json: annotation 102: .*{message}"
    with pytest.raises(ValueError, match=match):
        CocoDetection(write(content), "val2017", masks=True)[0]


def test_a_compressed_mask_that_ends_early(write, content: dict[str, Any], monkeypatch) -> None:
    """The decoder returns memory as it finds it, here with sevens."""
    from pycocotools import mask

    rest = torch.full((HEIGHT, WIDTH), 7, dtype=torch.uint8).numpy()
    monkeypatch.setattr(mask, "decode", lambda code: rest)
    match = "annotation 100: cannot read the mask: its runs do not cover the image"
    with pytest.raises(ValueError, match=match):
        CocoDetection(write(content), "val2017", masks=True)[0]


def test_bad_files(write, content: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"instances_val2017\.json is not JSON: "):
        CocoDetection(write("{"), "val2017")
    for text in ("[]", '{"images": [], "annotations": {}}'):
        with pytest.raises(ValueError, match=r"instances_val2017\.json has no list '"):
            CocoDetection(write(text), "val2017")
    del content["images"][0]["file_name"]
    with pytest.raises(ValueError, match=r"json: an entry of 'images' lacks one of .*file_name"):
        CocoDetection(write(content), "val2017")


def test_missing_files(write, content: dict[str, Any]) -> None:
    root = write(content)
    with pytest.raises(FileNotFoundError, match=r"train2017; .* contains annotations, val2017"):
        CocoDetection(root)
    (root / "val2017" / "a.jpg").unlink()
    with pytest.raises(FileNotFoundError, match=r"val2017/a\.jpg, which .*val2017\.json asks for"):
        CocoDetection(root, "val2017")
    (root / "annotations" / "instances_val2017.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"no file .*instances_val2017\.json"):
        CocoDetection(root, "val2017")


def test_bad_images(write, save_image, content: dict[str, Any]) -> None:
    root = write(content)
    data = CocoDetection(root, "val2017")
    save_image(root / "val2017" / "a.jpg", size=(20, 30))
    with pytest.raises(ValueError, match=r"a\.jpg is 20x30, but .*val2017\.json says 40x30"):
        data[0]
    (root / "val2017" / "a.jpg").write_text("nothing")
    with pytest.raises(ValueError, match=r"a\.jpg cannot be read as an image"):
        data[0]
