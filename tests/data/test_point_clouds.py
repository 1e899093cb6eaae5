"""Scenes of a simulated LIDAR: where its rays end, and that a scene depends on its index alone."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from fastvision.data import LidarScenes, point_clouds
from fastvision.ops import box_iou_rotated
from fastvision.reference.box_iou_3d import seen_from_above

SENSOR = np.array((0.0, 0.0, point_clouds._HEIGHT))


def inside(points: torch.Tensor, box: torch.Tensor, margin: float) -> torch.Tensor:
    """Which points [n, 3] are in a box [7] that is larger by a margin."""
    offset = points - box[:3]
    cos, sin = box[6].cos(), box[6].sin()
    along = torch.stack(
        (
            cos * offset[:, 0] + sin * offset[:, 1],
            cos * offset[:, 1] - sin * offset[:, 0],
            offset[:, 2],
        ),
        1,
    )
    return (along.abs() <= box[3:6] / 2 + margin).all(1)


@pytest.mark.parametrize("split", ["train", "test"])
def test_annotation(split: str) -> None:
    scenes = LidarScenes(split, length=8)
    assert len(scenes) == 8 and scenes.classes == ("background", "car", "pedestrian")
    seen = set()
    for index in range(8):
        cloud, target = scenes[index]
        boxes, labels = target["boxes"], target["labels"]
        assert cloud.dtype == torch.float32 and cloud.shape[1] == 4 and 3000 < len(cloud) < 16384
        assert cloud.isfinite().all() and cloud[:, 3].min() >= 0 and cloud[:, 3].max() <= 1
        assert boxes.dtype == torch.float32 and boxes.shape == (len(labels), 7)
        assert labels.dtype == torch.int64 and target["scene_id"] == index
        torch.testing.assert_close(boxes[:, 2], boxes[:, 5] / 2)  # on the ground
        assert boxes[:, :2].abs().max() <= 25 and boxes[:, 6].abs().max() <= math.pi
        assert (boxes[:, :2].norm(dim=1) > 3).all()
        for box in boxes:
            assert inside(cloud[:, :3], box, 0.15).sum() >= 5
        overlap = box_iou_rotated(*[seen_from_above(boxes)] * 2)
        assert overlap.fill_diagonal_(0).max() == 0
        seen.update(labels.tolist())
        is_car = labels == 1
        assert (boxes[is_car, 3] > 3.5).all() and (boxes[~is_car, 3] < 1).all()
    assert seen == {1, 2}


def test_rays_end_at_the_first_surface(monkeypatch: pytest.MonkeyPatch) -> None:
    """Distances of points without noise, by each ray and box in turn."""
    for name in ("_RANGE_NOISE", "_ROUGHNESS", "_LOST"):
        monkeypatch.setattr(point_clouds, name, 0.0)
    scenes = LidarScenes(length=2, reach=15, min_points=0)
    rng = np.random.default_rng((0, 0, 1))
    boxes, labels = scenes._objects(rng)
    parts = point_clouds._Parts.of(boxes, labels)
    cloud, owners = point_clouds._scan(rng, parts, 21.0)
    assert len(parts.boxes) == len(boxes) + (labels == 1).sum()
    assert set(np.unique(owners)) > {-1} and len(np.unique(owners)) > 8
    kinds = set()
    for number in np.random.default_rng(0).permutation(len(cloud))[:400]:
        ray = cloud[number, :3].astype(np.float64) - SENSOR
        length = np.linalg.norm(ray)
        ray /= length
        nearest, owner = (-SENSOR[2] / ray[2] if ray[2] < 0 else math.inf), -1
        for part, bottom, top, of in zip(*parts, strict=True):
            x, y, along, across, yaw = part
            turn = np.array(
                [[math.cos(yaw), math.sin(yaw), 0], [-math.sin(yaw), math.cos(yaw), 0], [0, 0, 1]]
            )
            start = turn @ (SENSOR - (x, y, (bottom + top) / 2))
            half = np.array((along, across, top - bottom)) / 2
            first, second = (-half - start) / (turn @ ray), (half - start) / (turn @ ray)
            near, far = np.minimum(first, second).max(), np.maximum(first, second).min()
            if 0 < near < far and near < nearest:
                nearest, owner = near, of
        assert owners[number] == owner
        assert length == pytest.approx(nearest, abs=1e-4)
        kinds.add(owner)
    assert len(kinds) > 5


def test_far_objects_have_fewer_points() -> None:
    near, far = [], []
    for cloud, target in LidarScenes(length=20, pedestrians=0, clutter=0):
        for box in target["boxes"]:
            distance = float(box[:2].norm())
            count = int(inside(cloud[:, :3], box, 0.1).sum())
            (near if distance < 10 else far if distance > 20 else []).append(count)
    assert len(near) > 4 < len(far) and np.mean(near) > 4 * np.mean(far)


def test_the_cabin_is_behind_the_hood() -> None:
    for cloud, target in LidarScenes(length=3, cars=4, pedestrians=0, clutter=0, reach=12):
        for box in target["boxes"]:
            on = cloud[inside(cloud[:, :3], box, 0.1), :3]
            forward = (on[:, :2] - box[:2]) @ torch.stack((box[6].cos(), box[6].sin()))
            high = on[:, 2] > 0.75 * box[5]
            assert forward[high].max() < 0.2 * box[3]


def test_a_scene_depends_on_its_index_alone() -> None:
    scenes = LidarScenes(length=4)
    later = [scenes[index] for index in (3, 1, -1)]
    again = LidarScenes(length=50)
    for (cloud, target), index in zip(later, (3, 1, 3), strict=True):
        other, known = again[index]
        assert cloud.equal(other) and target["boxes"].equal(known["boxes"])
        assert target["labels"].equal(known["labels"]) and target["scene_id"] == index
    for other in (LidarScenes("test"), LidarScenes(seed=1)):
        assert not other[1][0].equal(later[1][0])
    with pytest.raises(IndexError):
        scenes[4]


def test_numbers_of_objects() -> None:
    empty, target = LidarScenes(cars=0, pedestrians=0, clutter=0)[0]
    assert target["boxes"].shape == (0, 7) and target["labels"].shape == (0,)
    assert empty[:, 2].abs().max() < 0.3, "there is only ground"
    only = LidarScenes(cars=(2, 2), pedestrians=0, clutter=50, min_points=0)
    assert max(len(only[index][1]["labels"]) for index in range(5)) == 2
    assert LidarScenes(cars=50, reach=8)[0][0].isfinite().all(), "most find no room"
    strict, lenient = (LidarScenes(min_points=count, length=6) for count in (60, 1))
    assert sum(len(t["labels"]) for _, t in strict) < sum(len(t["labels"]) for _, t in lenient)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"split": "val"}, ValueError, "split must be one of train, test, got 'val'"),
        ({"length": -1}, ValueError, "length must not be negative, got -1"),
        ({"seed": 0.5}, TypeError, r"seed must be an integer, got 0\.5"),
        ({"reach": 5}, ValueError, "reach must be from 8 to 100, got 5"),
        ({"cars": (3, 2)}, ValueError, r"cars must be two numbers in ascending .*, got \(3, 2\)"),
        ({"clutter": 51}, ValueError, r"clutter must be two numbers .* 0 to 50, got \(51, 51\)"),
        ({"min_points": -5}, ValueError, "min_points must not be negative, got -5"),
    ],
)
def test_bad_arguments(options, error, message) -> None:
    with pytest.raises(error, match=message):
        LidarScenes(**options)
