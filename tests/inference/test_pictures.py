"""Pictures of every kind become upright RGB."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest


@pytest.fixture
def pixels() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (5, 7, 4), np.uint8)


def test_transparency_shows_white(pixels: np.ndarray, tmp_path: Path) -> None:
    from PIL import Image

    from fastvision.inference import read_picture

    pixels[:, :3, 3], pixels[:, 3:, 3] = 0, 255
    Image.fromarray(pixels, "RGBA").save(tmp_path / "a.png")
    picture = np.asarray(read_picture(tmp_path / "a.png"))
    assert (picture[:, :3] == 255).all()
    assert (picture[:, 3:] == pixels[:, 3:, :3]).all()


@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_16_bits(suffix: str, tmp_path: Path) -> None:
    from PIL import Image

    from fastvision.inference import read_picture

    values = np.array([[0, 256, 257, 0x8000, 0xFFFF]], np.uint16)
    Image.fromarray(values).save(tmp_path / f"a.{suffix}")
    picture = np.asarray(read_picture(tmp_path / f"a.{suffix}"))
    assert picture.shape == (1, 5, 3)
    assert (picture == np.array([0, 0, 1, 127, 255])[None, :, None]).all()


@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation(orientation: int, pixels: np.ndarray, tmp_path: Path) -> None:
    from PIL import Image

    from fastvision.inference import read_picture

    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = pixels[..., :3].copy()
    Image.fromarray(stored).save(tmp_path / "a.png", exif=exif)
    upright = {
        1: stored,
        2: stored[:, ::-1],
        3: stored[::-1, ::-1],
        4: stored[::-1],
        5: stored.transpose(1, 0, 2),
        6: stored[::-1].transpose(1, 0, 2),
        7: stored[::-1, ::-1].transpose(1, 0, 2),
        8: stored[:, ::-1].transpose(1, 0, 2),
    }
    assert (np.asarray(read_picture(tmp_path / "a.png")) == upright[orientation]).all()


def test_errors_name_the_file(tmp_path: Path) -> None:
    from PIL import Image

    from fastvision.inference import read_picture

    path = tmp_path / "a.tif"
    Image.fromarray(np.zeros((2, 2), np.float32)).save(path)
    with pytest.raises(ValueError, match=r"a\.tif cannot be read .*: pixels of mode F have no"):
        read_picture(path)
    Image.fromarray(np.full((2, 2), 0x10000, np.int32)).save(path)
    with pytest.raises(ValueError, match=r"a\.tif cannot be read .*: .* exceed 16 bits"):
        read_picture(path)
    with pytest.raises(FileNotFoundError, match="none"):
        read_picture(tmp_path / "none.png")


def test_further_pictures_of_a_photograph_are_left_out(tmp_path: Path) -> None:
    """Cameras put a thumbnail into the same file."""
    from PIL import Image

    from fastvision.inference.pictures import read_pictures

    first, second = Image.new("RGB", (16, 16), "red"), Image.new("RGB", (8, 8), "blue")
    first.save(tmp_path / "a.jpg", "MPO", save_all=True, append_images=[second])
    (picture,) = read_pictures(tmp_path / "a.jpg")
    assert picture.size == (16, 16)
