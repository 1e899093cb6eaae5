"""Pascal VOC's folders (Everingham et al., IJCV 2010)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from ._checks import check_file, check_folder
from ._samples import IGNORE, Sample, Transforms, check_box, read_image, target, transformed

VOC_CLASSES = (
    "background",
    "aeroplane",
    "bicycle",
    "bird",
    "boat",
    "bottle",
    "bus",
    "car",
    "cat",
    "chair",
    "cow",
    "diningtable",
    "dog",
    "horse",
    "motorbike",
    "person",
    "pottedplant",
    "sheep",
    "sofa",
    "train",
    "tvmonitor",
)


class _Voc(Dataset[Sample]):
    """Images of a split, and the annotation files that belong to them."""

    _task: str  # folder of the lists
    _annotations: str
    _suffix: str

    def __init__(
        self,
        root: str | Path,
        split: str = "train",
        *,
        year: str = "2012",
        classes: Sequence[str] = VOC_CLASSES,
        transforms: Transforms | None = None,
    ) -> None:
        folder = Path(root) / "VOCdevkit" / f"VOC{year}"
        check_folder(folder)
        listing = folder / "ImageSets" / self._task / f"{split}.txt"
        check_file(listing)
        if len(classes) < 2 or classes[0] != "background":
            raise ValueError(f"classes must begin with 'background', got {tuple(classes)}")
        self.ids = [line.split()[0] for line in listing.read_text().splitlines() if line.strip()]
        if not self.ids:
            raise ValueError(f"{listing} lists no image")
        self.images = [folder / "JPEGImages" / f"{name}.jpg" for name in self.ids]
        self.annotations = [
            folder / self._annotations / f"{name}{self._suffix}" for name in self.ids
        ]
        for path in (*self.images, *self.annotations):
            if not path.is_file():
                raise FileNotFoundError(f"no file {path}, which {listing} asks for")
        self.classes = tuple(classes)
        self.transforms = transforms

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: int) -> Sample:
        index = range(len(self))[index]
        image = read_image(self.images[index])
        annotation = self._annotation(index, image)
        return transformed(self.transforms, image, annotation)

    def _annotation(self, index: int, image: Tensor) -> dict[str, Any]:
        raise NotImplementedError


class VOCDetection(_Voc):
    """Boxes of Pascal VOC.

    Reads ``root/VOCdevkit/VOC{year}`` with its folders JPEGImages, Annotations and ImageSets/Main.

    Args:
        root: folder that contains VOCdevkit.
        split: name of a list in ImageSets/Main, such as "train", "val" or "trainval".
        year: of the challenge.
        classes: names in the order of the labels, "background" first.
        transforms: called with image and target, returns both.

    An item is an image, [3, H, W] uint8, and its target:

    - "boxes": [n, 4] float32 corners (x1, y1, x2, y2). VOC counts pixels from 1 and includes the
      last one. Here the first pixel is from 0 to 1, so x1 and y1 are one less than in the file.
    - "labels": [n] int64, from 1. ``classes[label]`` is the name.
    - "difficult": [n] bool, for objects that VOC's evaluation leaves out.
    - "image_id": the index; ``ids[image_id]`` is VOC's name.

    Raises:
        FileNotFoundError: a folder, a list, or a listed image or annotation is missing.
        ValueError: when it is read, an image or annotation is damaged, a box has no area or is more
            than a pixel outside of the image, or a class is unknown. The error names the file.
    """

    _task = "Main"
    _annotations = "Annotations"
    _suffix = ".xml"

    def _annotation(self, index: int, image: Tensor) -> dict[str, Any]:
        path = self.annotations[index]
        try:
            objects = ElementTree.parse(path).getroot().findall("object")
        except (ElementTree.ParseError, LookupError, ValueError) as error:  # of its encoding
            raise ValueError(f"{path} is not XML: {error}") from error
        boxes, labels, difficult = [], [], []
        for item in objects:
            name = (item.findtext("name") or "").strip()
            if name not in self.classes[1:]:
                raise ValueError(f"{path}: unknown class {name!r}")
            labels.append(self.classes.index(name))
            boxes.append(check_box(_corners(item, path), image, str(path)))
            difficult.append((item.findtext("difficult") or "0").strip() == "1")
        return target(
            image,
            index,
            torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4),
            torch.tensor(labels, dtype=torch.int64),
            difficult=torch.tensor(difficult, dtype=torch.bool),
        )


class VOCSegmentation(_Voc):
    """Class maps of Pascal VOC.

    Reads ``root/VOCdevkit/VOC{year}`` with its folders JPEGImages, SegmentationClass and
    ImageSets/Segmentation.

    Args:
        root: folder that contains VOCdevkit.
        split: name of a list in ImageSets/Segmentation, such as "train", "val" or "trainval".
        year: of the challenge.
        classes: names in the order of the labels, "background" first.
        transforms: called with image and target, returns both.

    An item is an image, [3, H, W] uint8, and its target:

    - "class_map": [H, W] int64, the label of each pixel, 0 for background and 255
      (:data:`IGNORE`) at the outlines of objects. ``classes[label]`` is the name.
    - "image_id": the index; ``ids[image_id]`` is VOC's name.

    Raises:
        FileNotFoundError: a folder, a list, or a listed image or annotation is missing.
        ValueError: when it is read, an image or class map is damaged, their sizes differ, or a
            class is unknown. The error names the file.
    """

    _task = "Segmentation"
    _annotations = "SegmentationClass"
    _suffix = ".png"

    def _annotation(self, index: int, image: Tensor) -> dict[str, Any]:
        from torchvision.tv_tensors import Mask

        path = self.annotations[index]
        class_map = _read_class_map(path)
        if class_map.shape != image.shape[1:]:
            height, width = image.shape[1:]
            got = f"{class_map.shape[1]}x{class_map.shape[0]}"
            raise ValueError(f"{path} is {got}, but {self.images[index]} is {width}x{height}")
        labels = np.unique(class_map)
        unknown = labels[(labels >= len(self.classes)) & (labels != IGNORE)]
        if unknown.size:
            raise ValueError(f"{path}: unknown class {unknown[0]} of {len(self.classes)}")
        values = torch.from_numpy(class_map.astype(np.int64))
        return {"class_map": Mask(values), "image_id": index}


def _corners(item: ElementTree.Element, path: Path) -> list[float]:
    """(x1, y1, x2, y2) from 0 of an object's <bndbox>."""
    values = [item.findtext(f"bndbox/{name}") for name in ("xmin", "ymin", "xmax", "ymax")]
    try:
        x1, y1, x2, y2 = (float(value) for value in values if value is not None)
    except ValueError:
        raise ValueError(f"{path}: a box must be four numbers, got {values}") from None
    return [x1 - 1, y1 - 1, x2, y2]


def _read_class_map(path: Path) -> np.ndarray:
    from PIL import Image

    try:
        with Image.open(path) as image:
            if image.mode not in ("P", "L"):
                raise ValueError(f"it has mode {image.mode}, not one label per pixel")
            return np.array(image)
    except Exception as error:  # see read_image()
        raise ValueError(f"{path} cannot be read as a class map: {error}") from error
