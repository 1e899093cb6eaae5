"""Photographs that scikit-image and scikit-learn ship, each cut into one half per split."""

from __future__ import annotations

import functools

import numpy as np

from .._optional import optional
from ._checks import check_split

# without those that contain numerals, and without drawings; all open without a network
_SKIMAGE = (
    "astronaut",
    "brick",
    "camera",
    "chelsea",
    "coffee",
    "coins",
    "grass",
    "gravel",
    "immunohistochemistry",
    "moon",
    "rocket",
)
_SKLEARN = ("china", "flower")


def photographs(split: str = "train") -> dict[str, np.ndarray]:
    """The part ``split`` of each photograph, by its name.

    Every photograph is cut in the middle of its longer side. The left or upper half is "train", the
    other one "test", so crops of the two never share a pixel.

    Args:
        split: "train" or "test".

    Returns:
        [H, W, 3] uint8 arrays, read-only. Grey photographs have three equal channels.

    Raises:
        ModuleNotFoundError: scikit-image or scikit-learn is not installed.
    """
    check_split(split)
    return {name: _half(whole, split) for name, whole in _whole().items()}


def _half(photograph: np.ndarray, split: str) -> np.ndarray:
    axis = 0 if photograph.shape[0] > photograph.shape[1] else 1
    middle = photograph.shape[axis] // 2
    part = slice(0, middle) if split == "train" else slice(middle, None)
    return photograph[part] if axis == 0 else photograph[:, part]


@functools.cache
def _whole() -> dict[str, np.ndarray]:
    skimage, sklearn = optional("skimage.data"), optional("sklearn.datasets")
    loaded = {name: getattr(skimage, name)() for name in _SKIMAGE}
    loaded["motorcycle"] = skimage.stereo_motorcycle()[0]
    loaded |= {name: sklearn.load_sample_image(f"{name}.jpg") for name in _SKLEARN}
    for name, photograph in loaded.items():
        if photograph.ndim == 2:
            photograph = np.repeat(photograph[..., None], 3, axis=2)
        photograph.flags.writeable = False
        loaded[name] = photograph
    return loaded
