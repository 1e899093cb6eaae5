"""COCO's folders (Lin et al., ECCV 2014)."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from .._optional import optional
from ._checks import check_file, check_folder
from ._samples import Sample, Transforms, check_box, read_image, target, transformed

# what an entry of each list must have
_KEYS = {
    "images": ("id", "file_name"),
    "annotations": ("id", "image_id", "category_id"),
    "categories": ("id", "name"),
}


class CocoDetection(Dataset[Sample]):
    """Boxes and masks of COCO.

    Reads ``root/{split}/*.jpg`` and ``root/annotations/instances_{split}.json``.

    Args:
        root: folder of the splits and of annotations.
        split: such as "train2017".
        masks: whether targets have "masks".
        skip_empty: leave out boxes without an area (COCO's train2017 has a few) instead of raising.
        transforms: called with image and target, returns both.

    An item is an image, [3, H, W] uint8, and its target:

    - "boxes": [n, 4] float32 corners (x1, y1, x2, y2).
    - "labels": [n] int64, from 1, in the order of the categories' ids and without their gaps.
      ``classes[label]`` is the name and ``category_ids[label]`` COCO's id; the first of each stands
      for the background.
    - "iscrowd": [n] bool, for regions of many objects that COCO's evaluation leaves out.
    - "image_id": COCO's.
    - "masks": [n, H, W] uint8, 1 at the pixels of each object.

    Images without annotations are kept.

    Raises:
        FileNotFoundError: a folder, the annotations or an image is missing.
        ValueError: the annotations are damaged, or refer to an image or category that they lack.
            When it is read: an image is damaged or has another size, a box has no area or is more
            than a pixel outside of the image, or a mask is damaged. The error names the file, and
            an annotation by its id.
        ModuleNotFoundError: masks are asked for and pycocotools is not installed.
    """

    def __init__(
        self,
        root: str | Path,
        split: str = "train2017",
        *,
        masks: bool = False,
        skip_empty: bool = False,
        transforms: Transforms | None = None,
    ) -> None:
        self.folder = Path(root) / split
        check_folder(self.folder)
        self.file = Path(root) / "annotations" / f"instances_{split}.json"
        check_file(self.file)
        content = _read(self.file)
        self.classes, self.category_ids = _by_label(content["categories"])
        self.images: list[dict[str, Any]] = sorted(content["images"], key=lambda item: item["id"])
        self.files = [self.folder / entry["file_name"] for entry in self.images]
        for path in self.files:
            if not path.is_file():
                raise FileNotFoundError(f"no file {path}, which {self.file} asks for")
        self.annotations = self._by_image(content["annotations"])
        self.masks = masks
        self.skip_empty = skip_empty
        self.transforms = transforms
        self._coder = optional("pycocotools.mask") if masks else None

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Sample:
        entry, file = self.images[index], self.files[index]
        image = read_image(file)
        height, width = image.shape[1:]
        size = (entry.get("width", width), entry.get("height", height))
        if size != (width, height):
            raise ValueError(
                f"{file} is {width}x{height}, but {self.file} says {size[0]}x{size[1]}"
            )
        annotation = self._target(entry["id"], image)
        return transformed(self.transforms, image, annotation)

    def _by_image(self, annotations: list[dict[str, Any]]) -> dict[int, list[dict[str, Any]]]:
        grouped: dict[int, list[dict[str, Any]]] = defaultdict(list)
        images = {entry["id"] for entry in self.images}
        categories = set(self.category_ids[1:])
        for annotation in annotations:
            image, category = annotation["image_id"], annotation["category_id"]
            if image not in images:
                raise ValueError(f"{self._where(annotation)}: unknown image_id {image!r}")
            if category not in categories:
                raise ValueError(f"{self._where(annotation)}: unknown category_id {category!r}")
            grouped[image].append(annotation)
        return dict(grouped)

    def _where(self, annotation: dict[str, Any]) -> str:
        return f"{self.file}: annotation {annotation['id']}"

    def _target(self, image_id: int, image: Tensor) -> dict[str, Any]:
        boxes, labels, crowds, masks = [], [], [], []
        for annotation in self.annotations.get(image_id, ()):
            where = self._where(annotation)
            left, top, width, height = _four_numbers(annotation, where)
            if self.skip_empty and (width <= 0 or height <= 0):
                continue
            boxes.append(check_box((left, top, left + width, top + height), image, where))
            # from 1 on: a category may have the id 0, as the background has
            labels.append(self.category_ids.index(annotation["category_id"], 1))
            crowds.append(bool(annotation.get("iscrowd", 0)))
            if self.masks:
                masks.append(self._mask(annotation, image, where))
        others = {"iscrowd": torch.tensor(crowds, dtype=torch.bool)}
        if self.masks:
            size = tuple(image.shape[1:])
            others["masks"] = torch.stack(masks) if masks else torch.zeros(0, *size).to(torch.uint8)
        return target(
            image,
            image_id,
            torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4),
            torch.tensor(labels, dtype=torch.int64),
            **others,
        )

    def _mask(self, annotation: dict[str, Any], image: Tensor, where: str) -> Tensor:
        """[H, W] uint8 of polygons or of a run-length encoding, compressed or not."""
        coder: Any = self._coder
        height, width = image.shape[1:]
        outline = annotation.get("segmentation")
        if isinstance(outline, dict) and list(outline.get("size", ())) != [height, width]:
            size = outline.get("size")
            raise ValueError(f"{where}: the mask's size is {size}, the image's {[height, width]}")
        if isinstance(outline, list) and any(len(points) < 6 for points in outline):
            raise ValueError(f"{where}: a polygon of the mask has fewer than 3 points")
        try:
            compressed = isinstance(outline, dict) and not isinstance(outline["counts"], list)
            if isinstance(outline, dict) and not compressed:
                covered = sum(outline["counts"])
                if covered != height * width:
                    raise ValueError(f"its runs cover {covered} of {height * width} pixels")
            codes = outline if compressed else coder.frPyObjects(outline, height, width)
            code = coder.merge(codes) if isinstance(codes, list) else codes
            pixels = np.ascontiguousarray(coder.decode(code))
            if pixels.sum() != coder.area(code):  # memory that runs do not cover is not set
                raise ValueError("its runs do not cover the image")
            return torch.from_numpy(pixels)
        except Exception as error:  # pycocotools raises errors of every type
            raise ValueError(f"{where}: cannot read the mask: {error}") from error


def read_categories(file: str | Path) -> tuple[tuple[str, ...], tuple[int, ...]]:
    """Names and ids of the categories of COCO's annotations, by the labels of
    :class:`CocoDetection`; the first of each stands for the background.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it has no list of categories.
    """
    check_file(Path(file))
    return _by_label(_read(Path(file), ("categories",))["categories"])


def _by_label(entries: list[dict[str, Any]]) -> tuple[tuple[str, ...], tuple[int, ...]]:
    categories = sorted(entries, key=lambda category: category["id"])
    names = (category["name"] for category in categories)
    return ("background", *names), (0, *(category["id"] for category in categories))


def _read(file: Path, lists: Iterable[str] = tuple(_KEYS)) -> dict[str, Any]:
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{file} is not JSON: {error}") from error
    for name in lists:
        keys = _KEYS[name]
        entries = content.get(name) if isinstance(content, dict) else None
        if not isinstance(entries, list):
            raise ValueError(f"{file} has no list {name!r}")
        for entry in entries:
            if not (isinstance(entry, dict) and entry.keys() >= set(keys)):
                raise ValueError(f"{file}: an entry of {name!r} lacks one of {keys}: {entry}")
    return content


def _four_numbers(annotation: dict[str, Any], where: str) -> list[float]:
    try:
        left, top, width, height = (float(value) for value in annotation["bbox"])
    except (KeyError, TypeError, ValueError):
        got = annotation.get("bbox")
        raise ValueError(f"{where}: bbox must be four numbers, got {got!r}") from None
    return [left, top, width, height]
