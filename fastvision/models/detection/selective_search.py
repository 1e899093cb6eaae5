"""Selective search: boxes of regions that may be objects, by OpenCV.

Uijlings, van de Sande, Gevers and Smeulders, Selective search for object recognition, 2013.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..._optional import optional
from ...ops._checks import check_number, check_tensor, integer
from .anchors import box_dtype

_MODES = {
    "single": "switchToSingleStrategy",
    "fast": "switchToSelectiveSearchFast",
    "quality": "switchToSelectiveSearchQuality",
}
_VERSION = 1  # of what a cached file holds


class SelectiveSearch:
    """Boxes around the regions of several segmentations, whose regions are merged by similarity.

    Boxes are in a fixed order, and a limited number of them is drawn by a fixed seed, so that the
    same image gives the same boxes.

    Args:
        mode: "fast" (8 hierarchies of regions), "quality" (up to 80) or "single" (one), the
            strategies of the paper that OpenCV has.
        scale: of the first segmentation; the larger, the larger its regions. The paper's is 150;
            small images need less.
        min_size: pixels; boxes with a shorter side are left out.
        max_boxes: number of boxes per image; None for all.
        cache: a folder for the boxes of images, by their content; None for none.

    Raises:
        ValueError: an argument is out of its range.
    """

    def __init__(
        self,
        mode: str = "fast",
        *,
        scale: int = 150,
        min_size: float = 1,
        max_boxes: int | None = 2000,
        cache: str | os.PathLike[str] | None = None,
    ) -> None:
        if mode not in _MODES:
            raise ValueError(f"mode must be one of {', '.join(_MODES)}, got {mode!r}")
        if integer(scale, "scale must be an integer") < 1:
            raise ValueError(f"scale must be positive, got {scale}")
        check_number(min_size, "min_size")
        limit = max_boxes
        if limit is not None and integer(limit, "max_boxes must be an integer or None") < 1:
            raise ValueError(f"max_boxes must be positive or None, got {max_boxes}")
        self.mode, self.scale = mode, scale
        self.min_size, self.max_boxes = min_size, max_boxes
        self.cache = None if cache is None else Path(cache).expanduser()

    def __call__(self, images: Sequence[Tensor]) -> list[Tensor]:
        """Boxes [n, 4] (x1, y1, x2, y2) of each image, float32, on the image's device.

        Args:
            images: RGB [3, H, W], floating-point in 0..1 or uint8.

        Raises:
            TypeError: an image is no tensor of these types.
            ValueError: an image has another shape, or no pixels.
            ModuleNotFoundError: OpenCV with its additional modules is not installed.
        """
        return [self._selected(self._boxes(_pixels(image))).to(image.device) for image in images]

    def __repr__(self) -> str:
        options = f"scale={self.scale}, min_size={self.min_size}, max_boxes={self.max_boxes}"
        return f"{type(self).__name__}({self.mode!r}, {options})"

    def _boxes(self, pixels: Tensor) -> Tensor:
        """All boxes [n, 4] of BGR [H, W, 3], int32, in order of their coordinates."""
        path = None if self.cache is None else self.cache / f"{self._key(pixels)}.pt"
        if path is not None and path.exists():
            known: Tensor = torch.load(path, weights_only=True)
            return known
        search = _module().createSelectiveSearchSegmentation()
        search.setBaseImage(pixels.numpy())
        arguments = (self.scale,) if self.mode == "single" else (self.scale, self.scale)
        getattr(search, _MODES[self.mode])(*arguments)
        boxes = torch.from_numpy(search.process())  # in a random order: x, y, width, height
        boxes = torch.cat((boxes[:, :2], boxes[:, :2] + boxes[:, 2:]), 1).unique(dim=0)
        if path is not None:
            _write(path, boxes)
        return boxes

    def _selected(self, boxes: Tensor) -> Tensor:
        boxes = boxes[(boxes[:, 2:] - boxes[:, :2]).amin(1) >= self.min_size]
        if self.max_boxes is not None and len(boxes) > self.max_boxes:
            order = torch.randperm(len(boxes), generator=torch.Generator().manual_seed(0))
            boxes = boxes[order[: self.max_boxes].sort().values]
        return boxes.float()

    def _key(self, pixels: Tensor) -> str:
        """Of all that the boxes depend on."""
        version = optional("cv2").__version__
        options = (_VERSION, version, self.mode, self.scale, tuple(pixels.shape))
        digest = hashlib.sha256(repr(options).encode())
        digest.update(pixels.numpy().tobytes())
        return digest.hexdigest()


def check_proposals(proposals: Sequence[Tensor], images: Sequence[Tensor]) -> list[Tensor]:
    """Boxes of each image, on its device and at least float32.

    Raises:
        ValueError: there are not as many as images, or they are not [n, 4].
        TypeError: they are no tensors.
    """
    if len(proposals) != len(images):
        raise ValueError(
            f"proposals must be one tensor per image, {len(images)}, got {len(proposals)}"
        )
    checked = []
    for boxes, image in zip(proposals, images, strict=True):
        check_tensor(boxes, "proposals")
        if boxes.dim() != 2 or boxes.shape[1] != 4:
            raise ValueError(f"proposals must be boxes [n, 4] per image, got {list(boxes.shape)}")
        checked.append(boxes.to(image.device, box_dtype(image)))
    return checked


def _module() -> Any:
    module = getattr(optional("cv2"), "ximgproc", None)
    if module is None:
        raise ModuleNotFoundError(
            "selective search is in OpenCV's additional modules, which the installed OpenCV lacks: "
            "pip install opencv-contrib-python-headless instead of it",
            name="cv2.ximgproc",
        )
    return module.segmentation


def _pixels(image: Tensor) -> Tensor:
    """BGR [H, W, 3] uint8 of RGB [3, H, W]."""
    check_tensor(image, "images")
    if image.dim() != 3 or image.shape[0] != 3 or image.numel() == 0:
        raise ValueError(f"images must be RGB [3, H, W] and not empty, got {list(image.shape)}")
    if image.is_floating_point():
        image = (image.detach().float() * 255).round().clamp(0, 255).to(torch.uint8)
    elif image.dtype != torch.uint8:
        raise TypeError(f"images must be floating-point or uint8, got {image.dtype}")
    return image.cpu().flip(0).permute(1, 2, 0).contiguous()


def _write(path: Path, boxes: Tensor) -> None:
    """Whole or not at all, also if other processes write the same file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=path.parent, delete=False) as file:
        torch.save(boxes, file)
    os.replace(file.name, path)
