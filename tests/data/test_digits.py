"""Real digits: what is in them, and that no image is in both splits."""

from __future__ import annotations

import pickle

import pytest
import torch

from fastvision.data import Digits8x8, MNIST5k, photographs

SETS = {
    MNIST5k: {"train": 4000, "test": 1000, "side": 28},
    Digits8x8: {"train": 1442, "test": 355, "side": 8},
}


@pytest.mark.parametrize("digits", SETS)
@pytest.mark.parametrize("split", ["train", "test"])
def test_items(digits: type, split: str) -> None:
    from torchvision.tv_tensors import Image

    data = digits(split)
    side = SETS[digits]["side"]
    assert len(data) == SETS[digits][split]
    image, label = data[3]
    assert type(image) is Image and image.shape == (1, side, side)
    assert image.dtype == torch.uint8 and type(label) is int and label == int(data.labels[3])
    assert image.equal(data.images[3])
    assert data.images.max() == 255 and data.images.min() == 0
    counts = data.labels.bincount()
    assert len(counts) == 10 and counts.max() - counts.min() <= 8
    with pytest.raises(IndexError):
        data[len(data)]


@pytest.mark.parametrize("digits", SETS)
def test_no_image_is_twice_or_in_both_splits(digits: type) -> None:
    train, test = (
        [image.numpy().tobytes() for image in digits(split).images] for split in ("train", "test")
    )
    assert len(set(train)) == len(train) and len(set(test)) == len(test)
    assert not set(train) & set(test)


def test_labels_belong_to_their_images() -> None:
    """The nearest class mean of the training images tells most test images: labels are in step."""
    train, test = MNIST5k("train"), MNIST5k("test")
    means = torch.stack([train.images[train.labels == k].float().mean(0) for k in range(10)])
    distance = torch.cdist(test.images.float().flatten(1), means.flatten(1))
    assert (distance.argmin(1) == test.labels).float().mean() > 0.75  # chance is 0.1


def test_transforms_and_pickle() -> None:
    data = Digits8x8("test", transforms=_double)
    again = pickle.loads(pickle.dumps(data))
    assert again[5][1] == data[5][1] == 2 * int(data.labels[5])


def _double(image: torch.Tensor, label: int) -> tuple[torch.Tensor, int]:
    return image, 2 * label


@pytest.mark.parametrize("make", [MNIST5k, Digits8x8, photographs])
def test_unknown_split(make) -> None:
    with pytest.raises(ValueError, match="split must be one of train, test, got 'val'"):
        make("val")


def test_halves_of_photographs() -> None:
    train, test = photographs("train"), photographs("test")
    assert train.keys() == test.keys() and len(train) >= 10
    for half in train.values():
        assert half.ndim == 3 and half.shape[2] == 3 and half.dtype.name == "uint8"
        assert min(half.shape[:2]) >= 150
        with pytest.raises(ValueError):  # one array for everybody
            half[0, 0] = 0
    # the two halves are all of the picture, and lie next to each other
    brick = torch.cat([torch.tensor(half["brick"]) for half in (train, test)], 1)
    skimage = pytest.importorskip("skimage.data")
    assert brick[..., 0].equal(torch.from_numpy(skimage.brick()))
    astronaut = torch.cat([torch.tensor(half["astronaut"]) for half in (train, test)], 1)
    assert astronaut.equal(torch.from_numpy(skimage.astronaut()))
    china = torch.cat([torch.tensor(half["china"]) for half in (train, test)], 1)
    assert china.shape == (427, 640, 3)


def test_missing_package(monkeypatch: pytest.MonkeyPatch) -> None:
    from fastvision._optional import optional

    with pytest.raises(ModuleNotFoundError, match=r"nowhere is not installed: pip install 'fastv"):
        optional("nowhere.data")
    with pytest.raises(ModuleNotFoundError, match="mlxtend.nothing"):
        optional("mlxtend.nothing.at_all")
