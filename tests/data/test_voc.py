"""VOC: boxes, class maps, and errors that name the file."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from fastvision.data import IGNORE, VOC_CLASSES, VOCDetection, VOCSegmentation


def element(name: str, *corners: object, difficult: int = 0) -> str:
    """An object; its part has a box of its own, which is not the object's."""
    names = ("xmin", "ymin", "xmax", "ymax")
    box = "".join(f"<{key}>{value}</{key}>" for key, value in zip(names, corners, strict=False))
    part = "<part><name>head</name><bndbox><xmin>1</xmin></bndbox></part>"
    flag = f"<difficult>{difficult}</difficult>"
    return f"<object><name>{name}</name>{flag}<bndbox>{box}</bndbox>{part}</object>"


@pytest.fixture
def root(tmp_path: Path, save_image: Callable[..., Path]) -> Path:
    """Two images: one with a cat and a difficult dog, one with nothing."""
    from PIL import Image

    folder = tmp_path / "VOCdevkit" / "VOC2007"
    for task in ("Main", "Segmentation"):
        (folder / "ImageSets" / task).mkdir(parents=True)
        (folder / "ImageSets" / task / "train.txt").write_text("000001\n000002\n")
    (folder / "Annotations").mkdir()
    (folder / "SegmentationClass").mkdir()
    objects = element("cat", 1, 1, 40, 30) + element("dog", 5, 6.5, 10, 20, difficult=1)
    for name, content in {"000001": objects, "000002": ""}.items():
        save_image(folder / "JPEGImages" / f"{name}.jpg")
        (folder / "Annotations" / f"{name}.xml").write_text(f"<annotation>{content}</annotation>")
        class_map = Image.new("P", (40, 30), 0)
        class_map.putpalette([0, 0, 0, 128, 0, 0] * 128)
        if content:
            class_map.paste(255, (4, 5, 10, 20))
            class_map.paste(12, (5, 6, 9, 19))
        class_map.save(folder / "SegmentationClass" / f"{name}.png")
    return tmp_path


def file(root: Path, name: str) -> Path:
    return root / "VOCdevkit" / "VOC2007" / name


def test_detection(root: Path) -> None:
    from torchvision.tv_tensors import BoundingBoxes

    data = VOCDetection(root, "train", year="2007")
    assert len(data) == 2 and data.ids == ["000001", "000002"] and len(VOC_CLASSES) == 21
    image, target = data[0]
    assert image.shape == (3, 30, 40) and image.dtype == torch.uint8
    assert type(target["boxes"]) is BoundingBoxes and target["boxes"].canvas_size == (30, 40)
    assert target["boxes"].tolist() == [[0, 0, 40, 30], [4, 5.5, 10, 20]]
    assert [data.classes[label] for label in target["labels"]] == ["cat", "dog"]
    assert target["difficult"].tolist() == [False, True] and target["image_id"] == 0
    assert data[-1][1]["image_id"] == 1
    _, empty = data[1]
    assert empty["boxes"].shape == (0, 4) and empty["labels"].dtype == torch.int64
    with pytest.raises(IndexError):
        data[2]


def test_segmentation(root: Path) -> None:
    from torchvision.tv_tensors import Mask

    image, target = VOCSegmentation(root, "train", year="2007")[0]
    class_map = target["class_map"]
    assert type(class_map) is Mask and class_map.dtype == torch.int64
    assert class_map.shape == image.shape[1:]
    expected = torch.zeros(30, 40, dtype=torch.int64)
    expected[5:20, 4:10] = IGNORE
    expected[6:19, 5:9] = VOC_CLASSES.index("dog")
    assert class_map.equal(expected)


def test_other_classes(root: Path) -> None:
    classes = ("background", "dog", "cat")
    target = VOCDetection(root, year="2007", classes=classes)[0][1]
    assert target["labels"].tolist() == [2, 1]
    with pytest.raises(ValueError, match=r"000001\.png: unknown class 12 of 3"):
        VOCSegmentation(root, year="2007", classes=classes)[0]
    with pytest.raises(ValueError, match=r"classes must begin with 'background', got \('dog',"):
        VOCDetection(root, year="2007", classes=("dog", "cat"))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (element("cat", 5, 5, 4, 9), r"the box \[4.0, 4.0, 4.0, 9.0\] has no area"),
        (element("cat", 5, 5, 9, "nan"), r"the box \[4.0, 4.0, 9.0, nan\] has no area"),
        (element("cat", 5, 5, 43, 9), r"the box \[4.0, 4.0, 43.0, 9.0\] is outside .* of 40x30"),
        (element("cat", -3, 5, 20, 9), r"the box \[-4.0, 4.0, 20.0, 9.0\] is outside"),
        (element("cat", 5, 5, 9), r"a box must be four numbers, got \['5', '5', '9', None\]"),
        (element("cat", 5, 5, 9, "x"), r"a box must be four numbers, got \['5', '5', '9', 'x'\]"),
        (element("unicorn", 5, 5, 9, 9), r"unknown class 'unicorn'"),
        (element("background", 5, 5, 9, 9), r"unknown class 'background'"),
        ("<object>", "is not XML: "),
    ],
)
def test_bad_annotations(root: Path, content: str, message: str) -> None:
    path = file(root, "Annotations/000001.xml")
    path.write_text(f"<annotation>{content}</annotation>")
    with pytest.raises(ValueError, match=rf"Annotations/000001\.xml:? {message}"):
        VOCDetection(root, year="2007")[0]


@pytest.mark.parametrize("encoding", ["unheard-of", "utf-7"])
def test_bad_encodings(root: Path, encoding: str) -> None:
    path = file(root, "Annotations/000001.xml")
    path.write_text(f"<?xml version='1.0' encoding='{encoding}'?><annotation/>")
    with pytest.raises(ValueError, match=r"Annotations/000001\.xml is not XML: "):
        VOCDetection(root, year="2007")[0]


def test_boxes_are_cut_where_rounding_put_them_outside(root: Path) -> None:
    content = element("cat", 0.5, 1, 40.75, 30)
    file(root, "Annotations/000001.xml").write_text(f"<annotation>{content}</annotation>")
    assert VOCDetection(root, year="2007")[0][1]["boxes"].tolist() == [[0, 0, 40, 30]]


def test_missing_files(root: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"VOCdevkit/VOC2012; .*VOCdevkit contains VOC2007"):
        VOCDetection(root)
    with pytest.raises(FileNotFoundError, match=r"no file .*ImageSets/Main/val\.txt"):
        VOCDetection(root, "val", year="2007")
    file(root, "SegmentationClass/000002.png").unlink()
    with pytest.raises(FileNotFoundError, match=r"SegmentationClass/000002\.png, which .*train\.t"):
        VOCSegmentation(root, year="2007")
    VOCDetection(root, year="2007")
    file(root, "JPEGImages/000001.jpg").unlink()
    with pytest.raises(FileNotFoundError, match=r"JPEGImages/000001\.jpg, which .*Main/train\.txt"):
        VOCDetection(root, year="2007")
    file(root, "ImageSets/Main/train.txt").write_text("\n")
    with pytest.raises(ValueError, match=r"Main/train\.txt lists no image"):
        VOCDetection(root, year="2007")


def test_bad_class_maps(root: Path) -> None:
    from PIL import Image

    path = file(root, "SegmentationClass/000001.png")
    data = VOCSegmentation(root, year="2007")
    Image.new("P", (30, 40)).save(path)
    with pytest.raises(ValueError, match=r"000001\.png is 30x40, but .*000001\.jpg is 40x30"):
        data[0]
    Image.new("L", (40, 30), 21).save(path)
    with pytest.raises(ValueError, match=r"000001\.png: unknown class 21 of 21"):
        data[0]
    Image.new("RGB", (40, 30)).save(path)
    with pytest.raises(ValueError, match=r"000001\.png cannot be read .* mode RGB, not one label"):
        data[0]
    path.write_bytes(path.read_bytes()[:50])
    with pytest.raises(ValueError, match=r"000001\.png cannot be read as a class map"):
        data[0]


def test_broken_image(root: Path) -> None:
    file(root, "JPEGImages/000001.jpg").write_bytes(b"\xff\xd8\xff")
    with pytest.raises(ValueError, match=r"000001\.jpg cannot be read as an image"):
        VOCDetection(root, year="2007")[0]
