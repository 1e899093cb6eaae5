"""Findings on a copy of the picture."""

from __future__ import annotations

import numpy as np
import pytest
import torch


def some(**fields: torch.Tensor):
    from fastvision.inference import Findings

    boxes = torch.tensor([[100.0, 200.0, 300.0, 400.0]])
    return Findings(torch.tensor([3]), torch.tensor([0.75]), **{"boxes": boxes, **fields})


def changed(picture, copy) -> np.ndarray:
    return (np.asarray(picture) != np.asarray(copy)).any(2)


def test_a_box_has_the_color_of_its_class() -> None:
    from PIL import Image

    from fastvision.inference import draw
    from fastvision.inference.drawing import color_of

    picture = Image.new("RGB", (640, 480))
    copy = draw(picture, some(), lambda label: f"class {label}")
    assert changed(picture, copy).any() and not np.asarray(picture).any()
    pixels = np.asarray(copy)
    for y, x in ((300, 100), (300, 299), (399, 200)):
        assert tuple(pixels[y, x]) == color_of(3)
    rows, columns = changed(picture, copy).nonzero()
    assert (rows.max(), columns.max()) == (399, 299) and rows.min() < 190  # the label is above
    assert not changed(picture, copy)[210:390, 110:290].any()
    assert len({color_of(label) for label in range(100)}) == 100


@pytest.mark.parametrize("size", [(1, 1), (20, 3), (64, 64), (3, 900), (4000, 3000)])
@pytest.mark.parametrize("corner", [(-50.0, -50.0), (0.0, 0.0), (1e6, 1e6)])
def test_labels_stay_inside(size: tuple[int, int], corner: tuple[float, float]) -> None:
    from PIL import Image

    from fastvision.inference import draw

    picture = Image.new("RGB", size)
    x, y = corner
    copy = draw(picture, some(boxes=torch.tensor([[x, y, x + 10, y + 10]])))
    factor = min(8, max(1, -(-320 // max(size))))
    assert copy.size == (size[0] * factor, size[1] * factor)
    assert np.asarray(copy).any()


def test_masks_and_keypoints() -> None:
    from PIL import Image

    from fastvision.inference import draw
    from fastvision.inference.drawing import color_of

    picture = Image.new("RGB", (640, 480))
    mask = torch.zeros(1, 480, 640, dtype=torch.bool)
    mask[0, 250:260, 150:160] = True
    points = torch.tensor([[[200.0, 300.0, 1.0], [220.0, 320.0, 0.0]]])
    pixels = np.asarray(draw(picture, some(masks=mask, keypoints=points)))
    assert tuple(pixels[255, 155]) == tuple(round(0.45 * value) for value in color_of(3))
    assert pixels[300, 200].any() and not pixels[320, 220].any()


def test_regions_are_named_inside_of_them() -> None:
    from PIL import Image

    from fastvision.inference import draw

    mask = torch.zeros(1, 480, 640, dtype=torch.bool)
    mask[0, 400:, 500:] = True
    picture = Image.new("RGB", (640, 480))
    copy = draw(picture, some(boxes=None, masks=mask))
    assert not changed(picture, copy)[:400, :500].any()


def test_classes_are_listed() -> None:
    from PIL import Image

    from fastvision.inference import Findings, draw

    findings = Findings(torch.tensor([1, 2]), torch.tensor([0.7, 0.3]))
    picture = Image.new("RGB", (640, 480))
    rows, columns = changed(picture, draw(picture, findings)).nonzero()
    assert rows.min() == columns.min() == 0 and 20 < rows.max() < 60
