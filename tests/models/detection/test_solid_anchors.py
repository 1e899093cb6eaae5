"""Anchors in space: where they lie, the codes of boxes, and the match against a loop."""

from __future__ import annotations

import math

import pytest
import torch

from fastvision.models.detection import SolidAnchors
from fastvision.models.detection.pillars import ANCHORS
from fastvision.models.detection.solid_anchors import decode, encode
from fastvision.ops import box_iou_rotated
from fastvision.reference.box_iou_3d import seen_from_above
from fastvision.testing.pillars import EXTENT, objects


def grid_of_anchors() -> SolidAnchors:
    return SolidAnchors(ANCHORS, (*EXTENT[:2], *EXTENT[3:5]), (16, 24))


def test_anchors_lie_on_the_grid():
    anchors = SolidAnchors([(4, 2, 1.5, 0.7), (1, 1, 2, 0.9)], (0, -4, 8, 4), (2, 4))
    boxes, labels = anchors.on(torch.device("cpu"))
    assert boxes.shape == (2 * 4 * 2 * 2, 7) and anchors.per_cell == 4
    cells = boxes.view(2, 4, 2, 2, 7)
    assert cells[:, 0, 0, 0, 1].tolist() == [-2, 2]
    assert cells[1, :, 1, 1, 0].tolist() == [1, 3, 5, 7]
    assert cells[1, 2, 0, :, 2:6].tolist() == [[pytest.approx(v) for v in (0.7, 4, 2, 1.5)]] * 2
    assert cells[0, 0, 1, :, 6].tolist() == [0, pytest.approx(math.pi / 2)]
    assert labels.view(2, 4, 2, 2)[1, 3].tolist() == [[1, 1], [2, 2]]


def test_codes_are_decoded():
    generator = torch.Generator().manual_seed(0)
    boxes = torch.randn(200, 7, generator=generator, dtype=torch.double) * 3
    boxes[:, 3:6] = boxes[:, 3:6].exp().clamp(0.1, 20)
    anchors = SolidAnchors(ANCHORS, (-4, -4, 4, 4), (8, 8))
    reference = anchors.on(boxes.device)[0][:200].double()
    codes, forward = encode(boxes, reference)
    assert codes[:, 6].abs().max() <= math.pi / 2
    assert 0.2 < forward.double().mean() < 0.8
    decoded = decode(codes, forward, reference)
    torch.testing.assert_close(decoded[:, :6], boxes[:, :6])
    turn = decoded[:, 6] - boxes[:, 6]
    torch.testing.assert_close(turn.cos(), torch.ones(200).double())
    # turned around, only the direction changes
    around = boxes + boxes.new_tensor((0, 0, 0, 0, 0, 0, math.pi))
    other, backward = encode(around, reference)
    torch.testing.assert_close(other, codes)
    assert backward.equal(~forward)


def test_matching_by_a_loop():
    grid, (boxes, labels) = grid_of_anchors(), objects().values()
    answers, owner = grid.match(boxes[None], labels[None])
    places, classes = grid.on(boxes.device)
    turned = boxes.clone()  # to the closest direction of an anchor
    turned[:, 6] = torch.tensor((0.0, math.pi / 2, math.pi / 2))
    overlap = box_iou_rotated(seen_from_above(places), seen_from_above(turned))
    for anchor in range(len(places)):
        shared = [
            overlap[anchor, number].item() if labels[number] == classes[anchor] else 0.0
            for number in range(3)
        ]
        along = [abs(places[anchor, 6] - turned[number, 6]) < 1e-3 for number in range(3)]
        owned = [
            number
            for number in range(3)
            if along[number]
            and (
                shared[number] >= 0.5
                or (shared[number] > 0 and overlap[anchor, number] == overlap[:, number].max())
            )
        ]
        if owned:
            assert answers[0, anchor] == 0 and owner[0, anchor] in owned
        else:
            assert answers[0, anchor] == (-1 if max(shared) < 0.35 else -2)
    assert set(owner[answers == 0].tolist()) == {0, 1, 2}, "each object has an anchor"
    assert (answers == -2).any()


def test_matching_does_not_depend_on_the_rest_of_a_batch():
    grid, (boxes, labels) = grid_of_anchors(), objects().values()
    alone, owner = grid.match(boxes[None], labels[None])
    batch = torch.stack((boxes.flip(0), torch.zeros_like(boxes), boxes))
    answers, owners = grid.match(batch, torch.stack((labels.flip(0), labels * 0, labels)))
    assert answers[2].equal(alone[0]) and answers[0].equal(alone[0])
    assert owners[2].equal(owner[0])
    found = alone[0] == 0
    assert owners[0][found].equal(2 - owner[0][found])
    assert (answers[1] == -1).all()
    around = boxes + boxes.new_tensor((0, 0, 0, 0, 0, 0, math.pi))
    assert grid.match(around[None], labels[None])[0].equal(alone)


def test_an_object_smaller_than_a_cell_has_an_anchor():
    grid = grid_of_anchors()
    spread = torch.linspace(0, 0.8, 9)  # a cell
    boxes = torch.zeros(81, 7)
    boxes[:, :2] = torch.cartesian_prod(spread, spread)
    boxes[:, 3:6] = 0.5
    for box in boxes:
        answers, _ = grid.match(box[None, None], torch.tensor([[2]]))
        assert (answers == 0).any()
