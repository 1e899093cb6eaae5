"""Classification data in one folder per class."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import Tensor
from torch.utils.data import Dataset

from ._checks import check_folder
from ._samples import Transforms, read_image, transformed

_SUFFIXES = {".bmp", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp"}


class ImageFolder(Dataset[Any]):
    """Images in ``root/split/class/``, at any depth below the folder of their class.

    Args:
        root: folder of the splits.
        split: folder of the classes, such as "train".
        classes: their names in the order of the labels; by default the folders' names, sorted. Pass
            ``train.classes`` for the other splits, since one that lacks a class would number the
            rest differently.
        transforms: called with image and label, returns both.

    An item is the image, [3, H, W] uint8 RGB as stored (an EXIF orientation is not applied), and
    its label. ``classes[label]`` is the name, ``files`` and ``labels`` list all items.

    Raises:
        FileNotFoundError: there is no such folder.
        ValueError: a folder that is no class, a class without images, or, when it is read, a file
            that is not an image. The error names it.
    """

    def __init__(
        self,
        root: str | Path,
        split: str = "train",
        *,
        classes: Sequence[str] | None = None,
        transforms: Transforms | None = None,
    ) -> None:
        folder = Path(root) / split
        check_folder(folder)
        found = sorted(path.name for path in folder.iterdir() if path.is_dir())
        if not found:
            raise ValueError(f"{folder} contains no folder, but should have one per class")
        self.classes = tuple(found if classes is None else classes)
        self.files: list[Path] = []
        self.labels: list[int] = []
        for name in found:
            if name not in self.classes:
                raise ValueError(
                    f"{folder / name} is none of the classes {', '.join(self.classes)}"
                )
            files = [path for path in (folder / name).rglob("*") if _is_image(path)]
            if not files:
                raise ValueError(f"{folder / name} contains no image")
            self.files += sorted(files)
            self.labels += [self.classes.index(name)] * len(files)
        self.transforms = transforms

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        image, label = read_image(self.files[index]), self.labels[index]
        return transformed(self.transforms, image, label)


def _is_image(path: Path) -> bool:
    return path.suffix.lower() in _SUFFIXES and path.is_file()
