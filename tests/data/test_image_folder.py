"""ImageFolder: labels by folder, and errors that name the file."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from fastvision.data import ImageFolder


@pytest.fixture
def root(tmp_path: Path, save_image: Callable[..., Path]) -> Path:
    save_image(tmp_path / "train" / "cat" / "2.png", level=10)
    save_image(tmp_path / "train" / "cat" / "1.JPG", level=20)
    save_image(tmp_path / "train" / "bee" / "more" / "0.png", level=30)
    (tmp_path / "train" / "bee" / "notes.txt").write_text("no image")
    (tmp_path / "train" / "README").write_text("no class")
    save_image(tmp_path / "val" / "cat" / "9.png", level=40)
    return tmp_path


def test_items(root: Path) -> None:
    from torchvision.tv_tensors import Image

    data = ImageFolder(root, "train")
    assert data.classes == ("bee", "cat") and len(data) == 3
    assert [path.name for path in data.files] == ["0.png", "1.JPG", "2.png"]
    assert data.labels == [0, 1, 1]
    image, label = data[2]
    assert type(image) is Image and image.shape == (3, 30, 40) and image.dtype == torch.uint8
    assert image[:, 0, 0].tolist() == [10, 20, 200] and label == 1
    doubled = ImageFolder(root, transforms=lambda image, label: (image, label * 2))
    assert doubled[2][1] == 2


def test_classes_of_another_split(root: Path) -> None:
    """Validation data without bees would call cats 0."""
    train = ImageFolder(root, "train")
    assert ImageFolder(root, "val")[0][1] == 0
    assert ImageFolder(root, "val", classes=train.classes)[0][1] == 1
    with pytest.raises(ValueError, match=r"train/bee is none of the classes cat, dog"):
        ImageFolder(root, "train", classes=["cat", "dog"])


def test_other_kinds_of_pixels(root: Path) -> None:
    from PIL import Image

    folder = root / "kinds" / "a"
    folder.mkdir(parents=True)
    Image.new("L", (4, 3), 77).save(folder / "grey.png")
    Image.new("RGBA", (4, 3), (1, 2, 3, 0)).save(folder / "transparent.png")
    Image.new("CMYK", (4, 3), (0, 0, 0, 0)).save(folder / "print.jpg")
    data = ImageFolder(root, "kinds")
    colors = {
        path.stem: data[i][0].unique_consecutive(dim=2)[:, 0, 0].tolist()
        for i, path in enumerate(data.files)
    }
    assert colors == {"grey": [77] * 3, "transparent": [1, 2, 3], "print": [255] * 3}


def test_missing_folder(root: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no folder .*/test; .* contains train, val"):
        ImageFolder(root, "test")
    with pytest.raises(ValueError, match=r"val/cat contains no folder, but should have one per"):
        ImageFolder(root / "val", "cat")
    (root / "val" / "wasp").mkdir()
    with pytest.raises(ValueError, match=r"val/wasp contains no image"):
        ImageFolder(root, "val")


def test_broken_images(root: Path) -> None:
    from PIL import Image

    file = root / "val" / "cat" / "9.png"
    whole = file.read_bytes()
    for content in (b"", b"no image", whole[:60]):
        file.write_bytes(content)
        with pytest.raises(ValueError, match=r"cat/9\.png cannot be read as an image: "):
            ImageFolder(root, "val")[0]
    noise = torch.randint(0, 256, (30, 40), dtype=torch.uint8)
    Image.fromarray(noise.numpy()).save(file, "jpeg")
    file.write_bytes(file.read_bytes()[:-200])
    with pytest.raises(ValueError, match=r"9\.png cannot be read as an image: .*truncated"):
        ImageFolder(root, "val")[0]
    Image.new("I;16", (4, 3), 30_000).save(file)
    with pytest.raises(ValueError, match=r"9\.png cannot .* mode I;16 have more than 8 bits"):
        ImageFolder(root, "val")[0]
    data = ImageFolder(root, "val")
    file.unlink()
    with pytest.raises(FileNotFoundError, match=r"cat/9\.png"):
        data[0]
