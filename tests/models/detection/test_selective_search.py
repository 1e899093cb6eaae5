"""Proposals by selective search: what they are, that they repeat, and that they are kept."""

import pytest
import torch

from fastvision.models.detection import SelectiveSearch, selective_search
from fastvision.ops import box_iou

pytest.importorskip("cv2.ximgproc")


def picture(height: int = 60, width: int = 80) -> torch.Tensor:
    """A red square on green."""
    image = torch.zeros(3, height, width)
    image[1] = 0.5
    image[:, 20:44, 30:60] = torch.tensor((0.9, 0.1, 0.1))[:, None, None]
    return image


@pytest.mark.parametrize("mode", ["single", "fast", "quality"])
def test_finds_a_square(mode):
    (boxes,) = SelectiveSearch(mode)([picture()])
    assert boxes.dtype == torch.float32
    assert (boxes[:, :2] < boxes[:, 2:]).all()
    assert boxes.min() >= 0 and (boxes[:, 2:] <= torch.tensor((80, 60))).all()
    overlap = box_iou(torch.tensor([[30.0, 20, 60, 44]]), boxes).max()
    assert overlap > 0.8


def test_repeats_and_takes_bytes():
    image = torch.rand(3, 50, 70, generator=torch.Generator().manual_seed(0))
    whole = (image * 255).round()
    search = SelectiveSearch(scale=50)
    first, again = search([whole / 255, whole.to(torch.uint8)])
    assert len(first) > 1 and torch.equal(first, again)
    assert len(first.unique(dim=0)) == len(first)


def test_limits():
    image = torch.rand(3, 50, 70, generator=torch.Generator().manual_seed(0))
    every = SelectiveSearch(scale=50)([image])[0]
    few = SelectiveSearch(scale=50, max_boxes=5)([image])[0]
    assert len(few) == 5 and all((every == box).all(1).any() for box in few)
    large = SelectiveSearch(scale=50, min_size=20)([image])[0]
    sides = (every[:, 2:] - every[:, :2]).amin(1)
    assert 0 < len(large) < len(every) and torch.equal(large, every[sides >= 20])


@pytest.mark.parametrize("size", [(1, 1), (1, 9), (4, 3)])
def test_tiny_images(size):
    (boxes,) = SelectiveSearch()([torch.rand(3, *size)])
    assert boxes.tolist() == [[0, 0, size[1], size[0]]]


def test_cache(tmp_path, monkeypatch):
    search = SelectiveSearch(cache=tmp_path / "new")
    (boxes,) = search([picture()])
    monkeypatch.setattr(selective_search, "_module", lambda: pytest.fail("searched again"))
    assert torch.equal(search([picture()])[0], boxes)
    assert len(SelectiveSearch(cache=tmp_path / "new", min_size=70)([picture()])[0]) < len(boxes)
    for other in (SelectiveSearch("single", cache=search.cache), SelectiveSearch(scale=50)):
        with pytest.raises(pytest.fail.Exception, match="searched again"):
            other([picture()])
    with pytest.raises(pytest.fail.Exception, match="searched again"):
        search([picture() + 0.01])
    with pytest.raises(pytest.fail.Exception, match="searched again"):
        search([picture().transpose(1, 2)])


@pytest.mark.parametrize(
    "image, error, message",
    [
        (torch.rand(1, 8, 8), ValueError, "RGB"),
        (torch.rand(3, 0, 8), ValueError, "not empty"),
        (torch.rand(8, 8), ValueError, "RGB"),
        (torch.zeros(3, 8, 8, dtype=torch.int64), TypeError, "uint8"),
        (None, TypeError, "images"),
    ],
)
def test_images_that_do_not_fit(image, error, message):
    with pytest.raises(error, match=message):
        SelectiveSearch()([image])


@pytest.mark.parametrize(
    "options", [{"mode": "slow"}, {"scale": 0}, {"max_boxes": 0}, {"scale": 1.5}]
)
def test_options_that_do_not_fit(options):
    with pytest.raises((ValueError, TypeError), match=next(iter(options))):
        SelectiveSearch(**options)


def test_opencv_without_its_additional_modules(monkeypatch):
    monkeypatch.delattr("cv2.ximgproc")
    with pytest.raises(ModuleNotFoundError, match="opencv-contrib-python-headless"):
        SelectiveSearch()([picture()])
